"""The members of a tar: what goes in comes out within the format's precision, at half the size for 8 bits."""

import json
import struct
import zlib

import numpy as np
import pytest
import torch
from safetensors.torch import load

from masp.cache.codec import (
    EIGHT_BIT,
    TORCH_NAMES,
    as_read,
    checksum,
    decode_features,
    decode_record,
    encode_features,
    store,
)
from masp.cache.reader import open_cache
from masp.cache.verify import verify_cache
from masp.errors import DataError
from masp.extraction.job import extract
from masp.vlm.features import Features
from tests.images import make_config


def features(num_tokens=300, width=1536, seed=0):
    """Tokens of very different norms, some with single large entries, as encoders give them."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_tokens, width, generator=random) * 10 ** torch.randn(num_tokens, 1, generator=random)
    rows[::7, 3] *= 80
    return rows


def there_and_back(x, dtype):
    return decode_features(memoryview(bytearray(encode_features(store(Features(x), dtype))))).tokens


@pytest.mark.parametrize(("dtype", "step"), [("int8", 1 / 254), ("fp8", 1 / 16)])
def test_the_error_of_8_bits_is_bounded(dtype, step):
    x = features()
    back = there_and_back(x, dtype)
    assert back.dtype == torch.float32 and back.shape == x.shape
    largest = x.abs().amax(dim=1, keepdim=True)
    # fp8 has smaller steps for smaller values, down to its smallest number
    bound = largest * step if dtype == "int8" else torch.maximum(x.abs() * step, largest / 448 * 2**-9)
    assert ((back - x).abs() <= bound * 1.001).all()
    assert torch.equal(back, as_read(Features(x), dtype).tokens)
    assert torch.equal(there_and_back(back, dtype), back) or dtype == "int8"  # a second time changes nothing


@pytest.mark.parametrize("dtype", TORCH_NAMES)
@pytest.mark.parametrize("value", [0.0, 1e-45, 3e38, -1.0])
def test_odd_tokens(dtype, value):
    x = torch.full((2, 8), value).to(torch.bfloat16 if dtype in ("bf16", "fp32") else torch.float32)
    if dtype == "fp16" and abs(value) > 65504:
        return  # the encoder itself could not have made it
    back = there_and_back(x, dtype)
    assert torch.isfinite(back).all()
    torch.testing.assert_close(back.float(), x.float(), rtol=1e-3, atol=1e-38)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_wider_formats_keep_every_bit(dtype):
    x = features(5, 16).to(getattr(torch, TORCH_NAMES[dtype]))
    assert torch.equal(there_and_back(x, dtype), x)


@pytest.mark.parametrize("dtype", EIGHT_BIT)
@pytest.mark.parametrize("shape", [(300, 1536), (1200, 3584)])
def test_8_bits_take_at_most_0_52_of_bf16(dtype, shape):
    x = Features(torch.randn(*shape))
    assert len(encode_features(store(x, dtype))) <= 0.52 * len(encode_features(store(x, "bf16")))


def test_stock_safetensors_reads_features_and_scales():
    stored = load(encode_features(store(Features(features(4, 8)), "int8")))
    assert stored["features"].dtype == torch.int8 and stored["scales"].shape == (4,)


@pytest.mark.parametrize("dtype", EIGHT_BIT)
def test_a_cache_of_8_bits(made, cache, tmp_path, dtype):
    root, vlm, _ = made
    config = make_config(root, vlm, tmp_path / "c", f"cache.dtype={dtype}")
    small = open_cache(extract(config))
    assert small.manifest.dtype == small.manifest.fingerprint.model["dtype"] == dtype
    assert small.manifest.fingerprint.machine.encoder_dtype == "fp32"
    assert verify_cache(small.directory) == []
    for row in range(len(small)):
        sample, exact = small.read(row), cache.read(row)
        assert (sample.key, sample.answers, sample.layout) == (exact.key, exact.answers, exact.layout)
        assert torch.equal(sample.features.tokens, as_read(exact.features, dtype).tokens)
        assert small.index.num_tokens[row] == len(sample.features.tokens)
    assert small.read(0, torch.bfloat16).features.tokens.dtype == torch.bfloat16


def test_checksum_is_crc32_whatever_library_computes_it():
    data = np.random.default_rng(0).integers(0, 256, 100_003, dtype=np.uint8).tobytes()
    for length in (0, 1, 7, 64, 4097, len(data)):
        assert checksum(data[:length]) == checksum(memoryview(data)[:length]) == zlib.crc32(data[:length])


def test_damaged_safetensors_are_an_error():
    header = json.dumps({"features": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    good = bytearray(struct.pack("<Q", len(header)) + header + bytes(16))
    assert decode_features(memoryview(good)).tokens.shape == (2, 2)
    for bad in (good[:4], good[:-1], good[:20], struct.pack("<Q", 3) + b"{}}", b"\xff" * 30):
        with pytest.raises(DataError):
            decode_features(memoryview(bytearray(bad)))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"[" * 50_000, "not valid JSON"),
        (b'{"key": "train/a"}', "split is missing"),
        (b"null", "must be an object"),
    ],
)
def test_the_json_of_a_sample_is_checked(data, says):
    with pytest.raises(DataError, match=f"the JSON member.*{says}"):
        decode_record(data)
