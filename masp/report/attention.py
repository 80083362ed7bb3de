"""Where aspects look, as images: each aspect's attention laid over the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import matplotlib
import numpy as np
from PIL import Image

from masp.data.images import UnreadableImage, load_image
from masp.errors import InputError, MaspError
from masp.files.atomic import write_bytes
from masp.files.text import reason
from masp.report.html import data_address, environment, small
from masp.report.images import Images
from masp.report.run_config import RunConfig
from masp.results.records import FILE, read_maps, read_records_file

T = TypeVar("T")

_COLORS = "inferno"

_STRENGTH = 0.85
"""How much of the image the brightest place hides."""


def overlay(image: Image.Image, weights: np.ndarray) -> Image.Image:
    """Lay an attention map over an image.

    Args:
        image: RGB image, of any size, that the features were made from.
        weights: Attention, `[height, width]` over its vision tokens; the largest becomes the brightest.

    Returns:
        The image in gray, with bright places where the aspect looks; of the same size.
    """
    heat = Image.fromarray((weights / weights.max()).astype("f4"), mode="F")
    heat = np.clip(np.asarray(heat.resize(image.size, Image.Resampling.BICUBIC)), 0, 1)
    colors = matplotlib.colormaps[_COLORS](heat)[..., :3] * 255
    gray = np.asarray(image.convert("L"), dtype="f4")[..., None]
    mixed = gray * (1 - _STRENGTH * heat[..., None]) + colors * (_STRENGTH * heat[..., None])
    return Image.fromarray(np.clip(mixed, 0, 255).astype("u1"))


@dataclass(frozen=True)
class AspectImage:
    """Where one aspect looks."""

    aspect: str
    """In words."""
    image: str
    """The image with the attention laid over it, as a data address."""


def aspect_images(image: Image.Image, maps: Mapping[str, np.ndarray]) -> tuple[AspectImage, ...]:
    """The overlay of each aspect."""
    shown = small(image)
    return tuple(AspectImage(a.replace("_", " "), data_address(overlay(shown, m))) for a, m in maps.items())


@dataclass(frozen=True)
class PageEntry:
    """What the page of `masp predict` shows of one image."""

    name: str
    image: str
    """The image, as a data address."""
    prediction: str
    probabilities: dict[str, float]
    """Category -> probability."""
    aspects: tuple[AspectImage, ...]


def page_entry(
    name: str, image: Image.Image, prediction: str, probabilities: dict[str, float], maps: Mapping[str, np.ndarray]
) -> PageEntry:
    """What the page shows of one image; `maps` holds the attention of each aspect, see `overlay`."""
    return PageEntry(name, data_address(small(image)), prediction, probabilities, aspect_images(image, maps))


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
        raise InputError(f"--attention {path}: cannot be written: {reason(error)}") from None
    return path


NUM_ATTENDED = 6
"""Images that the report shows with the attention of every aspect."""


@dataclass(frozen=True)
class Attended:
    """Where the aspects look in one image of the report."""

    name: str
    label: str
    prediction: str | None
    image: str
    """The image, as a data address."""
    aspects: tuple[AspectImage, ...]


def attended_images(evaluate_dir: Path, config: RunConfig) -> list[Attended]:
    """Where the aspects look in some images: half of them mistakes, evenly over the split.

    Returns:
        One per image; empty without maps or images.
    """
    path, images = evaluate_dir / FILE, Images(config)
    if images.root is None:
        return []
    try:
        records = read_records_file(path)
        if not records.aspects:
            return []
        right = records.is_right
        wrong = spread(np.flatnonzero(~right).tolist(), NUM_ATTENDED // 2)
        rows = wrong + spread(np.flatnonzero(right).tolist(), NUM_ATTENDED - len(wrong))
        chosen = [records.outcome(row) for row in rows]
        maps = read_maps(path, records, [key for key, *_ in chosen])
    except MaspError:  # no records, or damaged ones, which `masp compare` names
        return []
    entries = []
    for key, label, prediction in chosen:
        name, file = images.find(key)
        if file is None:
            continue
        try:
            image = load_image(file, config.max_side, transparency=config.transparency)
        except (UnreadableImage, OSError):
            continue
        entries.append(Attended(name, label, prediction, data_address(small(image)), aspect_images(image, maps[key])))
    return entries


def spread(entries: list[T], count: int) -> list[T]:
    """Up to `count` entries, evenly from the first to the last."""
    if len(entries) <= count:
        return entries
    return [entries[(2 * i + 1) * len(entries) // (2 * count)] for i in range(count)]
