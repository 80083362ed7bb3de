"""What the vision half makes of one image, and the language half takes in place of words."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Grid = tuple[int, int, int]
"""Patches of an image in time, height and width, before the merge."""
Runs = tuple[tuple[int, int], ...]
"""Token ids, each with the number of times that it follows itself."""


@dataclass(frozen=True)
class Features:
    """The features of one image: what its placeholders stand for."""

    tokens: Tensor
    """`[T, D]`, what the language model gets at its input."""
    deep: Tensor | None = None
    """`[K, T, D]`, for VLMs with DeepStack: what is added inside the language model, one map per layer."""

    def moved(self, move: Callable[[Tensor], Tensor]) -> Features:
        """The features with each tensor put through `move`."""
        return Features(move(self.tokens), None if self.deep is None else move(self.deep))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors that there are."""
        return (self.tokens,) if self.deep is None else (self.tokens, self.deep)


@dataclass(frozen=True)
class ImageLayout:
    """How an image lies in the prompt, beside its features."""

    num_tokens: int
    """T."""
    grid: Grid | None = None
    """None for VLMs that do not count positions by a grid."""
    block: Runs | None = None
    """What the processor writes for the image: placeholders, and tokens before, between and behind them; None for `T`
    placeholders alone."""


def token_grid(layout: ImageLayout, is_square: bool = False) -> tuple[int, int] | None:
    """Rows and columns in which the tokens of an image lie; None where they form no grid that is known.

    Args:
        layout: How the image lies in a prompt.
        is_square: Whether tokens without a grid of their own are the rows of one square into which the whole image was
            stretched.
    """
    if layout.grid is None:
        side = math.isqrt(layout.num_tokens)
        return (side, side) if is_square and side and side * side == layout.num_tokens else None
    t, h, w = layout.grid
    side = math.isqrt(t * h * w // layout.num_tokens)  # patches per side that are merged into one token
    if not side or h % side or w % side or t * h * w != side * side * layout.num_tokens:
        return None
    return t * h // side, w // side
