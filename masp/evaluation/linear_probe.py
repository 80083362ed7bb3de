"""A yardstick beside the method: a linear probe on mean features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from masp.cache.reader import Cache
from masp.errors import InputError
from masp.results.metrics import wilson_interval
from masp.results.metrics_file import PROBE, ProbeFile, write_object
from masp.runtime.log import show

MAX_TRAIN = 20_000
"""Most training images that a probe is fitted on; more are drawn from."""

_CHUNK = 4096


def mean_features(cache: Cache, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """Mean feature of every image of some rows, `[num_images, D]` fp32."""
    return np.stack([cache.read(int(row)).features.tokens.float().mean(0).numpy() for row in rows])


def linear_probe(
    cache: Cache, seed: int, split: str = "test", means: Mapping[str, str] | None = None
) -> tuple[int, int, int]:
    """Logistic regression on mean features of `train`, its strength chosen by cross-validation.

    Args:
        cache: Cache with both splits.
        seed: Seed of the regression and, if there are more than `MAX_TRAIN` training images, of which are taken.
        split: Split that it is tested on.
        means: Category of the dataset -> category that is asked; images of others are left out. None: all as they are.

    Returns:
        How many images of the split it got right, how many there are, and how many it was fitted on.

    Raises:
        InputError: the training split has fewer than two categories.
    """
    categories = cache.categories
    means = {category: category for category in categories} if means is None else means
    number = {category: index for index, category in enumerate(dict.fromkeys(means.values()))}
    label_of = np.array([number[means[category]] if category in means else -1 for category in categories])

    def rows_of(name: str) -> np.ndarray:
        rows = cache.rows(name)
        return rows[label_of[cache.category[rows]] >= 0]

    rows = rows_of("train")
    if len(rows) > MAX_TRAIN:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_TRAIN, replace=False))
    labels = label_of[cache.category[rows]]
    if len(np.unique(labels)) < 2:
        raise InputError(
            "evaluate.linear_probe = true: the training split has images of fewer than two categories; leave it out"
        )
    folds = int(min(5, np.bincount(labels)[np.unique(labels)].min()))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, random_state=seed))
    if folds >= 2:
        strengths = {"logisticregression__C": [0.003, 0.03, 0.3]}
        model = GridSearchCV(model, strengths, cv=folds)
    model.fit(mean_features(cache, rows), labels)
    num_correct, tested = 0, rows_of(split)
    for start in range(0, len(tested), _CHUNK):
        part = tested[start : start + _CHUNK]
        predicted = model.predict(mean_features(cache, part))
        num_correct += int((predicted == label_of[cache.category[part]]).sum())
    return num_correct, len(tested), len(rows)


def write_probe(cache: Cache, seed: int, split: str, means: Mapping[str, str], digest: str, directory: Path) -> Path:
    """Fit and test a probe, print its accuracy and write `linear_probe.json`; arguments as `linear_probe`.

    Args:
        digest: Digest of the images that were evaluated.
        directory: Directory of the evaluation.
    """
    num_correct, num_samples, num_train = linear_probe(cache, seed, split, means)
    interval = wilson_interval(num_correct, num_samples)
    result = ProbeFile(
        num_samples=num_samples,
        num_correct=num_correct,
        accuracy=num_correct / num_samples,
        accuracy_ci95=interval,
        num_train=num_train,
        num_train_in_split=len(cache.rows("train")),
        data_digest=digest,
    )
    path = directory / PROBE
    write_object(path, result)
    show(
        f"evaluate: linear probe on mean features of {num_train:,} training images: {result.accuracy:.4f} (95 % "
        f"interval {interval[0]:.4f} to {interval[1]:.4f}) on {num_samples} images: {path}"
    )
    return path
