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
    SampleRecord,
    as_read,
    checksum,
    decode_features,
    decode_record,
    encode_features,
    encode_record,
    is_finite,
    restore,
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


@pytest.mark.parametrize("dtype", TORCH_NAMES)
def test_deep_maps_are_kept_as_the_features_are(dtype):
    maps = [features(20, 64, seed) for seed in range(4)]
    whole = Features(maps[0], torch.stack(maps[1:]))
    data = encode_features(store(whole, dtype))
    back = decode_features(memoryview(bytearray(data)))
    assert back.deep.shape == (3, 20, 64) and back.deep.dtype == back.tokens.dtype
    # each map as if it were alone: one with large values takes no precision from the others
    for kept, exact in zip((back.tokens, *back.deep), maps, strict=True):
        assert torch.equal(kept, there_and_back(exact, dtype))
    live = as_read(whole, dtype)
    assert torch.equal(live.tokens, back.tokens) and torch.equal(live.deep, back.deep)
    stock = load(data)
    eight = {"scales", "deep_scales"} if dtype in EIGHT_BIT else set()
    assert set(stock) == {"features", "deep"} | eight
    assert torch.equal(restore(stock).deep, back.deep)


def test_there_are_no_deep_maps_where_the_vlm_has_none():
    stored = store(Features(features(4, 8)), "fp8")
    assert set(stored) == {"features", "scales"}
    assert decode_features(memoryview(bytearray(encode_features(stored)))).deep is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_single_number_that_is_not_finite_is_seen_wherever_it_is(dtype, value):
    for width in (1, 3, 8, 31, 64, 1000):
        rows = torch.randn(3, width).to(dtype)
        assert is_finite(Features(rows, rows[None]))
        for position in {0, 1, width // 2, 3 * width // 2, 3 * width - 2, 3 * width - 1}:
            other = rows.clone()
            other.view(-1)[position] = value
            assert not is_finite(Features(other))
            assert not is_finite(Features(rows, other[None]))
    largest = torch.full((2, 3), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(Features(largest, -largest[None]))


def file_of(tensors, length=64):
    """A safetensors file with this header and `length` bytes of zeros."""
    entries = {n: {"dtype": d, "shape": s, "data_offsets": o} for n, (d, s, o) in tensors.items()}
    header = json.dumps(entries).encode()
    return bytearray(struct.pack("<Q", len(header)) + header + bytes(length))


def test_damaged_safetensors_are_an_error():
    good = file_of({"features": ("F32", [2, 2], [0, 16])}, 16)
    assert decode_features(memoryview(good)).tokens.shape == (2, 2)
    for bad in (good[:4], good[:-1], good[:20], struct.pack("<Q", 3) + b"{}}", b"\xff" * 30):
        with pytest.raises(DataError):
            decode_features(memoryview(bytearray(bad)))


FEATURES = ("F32", [2, 2], [0, 16])
INT8, SCALES = ("I8", [2, 2], [8, 12]), ("F32", [2], [0, 8])


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"features": ("F32", [1, 2, 2], [0, 16])}, "features of shape"),
        ({"deep": ("F32", [1, 2, 2], [0, 16])}, "features is missing"),
        ({"features": FEATURES, "deep": ("F32", [2, 2], [16, 32])}, r"deep of shape \[K, T, D\]"),
        ({"features": FEATURES, "deep": ("F32", [1, 3, 2], [16, 40])}, r"deep of shape \[K, T, D\]"),
        ({"features": FEATURES, "deep": ("F32", [1, 2, 3], [16, 40])}, r"deep of shape \[K, T, D\]"),
        ({"features": FEATURES, "deep": ("F32", [0, 2, 2], [16, 16])}, "greater than or equal to 1"),
        ({"features": FEATURES, "deep": ("BF16", [1, 2, 2], [16, 24])}, "deep in the dtype of the features"),
        ({"features": FEATURES, "deep": ("F32", [1, 2, 2], [8, 24])}, "do not overlap"),
        ({"features": FEATURES, "deep": ("F32", [1, 2, 2], [0, 16])}, "do not overlap"),
        ({"features": FEATURES, "deep": ("F32", [1, 2, 2], [56, 72])}, "cut short"),
        ({"features": FEATURES, "deep_scales": ("F32", [1, 2], [16, 24])}, "deep_scales if deep is stored in 8 bits"),
        ({"features": FEATURES, "scales": ("F32", [2], [16, 24])}, "scales if features is stored in 8 bits"),
        ({"features": INT8, "scales": ("F32", [1], [0, 4])}, "scales in fp32, one per token of features"),
        ({"features": INT8, "scales": ("F16", [2], [0, 4])}, "scales in fp32, one per token of features"),
        ({"features": INT8, "scales": SCALES, "deep": ("I8", [1, 2, 2], [12, 16])}, "deep_scales if deep"),
        (
            {"features": INT8, "scales": SCALES, "deep": ("I8", [1, 2, 2], [12, 16]),
             "deep_scales": ("F32", [2], [16, 24])},
            "deep_scales in fp32, one per token of deep",
        ),
        ({"features": FEATURES, "shallow": FEATURES}, "unknown key"),
    ],
)  # fmt: skip
def test_the_tensors_of_a_sample_must_agree(tensors, says):
    with pytest.raises(DataError, match=f"the features.*{says}"):
        decode_features(memoryview(file_of(tensors)))


def test_the_json_of_a_sample_has_a_block_only_where_the_image_has_one():
    made_of = {"key": "train/a", "split": "train", "category": "awe", "answers": {}, "image_size": (4, 3)}
    plain = SampleRecord(**made_of, grid=(1, 2, 2), source_sha256="1" * 64)
    assert encode_record(plain) == (
        b'{"answers":{},"category":"awe","grid":[1,2,2],"image_size":[4,3],"key":"train/a",'
        b'"source_sha256":"' + b"1" * 64 + b'","split":"train"}'
    )
    tiles = SampleRecord(**made_of, grid=None, source_sha256="1" * 64, block=((7, 3), (9, 1), (7, 2)))
    assert b'"block":[[7,3],[9,1],[7,2]]' in encode_record(tiles) and b'"grid":null' in encode_record(tiles)
    for record in (plain, tiles):
        assert decode_record(encode_record(record)) == record
    assert plain.has_room_for(9) and tiles.has_room_for(5) and not tiles.has_room_for(6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"block": []}, "at least one token"),
        ({"block": [[7, 0]]}, "greater than or equal to 1"),
        ({"block": [[-7, 1]]}, "greater than or equal to 0"),
        ({"block": [[7]]}, "missing|must"),
        ({"block": [7, 3]}, "must"),
        ({"grid": [1, 2]}, "missing|must"),
        ({"grid": [0, 0, 0]}, "greater than or equal to 1"),
        ({"grid": ...}, "grid is missing"),
    ],
)
def test_grid_and_block_are_checked(change, says):
    good = {"key": "train/a", "split": "train", "category": "awe", "answers": {}, "image_size": [4, 3],
            "grid": None, "source_sha256": "1" * 64}  # fmt: skip
    decode_record(json.dumps(good).encode())
    bad = {name: value for name, value in {**good, **change}.items() if value is not ...}
    with pytest.raises(DataError, match=f"the JSON member.*({says})"):
        decode_record(json.dumps(bad).encode())


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
