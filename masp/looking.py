"""Where aspects look, as pictures: each aspect's attention laid over the image."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masp.files.atomic import write_bytes
from masp.files.text import reason

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

SIDE = 360
"""Longer side of a picture on a page, in pixels."""
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
    import matplotlib
    import numpy as np
    from PIL import Image

    heat = Image.fromarray((weights / weights.max()).astype("f4"), mode="F")
    heat = np.clip(np.asarray(heat.resize(image.size, Image.Resampling.BICUBIC)), 0, 1)
    colours = matplotlib.colormaps[_COLOURS](heat)[..., :3] * 255
    grey = np.asarray(image.convert("L"), dtype="f4")[..., None]
    mixed = grey * (1 - _STRENGTH * heat[..., None]) + colours * (_STRENGTH * heat[..., None])
    return Image.fromarray(np.clip(mixed, 0, 255).astype("u1"))


def data_address(image: Image.Image) -> str:
    """A picture as an address that holds it."""
    with io.BytesIO() as file:
        image.save(file, format="JPEG", quality=82)
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def small(image: Image.Image, side: int = SIDE) -> Image.Image:
    """A copy with its longer side at most `side`."""
    copy = image.copy()
    copy.thumbnail((side, side))
    return copy


def aspect_pictures(image: Image.Image, maps: Mapping[str, np.ndarray]) -> list[dict[str, str]]:
    """The picture of each aspect: `aspect` in words and `picture`, an address."""
    shown = small(image)
    return [{"aspect": a.replace("_", " "), "picture": data_address(overlay(shown, m))} for a, m in maps.items()]


def write_page(path: str | Path, entries: Sequence[Mapping[str, Any]]) -> Path:
    """Write a page that shows, per picture and aspect, where it looked; it opens anywhere, without a network.

    Args:
        path: the HTML file; its folder is made if it is missing.
        entries: of each picture `name`, `picture` (an address), `prediction`, `probabilities` (category -> share) and
            `aspects`, see `aspect_pictures`.

    Raises:
        InputError: it cannot be written.
    """
    from masp.errors import InputError
    from masp.report import environment

    path = Path(path)
    html = environment().get_template("looking.html.j2").render({"entries": list(entries)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, html.encode("utf-8", errors="backslashreplace"))
    except OSError as error:
        raise InputError(f"--attention {path}: cannot be written: {reason(error)}") from None
    return path
