"""Yardsticks beside the method: a linear probe on mean features."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from masp.cache.reader import Cache


def mean_features(cache: Cache, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean feature of every image of a split.

    Returns:
        `[num_images, D]` fp32, and the category of each, an index into `cache.categories`.
    """
    rows = cache.rows(split)
    means = np.stack([cache.read(int(row)).features.float().mean(0).numpy() for row in rows])
    return means, cache.index.category[rows].astype(int)


def linear_probe(cache: Cache, seed: int) -> tuple[int, int]:
    """Logistic regression on mean features of `train`, its strength chosen by cross-validation, tested on `test`.

    Returns:
        How many test images it got right, and how many there are.
    """
    features, labels = mean_features(cache, "train")
    folds = int(min(5, np.bincount(labels)[np.unique(labels)].min()))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, random_state=seed))
    if folds >= 2:
        strengths = {"logisticregression__C": [0.003, 0.03, 0.3]}
        model = GridSearchCV(model, strengths, cv=folds)
    model.fit(features, labels)
    features, labels = mean_features(cache, "test")
    return int((model.predict(features) == labels).sum()), len(labels)
