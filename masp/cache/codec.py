"""A sample as the two members of a tar: features as safetensors, the rest as JSON; and the number formats of features.

Three formats store features as the encoder computes them, two store 8 bits with a scale per token. An 8-bit format
keeps `features` and `scales [T]` (fp32), and value = feature * scale. A token's scale is its largest magnitude over the
largest number of the format, so that tokens of very different norms keep the same relative precision. `int8` has
equal steps (error at most 1/254 of the token's largest value), `fp8` (e4m3) has 3 bits of mantissa (error at most 1/16
of each value), which suits tokens with a few very large entries.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from safetensors.torch import save

from masp.data.keys import SampleKey
from masp.errors import DataError
from masp.files.fields import Positive, Sha256, Size, SplitOf
from masp.files.typed import decode, encode

try:
    from isal.isal_zlib import crc32
except ImportError:  # not built for every machine; zlib gives the same numbers at a quarter of the speed
    from zlib import crc32


_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "I8": "int8", "F8_E4M3": "float8_e4m3fn"}
_SIZES = {"BF16": 2, "F16": 2, "F32": 4, "I8": 1, "F8_E4M3": 1}


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """The JSON member of a sample."""

    key: SampleKey
    split: SplitOf
    category: str
    answers: dict[str, str]
    """Aspect -> answer text, only where annotated."""
    image_size: tuple[Positive, Positive]
    """Width and height of the image that was given to the image processor."""
    grid: tuple[Positive, Positive, Positive]
    """Patches in time, height and width, before the merge."""
    source_sha256: Sha256
    """SHA-256 of the image file."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor in the header of a safetensors file."""

    dtype: Literal["BF16", "F16", "F32", "I8", "F8_E4M3"]
    shape: tuple[Positive, ...]
    data_offsets: tuple[Size, Size]

    def __post_init__(self) -> None:
        start, stop = self.data_offsets
        if stop - start != math.prod(self.shape) * _SIZES[self.dtype]:
            raise ValueError("must have as many bytes as its shape and dtype say")


@dataclass(frozen=True, slots=True)
class _Header:
    """The header of a sample's safetensors file."""

    features: _Entry
    scales: _Entry | None = None
    """Of 8-bit formats."""

    def __post_init__(self) -> None:
        if len(self.features.shape) != 2:
            raise ValueError("must have features of shape [T, D]")
        if (self.scales is not None) != (self.features.dtype in ("I8", "F8_E4M3")):
            raise ValueError("must have scales if the features have 8 bits, and only then")
        if self.scales is not None and (self.scales.dtype != "F32" or len(self.scales.shape) != 1):
            raise ValueError("must have scales of shape [T] in fp32")


def checksum(data: bytes | memoryview) -> int:
    """CRC-32 of bytes: finds every flip of up to 32 neighboring bits, and at about 10 GB/s a core costs training
    nothing beside reading. Digests against other damage than accidents are the sidecars' (SHA-256)."""
    return crc32(data)


def encode_features(stored: dict[str, torch.Tensor]) -> bytes:
    """A safetensors file of the tensors that `store` made, which are on the CPU."""
    return save({name: tensor.contiguous() for name, tensor in stored.items()})


def encode_record(record: SampleRecord) -> bytes:
    """The JSON member of a sample."""
    return encode(record)


def decode_record(data: bytes | memoryview) -> SampleRecord:
    """Undo `encode_record`.

    Raises:
        DataError: Not the JSON of a sample.
    """
    return decode(SampleRecord, bytes(data), "the JSON member", unique_keys=False, surrogates=True)


def decode_features(data: memoryview) -> torch.Tensor:
    """Features `[T, D]`; unless they are of an 8-bit format, they share the memory of `data`.

    safetensors' own loader would copy twice what is megabytes per sample here.

    Args:
        data: A writable safetensors file.

    Raises:
        DataError: Not a safetensors file with features.
    """
    what = "the features"
    if len(data) < 8:
        raise DataError(f"{what}: cut short")
    (length,) = struct.unpack_from("<Q", data)
    if length > len(data) - 8:
        raise DataError(f"{what}: cut short")
    header = decode(_Header, bytes(data[8 : 8 + length]), what, unique_keys=False)
    body = data[8 + length :]
    features = _tensor(body, header.features, what)
    if header.scales is None:
        return features
    scales = _tensor(body, header.scales, what)
    if scales.shape != features.shape[:1]:
        raise DataError(f"{what}: {len(scales)} scales for {len(features)} tokens")
    return restore(features, scales)


def _tensor(body: memoryview, entry: _Entry, what: str) -> torch.Tensor:
    start, stop = entry.data_offsets
    if stop > len(body):
        raise DataError(f"{what}: cut short")
    return torch.frombuffer(body[start:stop], dtype=getattr(torch, _NAMES[entry.dtype])).view(entry.shape)


TORCH_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "int8": "int8", "fp8": "float8_e4m3fn"}
"""`cache.dtype` -> torch's name of the type in the tar."""


EIGHT_BIT = {"int8": 127.0, "fp8": 448.0}
"""The 8-bit formats, each with its largest number."""


def store(features: torch.Tensor, dtype: str) -> dict[str, torch.Tensor]:
    """Features as a cache stores them.

    Args:
        features: `[T, D]`, finite, on any device.
        dtype: `cache.dtype`.

    Returns:
        `features [T, D]`, and for 8-bit formats `scales [T]` (fp32); on the same device.
    """
    kind = getattr(torch, TORCH_NAMES[dtype])
    if dtype not in EIGHT_BIT:
        return {"features": features.to(kind)}
    largest = EIGHT_BIT[dtype]
    wide = features.float()
    # a token of zeros, or of numbers too small to divide by, is stored as zeros
    scales = (wide.abs().amax(dim=1) / largest).clamp_min(torch.finfo(torch.float32).tiny)
    scaled = (wide / scales[:, None]).clamp_(-largest, largest)
    return {"features": (scaled.round_() if dtype == "int8" else scaled).to(kind), "scales": scales}


def all_finite(stored: Mapping[str, torch.Tensor]) -> bool:
    """Whether what `store` returned holds finite numbers only; fp16 cannot hold some that the encoder's type can."""
    # in an 8-bit format a number that is not finite makes the scale of its token so
    return all(bool(tensor.isfinite().all()) for tensor in stored.values() if tensor.itemsize > 1)


def restore(features: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    """Undo `store`: `[T, D]`, fp32 where there are scales, else as stored."""
    return features if scales is None else _widened(features).mul_(scales[:, None])


def _widened(features: torch.Tensor) -> torch.Tensor:
    """8-bit numbers as fp32, a tensor of its own."""
    if features.dtype != torch.float8_e4m3fn or features.device.type != "cpu":
        return features.float()
    # looked up in a table: four times as fast as torch's conversion, and readers do nothing else as slow
    table = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    return torch.from_numpy(table.numpy()[features.view(torch.uint8).numpy()])


def as_read(features: torch.Tensor, dtype: str) -> torch.Tensor:
    """Features as a cache of this format would return them: what is encoded live must not be better."""
    stored = store(features, dtype)
    return restore(stored["features"], stored.get("scales"))
