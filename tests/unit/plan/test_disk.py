"""Bytes of the cache, and free space."""

import pytest
import torch

from masp.cache.codec import encode_features, store
from masp.plan.disk import PRECISIONS, Space, check_space, features_bytes
from masp.vlm.features import Features


def test_features_file_has_the_predicted_size():
    for tokens, hidden in ((1, 8), (4, 1536), (999, 36), (10, 3584)):
        for precision in PRECISIONS:
            data = encode_features(store(Features(torch.randn(tokens, hidden)), precision))
            assert features_bytes(tokens, hidden, precision) == len(data), precision
            deep = Features(torch.randn(tokens, hidden), torch.randn(3, tokens, hidden))
            data = encode_features(store(deep, precision))
            assert features_bytes(tokens, hidden, precision, 3) == len(data), precision
    assert features_bytes(999, 3584, "bf16") == pytest.approx(7.16e6, rel=0.001)
    assert features_bytes(300, 1536, "int8") < 0.52 * features_bytes(300, 1536, "bf16")


def test_space(tmp_path):
    (tmp_path / "cache" / "shards").mkdir(parents=True)
    (tmp_path / "cache" / "shards" / "train-00000.tar").write_bytes(bytes(1000))
    space = check_space(tmp_path / "cache", 5000)
    assert (space.needed_bytes, space.present_bytes, space.fits) == (4000, 1000, True)
    assert check_space(tmp_path / "not" / "yet", 10).folder == str(tmp_path)
    assert not check_space(tmp_path / "cache", 1 << 62).fits
    assert (
        "DOES NOT FIT: needs 3.00 GB, 1.00 GB are free at /x: 2.00 GB too few"
        in Space("/x", 10**9, 3 * 10**9, 0).verdict
    )
