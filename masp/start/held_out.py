"""How many images to hold out of training where a dataset has no validation or test split, and what that allows to say.

The accuracy is measured on the test images alone, so how precisely it is known depends on their number and not on that
of the dataset: a tenth of 200 images would leave an interval of ±0.20. The validation images only choose among the
states of one run, by a loss that all of them have on the same images, which takes fewer.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from masp.results.metrics import wilson_interval


@dataclass(frozen=True)
class _Share:
    wanted: int
    """Images that are enough."""
    most: float
    """Fraction of the images that are at most given for them."""


_LEAST = 0.1
"""Fraction that is always held out."""
_SHARES = {"val": _Share(100, 0.15), "test": _Share(200, 0.3)}


def fractions(num_images: int, lacking: Collection[str]) -> dict[str, float | str]:
    """How to divide images: 10 % for each split, or more, until it has enough of them or its largest part of the whole.

    Args:
        num_images: Images that are to be divided.
        lacking: Which of `val` and `test` they are to give.

    Returns:
        Split -> fraction, in hundredths, as `dataset.split` has it.
    """
    parts = {}
    for split, share in _SHARES.items():
        if split in lacking:
            hundredths = math.ceil(100 * share.wanted / num_images)
            parts[split] = min(share.most, max(_LEAST, hundredths / 100))
    return {"train": round(1 - sum(parts.values()), 2), **parts}


def precision(num_images: int) -> float:
    """Half the width of the 95 % interval of an accuracy near one half, where it is widest, measured on some images."""
    low, high = wilson_interval(num_images // 2, num_images)
    return (high - low) / 2
