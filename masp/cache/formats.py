"""The number formats of stored features: three as the encoder computes them, two of 8 bits with a scale per token.

An 8-bit format keeps `features` and `scales [T]` (fp32), and value = feature * scale. A token's scale is its largest
magnitude over the largest number of the format, so that tokens of very different norms keep the same relative
precision. `int8` has equal steps (error at most 1/254 of the token's largest value), `fp8` (e4m3) has 3 bits of
mantissa (error at most 1/16 of each value), which suits tokens with a few very large entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

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
    import torch

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
    import torch

    if features.dtype != torch.float8_e4m3fn or features.device.type != "cpu":
        return features.float()
    # looked up in a table: four times as fast as torch's conversion, and readers do nothing else as slow
    table = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    return torch.from_numpy(table.numpy()[features.view(torch.uint8).numpy()])


def as_read(features: torch.Tensor, dtype: str) -> torch.Tensor:
    """What a cache of this format would give back for these features: what is encoded live must not be better."""
    stored = store(features, dtype)
    return restore(stored["features"], stored.get("scales"))
