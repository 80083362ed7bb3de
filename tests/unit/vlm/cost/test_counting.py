"""What is counted without weights against what torch counts while real models run."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from masp.vlm.cost import counting
from masp.vlm.cost.counting import encoder_curve, language_cost
from masp.vlm.cost.flops import EncoderCurve, LanguageCost, PairCost, encoder_flops, language_flops, shapes
from masp.vlm.families import load_config
from masp.vlm.preprocessor import load_preprocessor
from masp.vlm.processor import blank
from masp.vlm.vision import load_vision_half
from tests.tiny import FAMILIES, make_vlm


@pytest.fixture(scope="module", params=FAMILIES)
def vlm(request, tmp_path_factory):
    return make_vlm(tmp_path_factory.mktemp("vlm") / request.param, request.param)


@pytest.mark.parametrize("gradient", [False, True])
def test_the_count_of_a_known_family_is_its_formula(vlm, monkeypatch, gradient):
    monkeypatch.setattr(counting, "KNOWN", ())
    counted, (_, known) = language_cost.__wrapped__(vlm), shapes(load_config(vlm))
    assert isinstance(counted, LanguageCost) and not counted.is_estimate
    work = {"prefix": 20, "suffix": 17, "num_logits": 5, "gradient": gradient}
    assert language_flops(counted, **work) == language_flops(known, **work)


def test_the_curve_of_an_encoder_is_what_it_takes(vlm):
    preprocessor, half = load_preprocessor(str(vlm)), load_vision_half(vlm, attention="eager")
    sizes = [(56, 56), (140, 84), (308, 196), (252, 140)]
    images = [(torch.Size(preprocessor.grid(*size)).numel(), size) for size in sizes]
    curve = encoder_curve(vlm, images, lambda *size: preprocessor(blank(*size)))
    assert not curve.is_estimate
    for amount, size in images:
        inputs, layout = preprocessor(blank(*size))
        with FlopCounterMode(display=False) as counter:
            half.encode([inputs], [layout])
        assert curve.flops(amount) == pytest.approx(counter.get_total_flops(), rel=1e-6)
        assert curve.flops(amount) == pytest.approx(encoder_flops(shapes(load_config(vlm))[0], layout.grid), rel=1e-6)


def test_windows_and_chunks_limit_the_pairs():
    def pairs(**limit):
        cost = LanguageCost(8, 8, 0.0, 0.0, (PairCost(1.0, **limit),), is_estimate=False)
        whole = language_flops(cost, prefix=7, suffix=5, gradient=False)
        split = torch.tensor([7.0]), torch.tensor([5.0])
        assert language_flops(
            cost, prefix=split[0], suffix=split[1], num_logits=torch.zeros(1), gradient=False
        ).tolist() == [whole]
        return whole

    assert pairs() == sum(range(1, 13))
    assert pairs(window=4) == 1 + 2 + 3 + 9 * 4
    assert pairs(chunk=5) == 2 * (1 + 2 + 3 + 4 + 5) + 1 + 2


def test_between_two_sizes_a_square_is_exact():
    curve = EncoderCurve(tuple((x, 3.0 + 2.0 * x) for x in (10.0, 40.0)), is_estimate=False)
    assert curve.flops(25) == 25 * 53 and curve.flops(80) == 80 * 163
