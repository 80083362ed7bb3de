"""Matrices as integers of 8 or 4 bits with scales, and back. The arithmetic is torchao's."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from masp.config.schema import Quantization
from masp.errors import InputError

KEY = "vlm.quantization"
GROUP = 64
"""Weights of a row that share a scale and a zero point in `int4`, or as many as divide both; in `int8` a row shares a
scale."""

AT_ONCE = 1 << 20
"""Weights that are rounded at once."""

Kind = Literal["int8", "int4"]
_RANGES = {"int8": (torch.int8, -127, 127), "int4": (torch.uint8, 0, 15)}


def require_library(quantization: Quantization) -> None:
    """Look for torchao where it is needed.

    Raises:
        InputError: It is not installed.
    """
    if quantization != "none" and importlib.util.find_spec("torchao") is None:
        raise InputError(
            f"{KEY} = {quantization!r}: torchao is not installed; install it with `pip install masp[quantization]`, or "
            f"give {KEY}=none"
        )


@dataclass(frozen=True)
class Rounded:
    """A matrix as integers."""

    values: Tensor
    """`int8`: `[rows, columns]`; `int4`: uint8 `[rows, columns / 2]`, two of 4 bits in each."""
    scale: Tensor
    """`[rows, groups]` in the dtype of the matrix, so that a cast of a whole model to its own dtype changes nothing."""
    zero_point: Tensor | None
    """The same of uint8; None in `int8`, which is symmetric."""


def can_be_rounded(columns: int, kind: Kind) -> bool:
    """Whether a matrix with so many columns can be kept in these bits."""
    return kind == "int8" or columns % 2 == 0


def rounded(matrix: Tensor, kind: Kind) -> Rounded:
    """Quantize a matrix `[rows, columns]`, some rows at a time: on the way there are several copies of them in fp32."""
    rows, columns = matrix.shape
    groups = columns // _block(columns, kind)[1]
    found = Rounded(
        matrix.new_empty(rows, columns // (2 if kind == "int4" else 1), dtype=_RANGES[kind][0]),
        matrix.new_empty(rows, groups),
        matrix.new_empty(rows, groups, dtype=torch.uint8) if kind == "int4" else None,
    )
    count = max(1, AT_ONCE // columns)
    for start in range(0, rows, count):
        part = _rounded(matrix[start : start + count], kind)
        for name, tensor in vars(part).items():
            if tensor is not None:
                getattr(found, name)[start : start + count] = tensor.view(len(tensor), -1)
    return found


@torch.no_grad()
def _rounded(matrix: Tensor, kind: Kind) -> Rounded:
    from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine

    integers, low, high = _RANGES[kind]
    mapping = MappingType.SYMMETRIC if kind == "int8" else MappingType.ASYMMETRIC
    exact, block = matrix.float(), _block(matrix.shape[1], kind)  # half precision would move the borders of rounding
    limits = torch.finfo(matrix.dtype)
    scale, zero_point = choose_qparams_affine(
        exact, mapping, block, integers, low, high,
        eps=limits.smallest_normal * limits.eps, scale_dtype=matrix.dtype, zero_point_dtype=torch.uint8,
    )  # fmt: skip
    values = quantize_affine(exact, block, scale, zero_point, integers, low, high)
    if kind == "int8":
        return Rounded(values, scale, None)
    return Rounded(values[:, 0::2] << 4 | values[:, 1::2], scale, zero_point)


@torch.no_grad()
def restored(found: Rounded, kind: Kind) -> Tensor:
    """The matrix `[rows, columns]` that integers and scales stand for, in the dtype of the scales."""
    from torchao.quantization.quant_primitives import dequantize_affine

    integers, low, high = _RANGES[kind]
    values = found.values
    if kind == "int4":
        values = torch.stack([values >> 4, values & 15], dim=-1).flatten(1)
    block = _block(values.shape[1], kind)
    dtype = found.scale.dtype
    return dequantize_affine(values, block, found.scale, found.zero_point, integers, low, high, output_dtype=dtype)


def _block(columns: int, kind: Kind) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    return 1, columns if kind == "int8" else math.gcd(columns, GROUP)
