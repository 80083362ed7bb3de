"""A matrix that was rounded comes back within half a step, in its own dtype."""

import importlib.util

import pytest
import torch

from masp.errors import InputError
from masp.vlm.quantized.rounding import GROUP, require_library, restored, rounded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [2, 48, GROUP, 3 * GROUP, 100])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_no_weight_moves_by_more_than_half_a_step(kind, columns, dtype):
    matrix = torch.randn(7, columns, generator=torch.Generator().manual_seed(0)).to(dtype)
    matrix[2] *= 100  # rows have scales of their own
    matrix[3] = 0
    found = rounded(matrix, kind)
    again = restored(found, kind)
    assert again.dtype == found.scale.dtype == dtype and again.shape == matrix.shape
    assert torch.equal(again[3], matrix[3])
    scale = found.scale.float().view(len(matrix), -1)
    step = scale.repeat_interleave(columns // scale.shape[1], 1)
    # scales are rounded to the dtype, so that the ends of a range may lie a little outside; so is the result
    limit = step * 0.51 + matrix.float().abs() * torch.finfo(dtype).eps
    if kind == "int4":
        limit += 15 * step * torch.finfo(dtype).eps
    assert bool(((again.float() - matrix.float()).abs() <= limit).all())
    assert found.values.shape == ((7, columns) if kind == "int8" else (7, columns // 2))


def test_scales_per_row_and_per_group():
    matrix = torch.randn(5, 4 * GROUP)
    assert rounded(matrix, "int8").scale.numel() == 5 and rounded(matrix, "int4").scale.numel() == 20
    assert rounded(matrix[:, :96], "int4").scale.numel() == 5 * 3  # 96 = 3 x 32


def test_what_is_rounded_already_stays(kind="int4"):
    first = restored(rounded(torch.randn(5, GROUP), kind), kind)
    assert torch.allclose(restored(rounded(first, kind), kind), first, atol=1e-6)


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require_library("none")
    with pytest.raises(InputError) as error:
        require_library("int4")
    assert str(error.value) == (
        "vlm.quantization = 'int4': torchao is not installed; install it with `pip install masp[quantization]`, or "
        "give vlm.quantization=none"
    )
