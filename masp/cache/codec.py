"""A sample as the two members of a tar: features as safetensors, the rest as JSON; and the number formats of features.

Three formats store features as the encoder computes them, two store 8 bits with a scale per token. An 8-bit format
keeps `features` and `scales [T]` (fp32), and value = feature * scale. A token's scale is its largest magnitude over the
largest number of the format, so that tokens of very different norms keep the same relative precision. `int8` has
equal steps (error at most 1/254 of the token's largest value), `fp8` (e4m3) has 3 bits of mantissa (error at most 1/16
of each value), which suits tokens with a few very large entries.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save

from masp.files.sealed import canonical_json

if TYPE_CHECKING:
    import torch


try:
    from isal.isal_zlib import crc32
except ImportError:  # not built for every machine; zlib gives the same numbers at a quarter of the speed
    from zlib import crc32


_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "I8": "int8", "F8_E4M3": "float8_e4m3fn"}


def checksum(data) -> int:
    """CRC-32 of bytes: finds every flip of up to 32 neighbouring bits, and at about 10 GB/s a core costs training
    nothing beside reading. Digests against other damage than accidents are the sidecars' (SHA-256)."""
    return crc32(data)


def encode_features(stored: dict[str, torch.Tensor]) -> bytes:
    """What `masp.cache.codec.store` made, on the CPU -> a safetensors file of these tensors."""
    return save({name: tensor.contiguous() for name, tensor in stored.items()})


def encode_record(record: dict) -> bytes:
    """The JSON member: category, answers, image size, image grid, source digest."""
    return canonical_json(record)


def decode_record(data: bytes | memoryview) -> dict:
    """Undo `encode_record`."""
    return json.loads(bytes(data))


def decode_features(data: memoryview) -> torch.Tensor:
    """Features `[T, D]`; unless they are of an 8-bit format, they share the memory of `data`.

    safetensors' own loader would copy twice what is megabytes per sample here.

    Args:
        data: a writable safetensors file.

    Raises:
        ValueError: no such safetensors file.
    """
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(bytes(data[8 : 8 + length]))
        body = data[8 + length :]
        features = _tensor(body, header["features"])
        scales = _tensor(body, header["scales"]) if "scales" in header else None
        return restore(features, scales)
    except (struct.error, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"no safetensors file with features: {error}") from None


def _tensor(body: memoryview, entry: dict) -> torch.Tensor:
    start, stop = entry["data_offsets"]
    part = body[start:stop]
    if len(part) != stop - start:
        raise ValueError("the features are cut short")
    return torch.frombuffer(part, dtype=getattr(torch, _NAMES[entry["dtype"]])).view(entry["shape"])


TORCH_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "int8": "int8", "fp8": "float8_e4m3fn"}
"""`cache.dtype` -> torch's name of the type in the tar."""


EIGHT_BIT = {"int8": 127.0, "fp8": 448.0}
"""The 8-bit formats, each with its largest number."""


def store(features: torch.Tensor, dtype: str) -> dict[str, torch.Tensor]:
    """Features as they are kept.

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
    # a token of zeros, or of numbers too small to divide by, is kept as zeros
    scales = (wide.abs().amax(dim=1) / largest).clamp_min(torch.finfo(torch.float32).tiny)
    scaled = (wide / scales[:, None]).clamp_(-largest, largest)
    return {"features": (scaled.round_() if dtype == "int8" else scaled).to(kind), "scales": scales}


def restore(features: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    """Undo `store`: `[T, D]`, fp32 where there are scales, else as it was kept."""
    return features if scales is None else _widened(features).mul_(scales[:, None])


def _widened(features: torch.Tensor) -> torch.Tensor:
    """8-bit numbers as fp32, a tensor of its own."""
    if features.dtype != torch.float8_e4m3fn or features.device.type != "cpu":
        return features.float()
    # looked up in a table: four times as fast as torch's conversion, and readers do nothing else as slow
    table = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    return torch.from_numpy(table.numpy()[features.view(torch.uint8).numpy()])


def as_read(features: torch.Tensor, dtype: str) -> torch.Tensor:
    """What a cache of this format would give back for these features: what is encoded live must not be better."""
    stored = store(features, dtype)
    return restore(stored["features"], stored.get("scales"))
