"""Random changes of an image, drawn from (seed, epoch, sample key): no rank, worker or point of resumption matters."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from PIL import Image

from masp.config.schema import Augmentation

MIN_AREA = 0.5
"""Least part of an image's area that a crop keeps; the most is all of it."""
MAX_RATIO = 4 / 3
"""Largest ratio between the shape of a crop and that of the image, in either direction."""
_BITS = 48


@dataclass(frozen=True)
class Change:
    """What happens to one image in one epoch; call it with the image, which keeps its size.

    Every image keeps its number of vision tokens, so that micro-batches are cut as without a change.
    """

    kind: Augmentation
    seed: int
    epoch: int
    key: str
    """Sample key."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """The changed image, of the same size."""
        if self.kind == "flip":
            is_flipped = self._numbers()[0] < 0.5
            return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if is_flipped else image
        if self.kind == "crop":
            return image.resize(image.size, Image.Resampling.LANCZOS, box=self._box(*image.size))
        return image

    def _box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of a crop, in pixels and parts of pixels."""
        area, shape, across, down = self._numbers()
        kept = MIN_AREA + (1 - MIN_AREA) * area
        bound = min(math.log(MAX_RATIO), -math.log(kept))  # beyond, a side would be longer than the image's
        stretch = math.exp(bound * (2 * shape - 1) / 2)
        wide, high = min(1.0, math.sqrt(kept) * stretch) * width, min(1.0, math.sqrt(kept) / stretch) * height
        left, top = across * (width - wide), down * (height - high)
        return left, top, min(width, left + wide), min(height, top + high)

    def _numbers(self) -> tuple[float, float, float, float]:
        """Four numbers from 0 to below 1."""
        digest = hashlib.sha256(f"augment {self.kind} {self.seed} {self.epoch} {self.key}".encode()).digest()
        parts = (int.from_bytes(digest[start : start + _BITS // 8], "big") for start in (0, 8, 16, 24))
        one, two, three, four = (part / (1 << _BITS) for part in parts)
        return one, two, three, four
