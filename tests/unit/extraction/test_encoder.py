"""Features without a cache are those that a cache of the configuration would return."""

import torch

from masp.cache.reader import open_cache
from masp.data.datasets import read_dataset
from masp.extraction.encoder import Encoder
from masp.extraction.job import extract
from tests.images import make_config, make_dataset
from tests.tiny import make_vlm


def test_live_features_are_those_of_the_cache(tmp_path):
    root = make_dataset(tmp_path / "data", 6, 3)
    config = make_config(root, make_vlm(tmp_path / "vlm"), tmp_path / "cache", "cache.dtype=int8")
    cache, samples = open_cache(extract(config)), read_dataset(config.dataset).samples
    encoder = Encoder(config)
    with encoder.stream(samples, 0) as stream:
        images = list(stream)
    for sample, features in zip(samples, encoder.encode(images), strict=True):
        cached = cache.read(cache.row_of(sample.key))
        torch.testing.assert_close(features, cached.features, rtol=0, atol=0.05)
