"""Attention with grouped queries gives what transformers' own function gives, in values and gradients."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from masp.vlm.attention import attend


def tensors(heads: int = 6, keys: int = 2, length: int = 5, total: int = 9):
    torch.manual_seed(0)
    shapes = (3, heads, length, 8), (3, keys, total, 8), (3, keys, total, 4)
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def masks(length: int = 5, total: int = 9) -> dict[str, torch.Tensor]:
    visible = torch.ones(3, 1, length, total, dtype=torch.bool).tril(total - length)
    visible[1, ..., :2] = False
    additive = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    return {"boolean": visible, "additive": additive, "same for all rows": visible[:1]}


@pytest.mark.parametrize("name", ["boolean", "additive", "same for all rows"])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_it_is_transformers_attention(name, scaling):
    mask, layer = masks()[name], SimpleNamespace(num_key_value_groups=3)
    found = []
    for function in (attend, sdpa_attention_forward):
        given = tensors()
        out, weights = function(layer, *given, mask, scaling=scaling, is_causal=False)
        assert weights is None and out.shape == (3, 5, 6, 4) and out.is_contiguous()
        found.append([out, *torch.autograd.grad(out.square().sum(), given)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_keys_are_not_repeated(monkeypatch):
    shapes = []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def noted(query, key, *args, **kwargs):
        shapes.append((tuple(query.shape), tuple(key.shape)))
        return sdpa(query, key, *args, **kwargs)

    monkeypatch.setattr("masp.vlm.attention.functional.scaled_dot_product_attention", noted)
    attend(SimpleNamespace(num_key_value_groups=3), *tensors(), masks()["boolean"])
    assert shapes == [((3, 2, 15, 8), (3, 2, 9, 8))]


@pytest.mark.parametrize("case", ["a mask per head", "no mask", "one query", "no groups"])
def test_other_cases_are_transformers_own(case):
    heads, length = (2 if case == "no groups" else 6), (1 if case == "one query" else 5)
    given = tensors(heads, length=length)
    mask = masks(length)["boolean"]
    if case == "a mask per head":
        mask = mask.repeat(1, heads, 1, 1)
    layer = SimpleNamespace(num_key_value_groups=heads // 2, is_causal=True)
    mask = None if case == "no mask" else mask
    assert torch.equal(attend(layer, *given, mask)[0], sdpa_attention_forward(layer, *given, mask)[0])


def test_what_transformers_refuses_is_refused():
    with pytest.raises(ValueError, match="softcap"):
        attend(SimpleNamespace(num_key_value_groups=3), *tensors(), masks()["boolean"], softcap=30.0)


def test_models_use_it():
    import masp.vlm.loading  # noqa: F401  # registers it

    assert AttentionInterface()["sdpa"] is attend
