"""The linear probe on features whose classes are separable, or are not."""

import numpy as np
import torch

from masp.cache.reader import open_cache
from masp.evaluation.linear_probe import linear_probe, mean_features
from tests.small_cache import HIDDEN_SIZE, make_small_cache


class Shifted:
    """A cache whose second category has features of another mean."""

    def __init__(self, cache, shift: float):
        self.cache, self.index, self.shift = cache, cache.index, shift
        self.categories, self.category = cache.categories, cache.category

    def rows(self, split: str):
        return self.cache.rows(split)

    def read(self, row: int):
        sample = self.cache.read(row)
        sample.features.tokens.add_(self.shift * float(self.index.category[row]))
        return sample


def test_the_mean_is_over_the_tokens_of_an_image(tmp_path):
    cache = open_cache(make_small_cache(tmp_path / "cache"))
    rows = cache.rows("train")
    means = mean_features(cache, rows)
    assert means.shape == (len(rows), HIDDEN_SIZE) and means.dtype == np.float32
    np.testing.assert_allclose(means[1], cache.read(int(rows[1])).features.tokens.float().mean(0), rtol=1e-6)


def test_separable_categories_are_told_apart(tmp_path):
    torch.manual_seed(0)
    cache = open_cache(make_small_cache(tmp_path / "cache", num_train=21, num_test=10))
    assert linear_probe(Shifted(cache, 50.0), seed=0) == (10, 10, 20)
