"""Positions of an image's tokens, by the VLM's own rule."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import nn

from masp.vlm.families import inner_class, model_class
from masp.vlm.features import Grid


class ImagePositions:
    """Rotary positions of the tokens of an image that begins at position 0.

    Args:
        config: Configuration of the VLM, of `load_config`.
    """

    def __init__(self, config: Any):
        inner = inner_class(model_class(config))
        self._inner: Any = None
        if hasattr(inner, "get_rope_index"):
            self._inner = inner.__new__(inner)  # without weights: the rule only asks for the configuration
            nn.Module.__init__(self._inner)
            self._inner.config = config

    @property
    def has_grid(self) -> bool:
        """Whether positions follow the grid of an image in time, height and width (M-RoPE)."""
        return self._inner is not None

    @functools.lru_cache(maxsize=16384)  # noqa: B019 - lives as long as its process
    def __call__(self, num_tokens: int, grid: Grid | None) -> tuple[np.ndarray, int]:
        """Positions `[3, T]` of an image's tokens, int64, and that of the word behind them."""
        if self._inner is None or grid is None:
            return np.broadcast_to(np.arange(num_tokens), (3, num_tokens)), num_tokens
        # an image, and one word behind it
        types = torch.ones(1, num_tokens + 1, dtype=torch.long)
        types[0, -1] = 0
        found, _ = self._inner.get_rope_index(
            torch.zeros_like(types), types, image_grid_thw=torch.tensor([grid]), attention_mask=torch.ones_like(types)
        )
        positions = found[-3:, 0].numpy()  # some put the place in the text before the three
        return positions[:, :-1], int(positions[0, -1])
