"""A sample as the two members of a tar: features as safetensors, the rest as JSON."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

from masp.cache.formats import restore
from masp.files.sealed import canonical_json

try:
    from isal.isal_zlib import crc32
except ImportError:  # not built for every machine; zlib gives the same numbers at a quarter of the speed
    from zlib import crc32

if TYPE_CHECKING:
    import torch

_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "I8": "int8", "F8_E4M3": "float8_e4m3fn"}


def checksum(data) -> int:
    """CRC-32 of bytes: finds every flip of up to 32 neighbouring bits, and at about 10 GB/s a core costs training
    nothing beside reading. Digests against other damage than accidents are the sidecars' (SHA-256)."""
    return crc32(data)


def encode_features(stored: dict[str, torch.Tensor]) -> bytes:
    """What `masp.cache.formats.store` made, on the CPU -> a safetensors file of these tensors."""
    from safetensors.torch import save

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
    import torch

    start, stop = entry["data_offsets"]
    part = body[start:stop]
    if len(part) != stop - start:
        raise ValueError("the features are cut short")
    return torch.frombuffer(part, dtype=getattr(torch, _NAMES[entry["dtype"]])).view(entry["shape"])
