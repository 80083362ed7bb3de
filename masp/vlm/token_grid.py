"""Where in an image its tokens lie, for maps of where the aspect modules look."""

from __future__ import annotations

import math

from masp.config.schema import VlmConfig
from masp.errors import InputError
from masp.vlm.features import ImageLayout
from masp.vlm.vision import load_preprocessor

NO_TOKEN_GRID = "the tokens that this VLM makes of an image form no grid of its own, so there is no map of them"
_TRIED = (640, 427)


def token_grid(layout: ImageLayout) -> tuple[int, int] | None:
    """Rows and columns in which the tokens of an image lie; None where they form no grid that is known."""
    if layout.grid is None:
        return None
    t, h, w = layout.grid
    side = math.isqrt(t * h * w // layout.num_tokens)  # patches per side that are merged into one token
    if not side or h % side or w % side or t * h * w != side * side * layout.num_tokens:
        return None
    return t * h // side, w // side


def check_token_grid(vlm: VlmConfig, setting: str) -> None:
    """Refuse a VLM of which no map can be made, before anything large is loaded.

    Args:
        vlm: The VLM.
        setting: What asks for maps, for the message.

    Raises:
        InputError: The tokens of an image form no grid that is known.
    """
    preprocessor = load_preprocessor(vlm.path, vlm.min_pixels, vlm.max_pixels)
    if token_grid(preprocessor.layout(*_TRIED)) is None:
        raise InputError(f"{setting}: {NO_TOKEN_GRID}")
