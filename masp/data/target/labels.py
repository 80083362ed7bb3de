"""The labels of images as a run's target has them, instead of those that their dataset gives."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from masp.data.findings import DatasetRecord, Finding, Holdings, coverage_findings
from masp.data.sample import Label, Samples

NONE = -1
"""The number that stands for no category."""


@dataclass(frozen=True)
class Labels:
    """The labels of some images, in their order. `N` images, `C` categories."""

    categories: tuple[str, ...]
    """In the order in which questions list them."""
    category: np.ndarray
    """`[N]` int32, into `categories`; `NONE` for an image without a label, which nobody trains on or scores."""
    distribution: np.ndarray | None = None
    """`[N, C]` fp64: probability of each category, zeros where an image has none; None if no image has one."""
    findings: tuple[Finding, ...] = ()
    """What the user should know: how many images have no label, which labels are of no image."""

    def take(self, rows: np.ndarray) -> Labels:
        """Those of some images, in the given order."""
        distribution = None if self.distribution is None else self.distribution[rows]
        return replace(self, category=self.category[rows], distribution=distribution)

    def name(self, row: int) -> str:
        """The category of an image; empty if it has none."""
        number = int(self.category[row])
        return "" if number == NONE else self.categories[number]

    def shares(self, row: int) -> tuple[float, ...] | None:
        """The distribution of an image over the categories; None if it has none."""
        if self.distribution is None or not self.distribution[row].any():
            return None
        return tuple(self.distribution[row].tolist())

    def digest(self, keys: Sequence[str]) -> str:
        """SHA-256 of the categories and of which image has which, whatever the order of the images.

        Args:
            keys: Sample key of each image.
        """
        digest = hashlib.sha256("\n".join(self.categories).encode())
        numbers = self.category.tolist()
        for key, number in sorted(pair for pair in zip(keys, numbers, strict=True) if pair[1] != NONE):
            digest.update(f"\n{key} {number}".encode())
        return digest.hexdigest()

    def record(self, record: DatasetRecord, splits: Sequence[str], split: np.ndarray) -> DatasetRecord:
        """What is known of the dataset, with its images counted by these labels.

        Args:
            record: What is known of the dataset.
            splits: Names of the splits.
            split: `[N]` the split of each image, into `splits`.
        """
        counts = {}
        for number, name in enumerate(splits):
            found = self.category[(split == number) & (self.category != NONE)]
            count = np.bincount(found, minlength=len(self.categories)).tolist()
            counts[name] = {c: n for c, n in sorted(zip(self.categories, count, strict=True)) if n}
        kept = {name: record.holdings.aspects.get(name, {}) for name in counts}
        holdings = Holdings(counts, kept)
        return replace(
            record, holdings=holdings, findings=relabeled_findings(record.findings, holdings, self.categories)
        )


def relabeled_findings(
    findings: Sequence[Finding], holdings: Holdings, categories: Sequence[str]
) -> tuple[Finding, ...]:
    """What is to be known about a dataset whose images have other labels now.

    Args:
        findings: What is to be known of it with its own labels.
        holdings: How many images have which of the other labels.
        categories: Categories of the other labels.
    """
    others = [each for each in findings if each.kind not in ("categories", "labels")]
    own = [each for each in coverage_findings(holdings, categories, ()) if each.kind == "categories"]
    return (*others, *own)


def relabeled(samples: Samples, labels: Labels) -> Samples:
    """The same images in the same order with other labels; one without a label has the category "".

    Args:
        samples: The images.
        labels: Their labels, in their order.
    """
    part = samples.table.part(samples.rows)
    width = len(labels.categories) + 1
    codes = part.label.astype(np.int64) * width + labels.category + 1
    kinds, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    numbers: dict[Label, int] = {}  # labels that differed in their category alone may be one now
    found = []
    for code, row in zip(kinds.tolist(), first.tolist(), strict=True):
        now = replace(part.labels[code // width], category=labels.name(row), distribution=labels.shares(row))
        found.append(numbers.setdefault(now, len(numbers)))
    table = replace(part, label=np.array(found, dtype=np.int32)[inverse], labels=list(numbers))
    return Samples(table, np.arange(len(samples)))
