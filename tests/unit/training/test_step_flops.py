"""The operations that plans and logs count for VLMs without a formula, against what torch counts while they run."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.random_vlm import draw_part, make_vlm
from masp.models.forward import Stage1Model, Stage2Model
from masp.models.restarts import HandedModule, RestartModel
from masp.models.sequence import build_sequence, make_batch
from masp.models.trainable import AspectModules, SoftPrompt
from masp.training.steps import batch_flops
from masp.vlm.cost.counting import encoder_curve, language_cost
from masp.vlm.features import Features
from masp.vlm.language import LanguageHalf
from masp.vlm.preprocessor import load_preprocessor
from masp.vlm.processor import blank
from masp.vlm.prompt import load_prompt
from masp.vlm.vision import VisionHalf

ASPECTS = ("scene", "object")
NUM_QUERIES, NUM_SOFT_TOKENS = 5, 8
SIZES = ((112, 84), (300, 200), (500, 120))


@pytest.fixture(scope="module", params=["qwen3-vl-8b", "internvl3-8b", "gemma3-4b"])
def vlm(request, tmp_path_factory):
    return str(make_vlm(tmp_path_factory.mktemp("vlm") / request.param, request.param, None, "tiny"))


def counted(function) -> float:
    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops())


def half_of(vlm, part):
    # eager attention runs as plain matrix products, which torch counts
    return draw_part(vlm, part, torch.float32, "cpu", "eager")


def test_the_curve_of_an_encoder_is_what_it_takes(vlm):
    preprocessor, half = load_preprocessor(vlm), VisionHalf(half_of(vlm, "vision"))
    prepared = {size: preprocessor(blank(*size)) for size in SIZES}
    amounts = {size: float(inputs["pixel_values"].numel()) for size, (inputs, _) in prepared.items()}
    curve = encoder_curve(vlm, [(amounts[size], size) for size in SIZES], lambda *size: prepared[size])
    assert not curve.is_estimate
    for size, (inputs, layout) in prepared.items():
        taken = counted(lambda inputs=inputs, layout=layout: half.encode([inputs], [layout]))
        assert curve.flops(amounts[size]) == pytest.approx(taken, rel=1e-3)


def batch_of(vlm, first: bool, width: int, num_deep: int):
    """A batch without padding, whose rows are equally long."""
    prompt, (_, layout) = load_prompt(vlm), load_preprocessor(vlm)(blank(112, 84))
    generator = torch.Generator().manual_seed(0)

    def features():
        shape = (layout.num_tokens, width)
        deep = torch.randn(num_deep, *shape, generator=generator) if num_deep else None
        return Features(torch.randn(shape, generator=generator), deep)

    sequence = build_sequence(
        prompt, "Which emotion does this picture evoke?", "awe", image=None if first else layout, layout="after_image",
        num_aspect_tokens=NUM_QUERIES * (1 if first else len(ASPECTS)), num_soft_tokens=0 if first else NUM_SOFT_TOKENS,
    )  # fmt: skip
    images = [features(), features()]
    if not first:
        return make_batch(prompt, [sequence] * 2, images, row_image=[0, 1])
    return make_batch(prompt, [sequence] * 4, images, row_image=[0, 0, 1, 1], row_aspect=[0, 1, 0, 1])


def masked_pairs(batch) -> float:
    """Pairs of a query and a later key, which eager attention multiplies and then masks: those of the prefix once,
    those of the suffix forward and twice that backward."""
    rows, suffix = batch.suffix.mask.shape
    prefix_rows, prefix = batch.prefix.mask.shape
    return 3 * rows * suffix * (suffix - 1) / 2 + prefix_rows * prefix * (prefix - 1) / 2


@pytest.mark.parametrize("first", [True, False], ids=["stage1", "stage2"])
def test_a_step_takes_what_is_logged(vlm, first):
    language, cost = LanguageHalf(half_of(vlm, "language")), language_cost(vlm)
    assert not getattr(cost, "is_estimate", True)
    modules = AspectModules(ASPECTS, language.hidden_size, NUM_QUERIES).requires_grad_(first)
    batch = batch_of(vlm, first, language.hidden_size, num_deep=1 if "qwen3" in vlm else 0)
    soft_prompt = SoftPrompt(torch.randn(NUM_SOFT_TOKENS, language.hidden_size))
    model = Stage1Model(language, modules) if first else Stage2Model(language, modules, soft_prompt)
    taken = counted(lambda: model(batch).sum().backward())
    planned = batch_flops(cost, batch, NUM_QUERIES, len(ASPECTS))
    masked = sum(kind.flops for kind in cost.pairs) * masked_pairs(batch)
    assert planned + masked == pytest.approx(taken, rel=0.01)
    assert planned > 0.6 * taken


def test_restarts_take_what_is_logged(vlm):
    language, cost = LanguageHalf(half_of(vlm, "language")), language_cost(vlm)
    modules = [AspectModules(ASPECTS, language.hidden_size, NUM_QUERIES, kind=HandedModule) for _ in range(3)]
    model, batch = RestartModel(language, modules), batch_of(vlm, True, language.hidden_size, num_deep=0)

    def step():
        with torch.no_grad():
            prefix = model(batch)
        for number in range(3):
            model(batch, number, prefix).sum().backward()

    taken, suffix = counted(step), batch.suffix.mask.shape
    more = 2 * 3 * suffix[0] * suffix[1] * (suffix[1] - 1) / 2  # pairs that eager attention multiplies and masks
    masked = sum(kind.flops for kind in cost.pairs) * (masked_pairs(batch) + more)
    assert batch_flops(cost, batch, NUM_QUERIES, len(ASPECTS), 3) + masked == pytest.approx(taken, rel=0.01)
