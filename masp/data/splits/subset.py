"""Which images of the training split a run learns from, where it is not all of them: `dataset.fraction` or `shots`.

In each category the images have an order, by a hash of their keys and of `dataset.subset_seed`, and the first of them
are taken. So a smaller subset is contained in a larger one, whatever the machine and the order of the files; images
that are added later come in between, and never change which of two others is first.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from masp.config.schema import Config, DatasetConfig
from masp.data.findings import DatasetRecord, Finding
from masp.data.sample import Samples
from masp.files.text import shortened

NAME = "dataset.subset"
"""Key of what an artifact's lineage says about the images."""
_MAX_NAMED = 5


@dataclass(frozen=True)
class Subset:
    """The images of the training split that a run learns from. `N` images of all splits."""

    setting: str
    """`dataset.fraction` or `dataset.shots`."""
    value: float
    seed: int
    """`dataset.subset_seed`."""
    is_in: np.ndarray
    """`[N]` bool: which are taken; of other splits none."""
    num_images: int
    num_in_split: int
    """Training images with a label."""
    min_per_category: int
    """Images of the category that has the fewest."""
    digest: str
    """SHA-256 of the keys that are taken."""
    short: tuple[tuple[str, int], ...] = ()
    """Categories with fewer images than `dataset.shots`, and how many they have."""

    @property
    def text(self) -> str:
        """How many images of how many, and why."""
        return described(self.identity())

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the user should know."""
        found = (Finding("subset", f"training takes {self.text}", self.num_images),)
        if not self.short:
            return found
        names = [f"{shortened(name)} ({count:,})" for name, count in self.short[:_MAX_NAMED]]
        names += ["…"] if len(self.short) > _MAX_NAMED else []
        has = "1 category has" if len(self.short) == 1 else f"{len(self.short)} categories have"
        text = f"{has} fewer training images than {self.setting} = {self.value:g}, and all are taken: "
        return (*found, Finding("subset", text + ", ".join(names), len(self.short)))

    def record(self, record: DatasetRecord) -> DatasetRecord:
        """What is known of a dataset, and that a run learns from a subset of it."""
        return replace(record, findings=(*record.findings, *self.findings))

    def identity(self) -> dict[str, Any]:
        """What of it decides the course of training, for the identity of a run and the lineage of its artifact."""
        counts = {name: getattr(self, name) for name in ("num_images", "num_in_split", "min_per_category")}
        return {
            self.setting: self.value,
            "dataset.subset_seed": self.seed,
            NAME: {**counts, "digest": self.digest},
        }


def described(settings: dict[str, Any]) -> str:
    """How many images of how many, and why, from the settings in an artifact's lineage; empty where all are taken."""
    counts = settings.get(NAME)
    if not isinstance(counts, dict):  # a file may say anything
        return ""
    num_images, num_in_split, least = (
        f"{count:,}" if type(count := counts.get(name)) is int else "?"
        for name in ("num_images", "num_in_split", "min_per_category")
    )
    names = ("dataset.fraction", "dataset.shots", "dataset.subset_seed")
    given = [f"{name} = {shortened(str(settings[name]))}" for name in names if settings.get(name)]
    return f"{num_images} of {num_in_split} training images, {least} or more per category ({', '.join(given)})"


def has_subset(settings: DatasetConfig) -> bool:
    """Whether a run learns from less than all training images."""
    return settings.shots is not None or settings.fraction not in (None, 1)


def subset_settings(config: Config) -> tuple[Any, ...]:
    """The settings that decide which training images a run learns from; none where it learns from all."""
    settings, target = config.dataset, config.target
    if not has_subset(settings):
        return ()
    return settings.fraction, settings.shots, settings.subset_seed, target.labels, target.categories


def choose_subset(
    settings: DatasetConfig,
    keys: Sequence[str],
    categories: Sequence[str],
    category: np.ndarray,
    is_train: np.ndarray,
) -> Subset | None:
    """The subset that a run learns from; None where that is all training images.

    Args:
        settings: Settings of the dataset.
        keys: Sample keys of `N` images.
        categories: Names of the categories of the target.
        category: `[N]` integers, into `categories`; negative for an image without a label, which is not taken.
        is_train: `[N]` bool: which are of the training split.
    """
    if not has_subset(settings):
        return None
    of_category: dict[int, list[tuple[bytes, int]]] = {}
    for row in np.flatnonzero(is_train & (category >= 0)).tolist():
        of_category.setdefault(int(category[row]), []).append((_hash(settings.subset_seed, keys[row]), row))
    taken: list[int] = []
    counts, short = [], []
    for number, images in sorted(of_category.items()):
        count = _count(settings, len(images))
        counts.append(count)
        taken += [row for _, row in sorted(images)[:count]]
        if settings.shots is not None and count < settings.shots:
            short.append((categories[number], count))
    is_in = np.zeros(len(keys), dtype=bool)
    is_in[taken] = True
    name, value = ("shots", settings.shots) if settings.shots is not None else ("fraction", settings.fraction)
    assert value is not None
    return Subset(
        f"dataset.{name}",
        value,
        settings.subset_seed,
        is_in,
        num_images=len(taken),
        num_in_split=sum(map(len, of_category.values())),
        min_per_category=min(counts, default=0),
        digest=hashlib.sha256("\n".join(sorted(keys[row] for row in taken)).encode()).hexdigest(),
        short=tuple(short),
    )


def subset_of(settings: DatasetConfig, samples: Samples) -> Subset | None:
    """As `choose_subset`, of samples with the labels of the target; one without a label has the category ""."""
    if not has_subset(settings):
        return None
    labels = samples.table.labels
    names = sorted({label.category for label in labels} - {""})
    number = {name: place for place, name in enumerate(names)}
    category = np.array([number.get(label.category, -1) for label in labels], dtype=np.int64)
    of_rows = category[samples.table.label[samples.rows]]
    return choose_subset(settings, samples.keys, names, of_rows, samples.is_in("train"))


def seen_samples(settings: DatasetConfig, samples: Samples) -> Samples:
    """Samples of all splits, without the training images that training does not see."""
    subset = subset_of(settings, samples)
    return samples if subset is None else samples[subset.is_in | ~samples.is_in("train")]


def _count(settings: DatasetConfig, size: int) -> int:
    """How many images of a category are taken: the nearest whole number, and at least one."""
    if settings.shots is not None:
        return min(settings.shots, size)
    assert settings.fraction is not None
    return min(size, max(1, math.floor(settings.fraction * size + 0.5)))


def _hash(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"subset {seed} {key}".encode()).digest()
