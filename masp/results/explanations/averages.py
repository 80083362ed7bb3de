"""What aspects did for predictions on average, with 95 % bootstrap intervals over images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from masp.config.aspects import VISION_FEATURES
from masp.results.explanations.explanation import Explanation
from masp.results.intervals import mean_interval
from masp.results.metrics import Count

MIN_FOR_INTERVAL = 2
"""Images from which on a mean has an interval."""


@dataclass(frozen=True)
class Mean:
    """A mean over images, nats."""

    mean: float
    ci95: tuple[float, float] | None
    """95 % bootstrap interval over images; None of one image."""

    def __post_init__(self) -> None:
        if self.ci95 is not None and self.ci95[0] > self.ci95[1]:
            raise ValueError("must have an interval whose ends are in order")


@dataclass(frozen=True)
class Means:
    """Mean contributions over some images; None where a part has none."""

    num_images: Count
    aspects: Mapping[str, Mean | None]
    """Aspect -> what it did."""
    all_aspects: Mean | None
    vision_features: Mean | None
    interaction: Mean | None

    def parts(self, aspects: Sequence[str]) -> list[tuple[str, Mean | None]]:
        """Name and mean of every part: the aspects in a given order, then what is left out together."""
        of_aspects = [(aspect, self.aspects[aspect]) for aspect in aspects]
        return [*of_aspects, *((name, getattr(self, name)) for name in ("all_aspects", "interaction", VISION_FEATURES))]


@dataclass(frozen=True)
class Averages:
    """What the parts of a prompt did for predictions, on average."""

    signed: Means
    """Mean contributions to the predicted category, over all explained images."""
    absolute: Means
    """Means of their absolute values: how much a part matters, whether for or against."""
    by_prediction: Mapping[str, Means]
    """Category -> mean contributions over the images that were predicted as it."""
    by_label: Mapping[str, Means]
    """Category -> mean contributions, to the predicted category, over the images that are of it."""


def averages_of(
    explanations: Sequence[Explanation],
    labels: Sequence[str],
    aspects: Sequence[str],
    categories: Sequence[str],
    seed: int = 0,
) -> Averages:
    """Average explanations.

    Args:
        explanations: One per image.
        labels: The right category of each.
        aspects: Aspects in the order of the prompt.
        categories: Categories; those without an image have means of no images.
        seed: Seed of the resamples.
    """
    values = np.array([_values(found) for found in explanations], dtype=np.float64).reshape(len(explanations), -1)
    predicted, right = np.array([found.category for found in explanations]), np.array(labels)

    def means(of: np.ndarray) -> Means:
        found = [_mean(column, seed) for column in of.T] if len(of) else [None] * (len(aspects) + 3)
        return Means(len(of), dict(zip(aspects, found[:-3], strict=True)), *found[-3:])

    return Averages(
        signed=means(values),
        absolute=means(np.abs(values)),
        by_prediction={category: means(values[predicted == category]) for category in categories},
        by_label={category: means(values[right == category]) for category in categories},
    )


def _values(found: Explanation) -> list[float]:
    """The contributions in the order of `Means`; NaN where there is none."""
    values = [*(aspect.contribution for aspect in found.aspects), found.all_aspects, found.vision_features]
    return [float("nan") if value is None else value for value in [*values, found.interaction]]


def _mean(values: np.ndarray, seed: int) -> Mean | None:
    """Of one part, which all images have or none."""
    if np.isnan(values).any():
        return None
    interval = mean_interval(values, seed) if len(values) >= MIN_FOR_INTERVAL else None
    return Mean(float(values.mean()), interval)
