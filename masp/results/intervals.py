"""Confidence intervals and percentiles."""

import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054


def wilson_interval(num_correct: int, num_samples: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson's score interval, right for few samples and near 0 and 1 too)."""
    share, squared = num_correct / num_samples, Z95**2 / num_samples
    centre = (share + squared / 2) / (1 + squared)
    half = Z95 * math.sqrt(share * (1 - share) / num_samples + squared / (4 * num_samples)) / (1 + squared)
    # rounding must not put the share itself outside, where it is 0 or 1
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def percentiles(values: np.ndarray | Sequence[float]) -> list[float]:
    """The 95 % interval of resampled values."""
    return [float(value) for value in np.percentile(values, (2.5, 97.5))]
