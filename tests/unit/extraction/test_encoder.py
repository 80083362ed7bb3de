"""Features without a cache are those that a cache of the configuration would return."""

import numpy as np
import torch
from PIL import Image

from masp.cache.reader import open_cache
from masp.data.datasets import dataset_of
from masp.extraction.encoder import Encoder
from masp.extraction.job import extract
from tests.images import make_config, make_dataset
from tests.tiny import make_vlm


def test_live_features_are_those_of_the_cache(tmp_path):
    root = make_dataset(tmp_path / "data", 6, 3)
    config = make_config(root, make_vlm(tmp_path / "vlm"), tmp_path / "cache", "cache.dtype=int8")
    cache, samples = open_cache(extract(config)), dataset_of(config).samples
    encoder = Encoder(config)
    with encoder.stream(samples, 0) as stream:
        images = list(stream)
    for sample, features in zip(samples, encoder.encode(images), strict=True):
        cached = cache.read(cache.row_of(sample.key))
        torch.testing.assert_close(features.tokens, cached.features.tokens, rtol=0, atol=0.05)


def test_transparency_is_the_same_live_and_in_the_cache(tmp_path):
    """`drop` sees the picture whose alpha was added, `white` another one, in extraction and live."""
    random = np.random.default_rng(0)
    vlm = make_vlm(tmp_path / "vlm")
    pixels = random.integers(0, 256, (56, 84, 4), dtype=np.uint8)
    for root, picture in (("clear", Image.fromarray(pixels)), ("solid", Image.fromarray(pixels).convert("RGB"))):
        (tmp_path / root / "train" / "joy").mkdir(parents=True)
        picture.save(tmp_path / root / "train" / "joy" / "a.png")

    def features(root, transparency):
        cache = tmp_path / f"{root}-{transparency}"
        config = make_config(tmp_path / root, vlm, cache, f"vlm.transparency={transparency}")
        sample = open_cache(extract(config)).read(0)
        encoder = Encoder(config)
        with encoder.stream(dataset_of(config).samples, 0) as stream:
            (live,) = encoder.encode(list(stream))
        assert torch.equal(live.tokens, sample.features.tokens)
        return sample.features.tokens, open_cache(cache).manifest.fingerprint.model.get("transparency")

    (dropped, field), (white, none) = features("clear", "drop"), features("clear", "white")
    assert (field, none) == ("drop", None)
    assert torch.equal(dropped, features("solid", "drop")[0])
    assert torch.equal(dropped, features("solid", "white")[0])
    assert not torch.equal(dropped, white)
