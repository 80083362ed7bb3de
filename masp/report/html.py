"""What every part of the report uses: numbers, percentages and images as text of an HTML page."""

from __future__ import annotations

import base64
import io
import math
import unicodedata
from typing import Any

import jinja2
from PIL import Image

SIDE = 360
"""Longer side of an image on a page, in pixels."""


def environment() -> jinja2.Environment:
    """What renders our pages: every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("masp.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "number": _number, "signed": signed, "shown": _shown}
    return environment


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{share:.{digits}%}".replace("%", "\N{NARROW NO-BREAK SPACE}%")


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def signed(value: float) -> str:
    """A difference with its sign and two digits; what rounds to zero has no sign."""
    text = f"{value:+.2f}"
    return text[1:] if float(text) == 0 else text


def _shown(text: Any) -> str:
    """Text with control and direction-changing characters spelled out, so that a name cannot disguise itself."""
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs")
        else character.encode("unicode_escape", "backslashreplace").decode("ascii")
        for character in str(text)
    )


def data_address(image: Image.Image) -> str:
    """An image as an address that holds it."""
    with io.BytesIO() as file:
        image.save(file, format="JPEG", quality=82)
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def small(image: Image.Image, side: int = SIDE) -> Image.Image:
    """A copy with its longer side at most `side`."""
    copy = image.copy()
    copy.thumbnail((side, side))
    return copy
