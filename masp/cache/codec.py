"""A sample as the two members of a tar: features as safetensors, the rest as JSON; and the number formats of features.

The safetensors file holds `features [T, D]` and, for VLMs with DeepStack, `deep [K, T, D]`. Three formats store both as
the encoder computes them, two store 8 bits with a scale per token. An 8-bit format keeps `features` and `scales [T]`
(fp32), `deep` and `deep_scales [K, T]`, and value = feature * scale. A token's scale is its largest magnitude over the
largest number of the format, so that tokens of very different norms keep the same relative precision. `int8` has
equal steps (error at most 1/254 of the token's largest value), `fp8` (e4m3) has 3 bits of mantissa (error at most 1/16
of each value), which suits tokens with a few very large entries.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from safetensors.torch import save

from masp.data.keys import SampleKey
from masp.errors import DataError
from masp.files.fields import OMIT_NONE, Count, Distribution, Positive, Sha256, Size, SplitOf
from masp.files.typed import decode, encode
from masp.vlm.features import Features

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
    grid: tuple[Positive, Positive, Positive] | None
    """Patches in time, height and width, before the merge; None for VLMs that do not count positions by a grid."""
    source_sha256: Sha256
    """SHA-256 of the image file."""
    block: Annotated[tuple[tuple[Count, Positive], ...] | None, OMIT_NONE] = None
    """`block` of the image's `ImageLayout`."""
    distribution: Annotated[Distribution | None, OMIT_NONE] = None
    """Probability of each of the cache's categories; None where the dataset has only labels."""

    def __post_init__(self) -> None:
        if self.block is not None and not self.block:
            raise ValueError("must have a block of at least one token")

    def has_room_for(self, num_tokens: int) -> bool:
        """Whether one token of the block, its placeholder, is there this many times."""
        counts: dict[int, int] = {}
        for token, count in self.block or ():
            counts[token] = counts.get(token, 0) + count
        return self.block is None or num_tokens in counts.values()


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
    deep: _Entry | None = None
    """Of VLMs with DeepStack."""
    deep_scales: _Entry | None = None

    def __post_init__(self) -> None:
        if len(self.features.shape) != 2:
            raise ValueError("must have features of shape [T, D]")
        if self.deep is not None and (len(self.deep.shape) != 3 or self.deep.shape[1:] != self.features.shape):
            raise ValueError("must have deep of shape [K, T, D], with the T and D of the features")
        if self.deep is not None and self.deep.dtype != self.features.dtype:
            raise ValueError("must have deep in the dtype of the features")
        _check_scales("scales", self.scales, "features", self.features)
        _check_scales("deep_scales", self.deep_scales, "deep", self.deep)
        end = 0
        for start, stop in sorted(entry.data_offsets for entry in self._entries()):
            if start < end:
                raise ValueError("must have tensors that do not overlap")
            end = stop

    def _entries(self) -> Iterator[_Entry]:
        return (entry for entry in (self.features, self.scales, self.deep, self.deep_scales) if entry is not None)


def _check_scales(name: str, scales: _Entry | None, of: str, numbers: _Entry | None) -> None:
    """Check that there is a scale per token if and only if a tensor has 8 bits.

    Raises:
        ValueError: It is not so; names both.
    """
    has_8_bits = numbers is not None and numbers.dtype in ("I8", "F8_E4M3")
    if (scales is not None) != has_8_bits:
        raise ValueError(f"must have {name} if {of} is stored in 8 bits, and only then")
    if scales is not None and numbers is not None and (scales.dtype != "F32" or scales.shape != numbers.shape[:-1]):
        raise ValueError(f"must have {name} in fp32, one per token of {of}")


def checksum(data: bytes | memoryview) -> int:
    """CRC-32 of bytes: finds every flip of up to 32 neighboring bits, and at about 10 GB/s a core costs training
    nothing beside reading. Digests against other damage than accidents are the sidecars' (SHA-256)."""
    return crc32(data)


def encode_features(stored: Mapping[str, torch.Tensor]) -> bytes:
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


def decode_features(data: memoryview) -> Features:
    """Features; unless they are of an 8-bit format, they share the memory of `data`.

    safetensors' own loader would copy twice what is megabytes per sample here.

    Args:
        data: A writable safetensors file.

    Raises:
        DataError: Not a safetensors file with features.
    """
    what = _FEATURES
    if len(data) < 8:
        raise DataError(f"{what}: cut short")
    (length,) = struct.unpack_from("<Q", data)
    if length > len(data) - 8:
        raise DataError(f"{what}: cut short")
    header = _header(bytes(data[8 : 8 + length]))
    body = data[8 + length :]
    deep = None if header.deep is None else _restored(body, header.deep, header.deep_scales, what)
    return Features(_restored(body, header.features, header.scales, what), deep)


_FEATURES = "the features"
"""What a safetensors file is called in errors."""


@functools.lru_cache(maxsize=1024)
def _header(text: bytes) -> _Header:
    """Decode a header; images of equal size have equal ones."""
    return decode(_Header, text, _FEATURES, unique_keys=False)


def _restored(body: memoryview, numbers: _Entry, scales: _Entry | None, what: str) -> torch.Tensor:
    found = _tensor(body, numbers, what)
    return found if scales is None else _scaled(found, _tensor(body, scales, what))


def _tensor(body: memoryview, entry: _Entry, what: str) -> torch.Tensor:
    start, stop = entry.data_offsets
    if stop > len(body):
        raise DataError(f"{what}: cut short")
    return torch.frombuffer(body[start:stop], dtype=getattr(torch, _NAMES[entry.dtype])).view(entry.shape)


def is_finite(features: Features) -> bool:
    """Whether all numbers are finite."""
    return all(map(_is_finite, features.tensors))


def _is_finite(tensor: torch.Tensor) -> bool:
    # from the smallest and the largest, which are NaN if any number is: over a hundred times as fast as one by one
    smallest, largest = torch.aminmax(tensor)
    return math.isfinite(smallest.item()) and math.isfinite(largest.item())


TORCH_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "int8": "int8", "fp8": "float8_e4m3fn"}
"""`cache.dtype` -> torch's name of the type in the tar."""


EIGHT_BIT = {"int8": 127.0, "fp8": 448.0}
"""The 8-bit formats, each with its largest number."""


def store(features: Features, dtype: str) -> dict[str, torch.Tensor]:
    """Features as a cache stores them.

    Args:
        features: Features, finite, on any device.
        dtype: `cache.dtype`.

    Returns:
        `features [T, D]`, with deep maps `deep [K, T, D]`, and for 8-bit formats `scales [T]` and `deep_scales [K, T]`
        (fp32); on the same device.
    """
    return {
        **_stored("features", "scales", features.tokens, dtype),
        **({} if features.deep is None else _stored("deep", "deep_scales", features.deep, dtype)),
    }


def _stored(name: str, name_of_scales: str, tensor: torch.Tensor, dtype: str) -> dict[str, torch.Tensor]:
    kind = getattr(torch, TORCH_NAMES[dtype])
    if dtype not in EIGHT_BIT:
        return {name: tensor.to(kind)}
    largest = EIGHT_BIT[dtype]
    wide = tensor.float()
    # a token of zeros, or of numbers too small to divide by, is stored as zeros
    scales = (wide.abs().amax(dim=-1) / largest).clamp_min(torch.finfo(torch.float32).tiny)
    scaled = (wide / scales[..., None]).clamp_(-largest, largest)
    return {name: (scaled.round_() if dtype == "int8" else scaled).to(kind), name_of_scales: scales}


def all_finite(stored: Mapping[str, torch.Tensor]) -> bool:
    """Whether what `store` returned holds finite numbers only; fp16 cannot hold some that the encoder's type can."""
    # in an 8-bit format a number that is not finite makes the scale of its token so
    return all(_is_finite(tensor) for tensor in stored.values() if tensor.itemsize > 1)


def restore(stored: Mapping[str, torch.Tensor]) -> Features:
    """Undo `store`: fp32 where there are scales, else as stored."""
    tensors = [
        _scaled(stored[name], stored[name_of_scales]) if name_of_scales in stored else stored[name]
        for name, name_of_scales in (("features", "scales"), ("deep", "deep_scales"))
        if name in stored
    ]
    return Features(*tensors)


def _scaled(numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return _widened(numbers).mul_(scales[..., None])


def _widened(features: torch.Tensor) -> torch.Tensor:
    """8-bit numbers as fp32, a tensor of its own."""
    if features.dtype != torch.float8_e4m3fn or features.device.type != "cpu":
        return features.float()
    # looked up in a table: four times as fast as torch's conversion, and readers do nothing else as slow
    table = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    return torch.from_numpy(table.numpy()[features.view(torch.uint8).numpy()])


def as_read(features: Features, dtype: str) -> Features:
    """Features as a cache of this format would return them: what is encoded live must not be better."""
    return restore(store(features, dtype))
