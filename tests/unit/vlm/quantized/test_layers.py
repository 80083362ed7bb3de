"""Quantized layers compute what ordinary ones do with the same rounded weights, forward and backward."""

import copy

import pytest
import torch
from torch import nn

from masp.vlm.language import load_language_half
from masp.vlm.quantized import layers
from masp.vlm.quantized.layers import QuantizedLinear, make_quantized
from masp.vlm.quantized.rounding import restored, rounded
from tests.tiny import make_vlm

KINDS = ("int8", "int4")


def states(half, inputs, recompute=False):
    """Hidden states behind a frozen prefix, and the gradient of the inputs after it."""
    if recompute:
        half.recompute_layers()
    embeds = inputs.clone().requires_grad_()
    mask, positions = torch.ones(2, 9, dtype=torch.bool), torch.arange(9).expand(3, 2, 9)
    cache = half.new_cache()
    with torch.no_grad():
        half(embeds[:, :5], mask[:, :5], positions[..., :5], cache)
    hidden = half(embeds[:, 5:], mask, positions[..., 5:], cache)
    (gradient,) = torch.autograd.grad((hidden * torch.arange(hidden[0].numel()).view_as(hidden[0])).sum(), embeds)
    return hidden.detach(), gradient


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return str(make_vlm(tmp_path_factory.mktemp("vlm") / "vlm"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_half_is_the_half_with_rounded_weights(vlm, kind):
    half, exact = load_language_half(vlm, quantization=kind), load_language_half(vlm)
    linear = [m for m in half.modules() if isinstance(m, QuantizedLinear)]
    assert len(linear) == 7 * 2 and not any(isinstance(m, QuantizedLinear) for m in (half.model.lm_head,))
    assert half.dtype == torch.float32 and torch.equal(half.table, exact.table)
    inputs = torch.randn(2, 9, half.hidden_size, generator=torch.Generator().manual_seed(0))
    unrounded, _ = states(exact, inputs)
    for name, module in exact.decoder.layers.named_modules():
        if isinstance(module, nn.Linear):
            module.weight.data = restored(rounded(module.weight, kind), kind)
            assert torch.equal(module.weight, half.decoder.layers.get_submodule(name).weight)
    expected, gradient = states(exact, inputs)
    for recompute in (False, True):
        found, ours = states(half, inputs, recompute)
        assert torch.allclose(found, expected, atol=1e-6) and torch.allclose(ours, gradient, atol=1e-5, rtol=1e-5)
    change = float((expected - unrounded).norm() / unrounded.norm())
    assert 1e-4 < change < {"int8": 0.1, "int4": 1.0}[kind], change  # it would be 0 if nothing were quantized


@pytest.mark.parametrize("kind", KINDS)
def test_no_matrix_is_made_while_loading(vlm, kind, monkeypatch):
    """It would cost the memory that is to be saved, and with parameters that are divided at once it could not be."""

    def fail(*_):
        raise AssertionError("a matrix was made")

    monkeypatch.setattr(layers, "restored", fail)
    half = load_language_half(vlm, quantization=kind)
    with pytest.raises(AssertionError, match="a matrix was made"):
        _ = half.decoder.layers[0].mlp.down_proj.weight


@pytest.mark.parametrize("kind", KINDS)
def test_memory_and_what_casts_do(vlm, kind):
    def num_bytes(half):
        return sum(p.nbytes for p in half.decoder.layers.parameters())

    half = load_language_half(vlm, torch.bfloat16, quantization=kind)
    share = num_bytes(half) / num_bytes(load_language_half(vlm, torch.bfloat16))
    assert share < {"int8": 0.6, "int4": 0.45}[kind]  # rows of 32 weights: scales take their part
    before = copy.deepcopy(half.state_dict())
    half.bfloat16()  # as DeepSpeed does
    assert all(torch.equal(tensor, before[name]) for name, tensor in half.state_dict().items())
    assert not any(p.requires_grad for p in half.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_experts_in_tables(kind):
    """Mixtures of experts keep their weights in tables of three dimensions; routers stay as they are."""
    from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import Qwen3VLMoeTextConfig
    from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextModel

    config = Qwen3VLMoeTextConfig(
        hidden_size=32, intermediate_size=48, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16, vocab_size=50,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
    )  # fmt: skip
    torch.manual_seed(0)
    exact = Qwen3VLMoeTextModel(config).eval().requires_grad_(False)
    decoder = copy.deepcopy(exact).to("meta")
    make_quantized(decoder, kind)
    for name, parameter in exact.named_parameters():  # as transformers reads them
        parent, _, own = name.rpartition(".")
        setattr(decoder.get_submodule(parent), own, nn.Parameter(parameter.clone(), requires_grad=False))
    decoder.rotary_emb = exact.rotary_emb
    experts = decoder.layers[0].mlp.experts
    assert type(experts).__name__ == "Qwen3VLMoeTextExperts" and "gate_up_proj" not in experts._parameters
    assert experts.gate_up_proj.shape == exact.layers[0].mlp.experts.gate_up_proj.shape
    for own, module in zip(decoder.layers.modules(), exact.layers.modules(), strict=True):
        for name in getattr(own, "tables", ()):
            setattr(module, name, nn.Parameter(getattr(own, name), requires_grad=False))
    inputs = torch.randn(1, 6, 32)
    found, expected = (m(inputs_embeds=inputs, use_cache=False).last_hidden_state for m in (decoder, exact))
    assert torch.allclose(found, expected, atol=1e-6)


def test_without_quantization_nothing_changes():
    decoder = nn.Module()
    decoder.layers = nn.ModuleList([nn.Linear(4, 4)])
    make_quantized(decoder, "none")
    assert type(decoder.layers[0]) is nn.Linear
