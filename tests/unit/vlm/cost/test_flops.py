"""The formulas against what torch counts while the real architectures run, and against known figures."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from masp.models.trainable import AspectModules
from masp.vlm.cost.flops import aspect_module_flops, encoder_flops, language_flops, peak_flops, shapes
from masp.vlm.features import ImageLayout
from masp.vlm.language import load_language_half
from masp.vlm.preprocessor import load_preprocessor
from masp.vlm.vision import load_vision_half
from tests.tiny import FAMILIES, make_vlm
from tests.vlm_sizes import real_config


@pytest.fixture(scope="module", params=FAMILIES)
def vlm(request, tmp_path_factory):
    return make_vlm(tmp_path_factory.mktemp("vlm") / request.param, request.param)


def counted(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("size", [(56, 56), (140, 84), (308, 196)])
def test_encoder_matches_what_torch_counts(vlm, size):
    # eager attention runs as plain matrix products, which torch counts; windows and frames are cut out for each
    half, preprocessor = load_vision_half(vlm, attention="eager"), load_preprocessor(str(vlm))
    grid = preprocessor.grid(*size)
    vision, _ = shapes(half.model.config)
    pixels = torch.zeros(grid[0] * grid[1] * grid[2], vision.patch_values)
    inputs = {"pixel_values": pixels, "image_grid_thw": torch.tensor([grid])}
    layout = ImageLayout(preprocessor.num_tokens(*size), grid)
    assert encoder_flops(vision, grid) == pytest.approx(counted(lambda: half.encode([inputs], [layout])), rel=1e-6)


def full_rectangle(language, prefix, suffix, gradient):
    """What eager attention computes beyond the formula: it multiplies later positions too, then masks them."""
    pair = 4 * language.num_layers * language.num_heads * language.head_width
    later = pair * suffix * (suffix - 1) / 2
    return (3 if gradient else 1) * later + pair * prefix * (prefix - 1) / 2


@pytest.mark.parametrize("prefix", [0, 24])
@pytest.mark.parametrize("gradient", [False, True])
def test_language_model_matches_what_torch_counts(vlm, prefix, gradient):
    half = load_language_half(str(vlm), attention="eager")
    _, language = shapes(half.model.config)
    suffix, supervised = 17, 5

    def run():
        cache = half.new_cache() if prefix else None
        mask = torch.ones(1, prefix + suffix, dtype=torch.bool)
        positions = torch.arange(prefix + suffix).expand(3, 1, -1)
        with torch.no_grad():
            if prefix:
                half(torch.randn(1, prefix, language.width), mask[:, :prefix], positions[..., :prefix], cache)
        with torch.set_grad_enabled(gradient):
            embeds = torch.randn(1, suffix, language.width, requires_grad=gradient)
            hidden = half(embeds, mask, positions[..., prefix:], cache)
            logits = half.logits(hidden[:, :supervised])
        if gradient:
            logits.sum().backward()

    expected = language_flops(language, prefix=prefix, suffix=suffix, num_logits=supervised, gradient=gradient)
    # torch's backward has no products for weights here, as they are frozen; rotary tables are the small rest
    assert expected + full_rectangle(language, prefix, suffix, gradient) == pytest.approx(counted(run), rel=2e-3)


@pytest.mark.parametrize("gradient", [False, True])
def test_aspect_modules_match_what_torch_counts(gradient):
    modules = AspectModules(["scene"], 64, num_queries=5).requires_grad_(gradient)
    features, mask = torch.randn(1, 40, 64), torch.ones(1, 40, dtype=torch.bool)

    def run():
        out = modules(features, mask)
        if gradient:
            out.sum().backward()

    assert aspect_module_flops(64, 5, 40, gradient) == pytest.approx(counted(run), rel=0.02)


def test_real_sizes():
    vision, language = shapes(real_config("Qwen2-VL-7B"))
    assert vision.num_parameters == pytest.approx(675e6, rel=0.005)
    assert language.num_parameters == pytest.approx(7.07e9, rel=0.005)
    assert shapes(real_config("Qwen2-VL-2B"))[1].num_parameters == pytest.approx(1.54e9, rel=0.005)
    assert shapes(real_config("Qwen2.5-VL-7B"))[0].num_parameters == pytest.approx(676e6, rel=0.005)


def test_windows_make_the_encoder_cheaper_and_are_cut_off_at_the_edges():
    whole, windowed = (shapes(real_config(name))[0] for name in ("Qwen2-VL-7B", "Qwen2.5-VL-7B"))
    grid = (1, 54, 74)
    assert windowed.window == 4 and windowed.num_full_blocks == 4
    assert encoder_flops(windowed, grid) < 0.8 * encoder_flops(whole, grid)
    # 27 x 37 vision tokens: rows 6 windows of 4 and one of 3, columns 9 of 4 and one of 1
    pairs = (6 * 8**2 + 6**2) * (9 * 8**2 + 2**2)
    full, linear = (
        4 * 3996**2,
        2 * (3996 * (32 * windowed.block_parameters + 1176 * 1280) + 999 * windowed.merger_parameters),
    )
    assert encoder_flops(windowed, grid) == pytest.approx(linear + 4 * 1280 * (full + 28 * pairs))


def test_round_figures_for_a_1024x768_image_with_qwen2_vl_7b():
    """999 vision tokens; encoder about 5.4 TFLOP; a stage-1 sample about 1.7; stage 2 about 32 in the full pass."""
    vision, language = shapes(real_config("Qwen2-VL-7B"))
    grid = (1, 54, 74)
    assert grid[1] * grid[2] // 4 == 999
    # without attention, 2 FLOP per parameter and patch; 4 per parameter and token under a gradient (docs/planning.md)
    assert 2 * 3996 * vision.num_parameters == pytest.approx(5.4e12, rel=0.01)
    assert 4 * 60 * language.num_parameters == pytest.approx(1.7e12, rel=0.01)
    # 999 vision tokens, all aspect tokens (30) and the soft prompt (32) beside the text (60)
    assert 4 * (60 + 999 + 30 + 32) * language.num_parameters == pytest.approx(32e12, rel=0.02)
    # counted properly: attention adds to the encoder; logits only where supervised and the frozen prefix save
    assert encoder_flops(vision, grid) == pytest.approx(7.75e12, rel=0.01)
    full = language_flops(language, suffix=1121, num_logits=3, gradient=True)
    assert full == pytest.approx(30.0e12, rel=0.01)
    prefix = 14 + 1 + 30 + 999 + 1
    halved = language_flops(language, prefix=prefix, suffix=1121 - prefix, num_logits=3, gradient=True)
    assert halved == pytest.approx(16.0e12, rel=0.02)


def test_the_peak_of_a_gpu_by_its_name():
    assert peak_flops("NVIDIA H100 PCIe", "bf16") == 756e12 and peak_flops("NVIDIA H100 80GB HBM3", "fp16") == 989e12
    assert peak_flops("NVIDIA L40S", "bf16") == 362e12 and peak_flops("NVIDIA GB200", "bf16") == 2500e12
    assert peak_flops("Tesla V100-SXM2-16GB", "fp16") == 125e12
    assert peak_flops("Tesla V100-SXM2-16GB", "bf16") is None  # it has none
    assert peak_flops("NVIDIA H100", "fp32") is None and peak_flops("another", "bf16") is None
