"""What an accuracy is worth: of which samples it is, what a guess would give, and where it comes from.

Pure functions; `masp.evaluation` feeds them, `metrics.json` holds what they return.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from masp.files.fields import SplitOf
from masp.results.metrics import Count, Share, wilson_interval

SMALL_GROUP = 30
"""A group of fewer samples is marked: its accuracy says little."""

MAX_VALUES = 100
"""Most values of an aspect whose accuracy is kept, those with the most samples."""


@dataclass(frozen=True)
class SplitCounts:
    """The images of a split, and those of them that were not scored."""

    num_scored: int
    """Images that the evaluation scores."""
    num_quarantined: int = 0
    """Images that extraction could not read."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Category that `evaluate.category_map` leaves out -> its images."""

    @property
    def num_left_out(self) -> int:
        """Images of all categories that are left out."""
        return sum(self.left_out.values())

    @property
    def num_in_split(self) -> int:
        """All images of the split."""
        return self.num_scored + self.num_quarantined + self.num_left_out

    def to_json(self) -> dict[str, Any]:
        """The counts as `metrics.json` spells them."""
        return {
            "num_in_split": self.num_in_split,
            "num_quarantined": self.num_quarantined,
            "num_left_out": self.num_left_out,
            "left_out": dict(self.left_out),
        }

    def shares(self, num_scored: int, num_correct: int, per_image: int = 1) -> dict[str, Any]:
        """Coverage, and accuracy with what was not scored counted as wrong, as `metrics.json` spells them.

        Args:
            num_scored: Samples that were scored: images, or answers about them.
            num_correct: Those of them that are right.
            per_image: Samples that an image which was not scored stands for.
        """
        total = num_scored + per_image * (self.num_quarantined + self.num_left_out)
        return {
            "coverage": num_scored / total,
            "accuracy_of_split": num_correct / total,
            "accuracy_of_split_ci95": wilson_interval(num_correct, total),
        }


@dataclass(frozen=True)
class MajorityClass:
    """What always answering the largest category would give."""

    category: str
    split: SplitOf
    """The split that it is the largest of."""
    share: Share
    """Of that split."""
    accuracy: Share
    """On what was evaluated."""
    accuracy_ci95: tuple[Share, Share]


def majority_class(
    counts: Mapping[str, int], split: str, labels: Mapping[str, int], categories: Sequence[str]
) -> MajorityClass:
    """The accuracy of always answering one category.

    Args:
        counts: Category -> images of the split that decides which category that is; not empty.
        split: Name of that split.
        labels: Category -> samples that were evaluated.
        categories: Categories in order; the first of equally large ones is taken.
    """
    largest = max((c for c in categories if c in counts), key=lambda category: counts[category])
    right, total = labels.get(largest, 0), sum(labels.values())
    return MajorityClass(
        largest, split, counts[largest] / sum(counts.values()), right / total, wilson_interval(right, total)
    )


def few_predicted(num_predicted: Mapping[str, int], support: Mapping[str, int]) -> str | None:
    """A remark on a model that never predicts some of the categories that occur; None if there are none.

    Args:
        num_predicted: Category -> how often it was predicted.
        support: Category -> how often it is right.
    """
    occurring = [category for category, count in support.items() if count]
    predicted = [category for category, count in num_predicted.items() if count]
    never = [category for category in occurring if not num_predicted.get(category)]
    if not never:
        return None
    if not predicted:
        return "it never predicts any category"
    if len(predicted) == 1:
        return f"it never predicts any category but {predicted[0]!r}"
    shown = ", ".join(repr(category) for category in never[:3]) + (", …" if len(never) > 3 else "")
    return f"it never predicts {len(never)} of {len(occurring)} categories ({shown})"


@dataclass(frozen=True)
class GroupAccuracy:
    """The accuracy on the samples that have one value of an aspect."""

    num_samples: Count
    num_correct: Count
    accuracy: Share
    accuracy_ci95: tuple[Share, Share]
    """Wilson's interval."""
    is_small: bool
    """Whether there are fewer than `SMALL_GROUP` samples."""


class ValueGroups:
    """Counts the samples and the right ones per value of every aspect.

    Args:
        aspects: Aspects in order.
        lists: Those of them whose answer lists several values, joined with ", "; a sample counts for each.
    """

    def __init__(self, aspects: Iterable[str], lists: Iterable[str] = ()):
        self.counts: dict[str, dict[str, list[int]]] = {aspect: {} for aspect in aspects}
        self.lists = frozenset(lists)

    def add(self, aspect: str, answers: Sequence[str], numbers: np.ndarray, is_correct: np.ndarray) -> None:
        """Count samples by their answer to an aspect.

        Args:
            aspect: The aspect; one that is not counted is passed over.
            answers: Different answers.
            numbers: `[N]`, which of them each sample is annotated with; -1 for none.
            is_correct: `[N]` bool, whether the target of each was predicted right.
        """
        if (found := self.counts.get(aspect)) is None:
            return
        totals = np.bincount(numbers[numbers >= 0], minlength=len(answers)).tolist()
        right = np.bincount(numbers[(numbers >= 0) & is_correct], minlength=len(answers)).tolist()
        for answer, num_samples, num_correct in zip(answers, totals, right, strict=True):
            if not num_samples:
                continue
            for value in dict.fromkeys(answer.split(", ")) if aspect in self.lists else (answer,):
                pair = found.setdefault(value, [0, 0])
                pair[0] += num_samples
                pair[1] += num_correct

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Aspect -> value -> `GroupAccuracy` as `metrics.json` spells it, the largest group first; at most `MAX_VALUES`
        of an aspect, and no aspect without any."""
        result = {}
        for aspect, found in self.counts.items():
            largest = sorted(found.items(), key=lambda entry: (-entry[1][0], entry[0]))[:MAX_VALUES]
            if largest:
                result[aspect] = {value: asdict(_group(total, right)) for value, (total, right) in largest}
        return result

    def num_values(self) -> dict[str, int]:
        """Aspect -> how many different values it has."""
        return {aspect: len(found) for aspect, found in self.counts.items() if found}


def _group(total: int, right: int) -> GroupAccuracy:
    return GroupAccuracy(total, right, right / total, wilson_interval(right, total), total < SMALL_GROUP)
