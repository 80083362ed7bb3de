"""Where aspects look, as pictures: each aspect's attention laid over the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from masp.data.images import UnreadableImage, load_image
from masp.errors import InputError, MaspError
from masp.files.atomic import write_bytes
from masp.report.html import data_address, environment, small
from masp.report.mistakes import image_of
from masp.results.records import FILE, read_maps, read_records_file

_COLOURS = "inferno"

_STRENGTH = 0.85
"""How much of the picture the brightest place hides."""


def overlay(image: Image.Image, weights: np.ndarray) -> Image.Image:
    """Lay an attention map over a picture.

    Args:
        image: RGB, of any size; the picture that the features were made from.
        weights: `[height, width]` over its vision tokens; the largest becomes the brightest.

    Returns:
        The picture in grey, with bright places where the aspect looks; of the same size.
    """
    heat = Image.fromarray((weights / weights.max()).astype("f4"), mode="F")
    heat = np.clip(np.asarray(heat.resize(image.size, Image.Resampling.BICUBIC)), 0, 1)
    colours = matplotlib.colormaps[_COLOURS](heat)[..., :3] * 255
    grey = np.asarray(image.convert("L"), dtype="f4")[..., None]
    mixed = grey * (1 - _STRENGTH * heat[..., None]) + colours * (_STRENGTH * heat[..., None])
    return Image.fromarray(np.clip(mixed, 0, 255).astype("u1"))


def aspect_pictures(image: Image.Image, maps: Mapping[str, np.ndarray]) -> list[dict[str, str]]:
    """The picture of each aspect: `aspect` in words and `picture`, an address."""
    shown = small(image)
    return [{"aspect": a.replace("_", " "), "picture": data_address(overlay(shown, m))} for a, m in maps.items()]


@dataclass(frozen=True)
class PageEntry:
    """What the page of `masp predict` shows of one image."""

    name: str
    picture: str
    """The image, as a data address."""
    prediction: str
    probabilities: dict[str, float]
    """Category -> probability."""
    aspects: list[dict[str, str]]
    """See `aspect_pictures`."""


def page_entry(
    name: str, image: Image.Image, prediction: str, probabilities: dict[str, float], maps: Mapping[str, np.ndarray]
) -> PageEntry:
    """What the page shows of one image; `maps` holds the attention of each aspect, see `overlay`."""
    return PageEntry(name, data_address(small(image)), prediction, probabilities, aspect_pictures(image, maps))


def write_page(path: str | Path, entries: Sequence[PageEntry]) -> Path:
    """Write a page that shows, per image and aspect, where it looked; it opens anywhere, without a network.

    Args:
        path: HTML file; its directory is made if it is missing.
        entries: One per image.

    Raises:
        InputError: it cannot be written.
    """
    path = Path(path)
    html = environment().get_template("attention.html.j2").render({"entries": list(entries)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, html.encode("utf-8", errors="backslashreplace"))
    except OSError as error:
        raise InputError(f"--attention {path}: cannot be written: {error.strerror}") from None
    return path


NUM_LOOKS = 6
"""Pictures that are shown with the attention of every aspect."""


def looks(evaluate_dir: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Where the aspects look in some pictures: half of them mistakes, evenly over the split.

    Returns:
        Per picture `name`, `label`, `prediction`, `picture` and `aspects`; empty without maps or pictures.
    """
    path, root = evaluate_dir / FILE, (config.get("dataset") or {}).get("root")
    if not path.is_file() or not isinstance(root, str):
        return []
    try:
        records = read_records_file(path)
        if not records.aspects:
            return []
        triples = list(zip(records.keys, records.labels, records.predictions, strict=True))
        wrong = _spread([t for t in triples if t[1] != t[2]], NUM_LOOKS // 2)
        chosen = wrong + _spread([t for t in triples if t[1] == t[2]], NUM_LOOKS - len(wrong))
        maps = read_maps(path, [key for key, *_ in chosen])
    except MaspError:
        return []
    max_side = (config.get("vlm") or {}).get("max_side")
    entries = []
    for key, label, prediction in chosen:
        name, file = image_of(key, Path(root))
        if file is None:
            continue
        try:
            image = load_image(file, max_side if isinstance(max_side, int) else None)
        except (UnreadableImage, OSError):
            continue
        entries.append(
            {
                "name": name,
                "label": label,
                "prediction": prediction,
                "picture": data_address(small(image)),
                "aspects": aspect_pictures(image, maps[key]),
            }
        )
    return entries


def _spread(entries: list, count: int) -> list:
    """Up to `count` entries, evenly from the first to the last."""
    if len(entries) <= count:
        return entries
    return [entries[(2 * i + 1) * len(entries) // (2 * count)] for i in range(count)]
