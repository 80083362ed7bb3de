"""Several weighted answers in one pass: losses and gradients of as many single passes, in every layout."""

import pytest
import torch

from masp.models.candidates import answer_block, weigh_answers
from masp.models.forward import Stage2Model, num_logits
from masp.models.sequence import LAYOUTS, build_sequence, make_batch
from masp.models.trainable import AspectModules, SoftPrompt
from masp.models.weighted import make_weighted_batch
from masp.vlm.features import Features
from masp.vlm.language import load_language_half
from masp.vlm.prompt import load_prompt
from tests.tiny import FAMILIES, layout_of, make_vlm

GRIDS = [(1, 4, 4), (1, 2, 6), (1, 6, 4)]
CATEGORIES = ("sad", "sadness", "fear", "awe", "sad fear anger")
VOTES = [(0.5, 0.2, 0.0, 0.2, 0.1), (0.0, 0.0, 1.0, 0.0, 0.0), (0.1, 0.3, 0.0, 0.0, 0.6)]
NUM_SOFT = 5


@pytest.fixture(scope="module", params=FAMILIES)
def parts(request, tmp_path_factory):
    folder = str(make_vlm(tmp_path_factory.mktemp("vlm") / request.param, request.param))
    language, prompt = load_language_half(folder), load_prompt(folder)
    torch.manual_seed(1)
    modules, soft = AspectModules(["scene"], language.hidden_size, 3), torch.randn(NUM_SOFT, language.hidden_size)
    features = [Features(torch.randn(h * w // 4, language.hidden_size)) for _, h, w in GRIDS]
    return folder, language, prompt, modules, soft, features


def model_of(parts, layout, language=None):
    _, own, prompt, modules, soft, _ = parts
    count = num_logits(layout, prompt, own.vocab_size, NUM_SOFT)
    return Stage2Model(language or own, modules, SoftPrompt(soft), count)


def sequence(parts, layout, row, answer):
    return build_sequence(
        parts[2], f"Which emotion? {'really ' * row}", answer, num_aspect_tokens=3, image=layout_of(GRIDS[row]),
        num_soft_tokens=NUM_SOFT, layout=layout,
    )  # fmt: skip


def weighted_batch(parts, layout, rows=(0, 1, 2), **settings):
    return make_weighted_batch(
        parts[2],
        lambda image, answer: sequence(parts, layout, rows[image], answer),
        [dict(zip(CATEGORIES, VOTES[row], strict=True)) for row in rows],
        [parts[5][row] for row in rows],
        weights=[1.0] * len(rows),
        layout=layout,
        **settings,
    )


def by_hand(parts, layout, row):
    """Loss and gradient as a sum over single passes, one per category."""
    model, prompt, features = model_of(parts, layout), parts[2], parts[5]
    total = torch.zeros(())
    for category, probability in zip(CATEGORIES, VOTES[row], strict=True):
        single = make_batch(prompt, [sequence(parts, layout, row, category)], [features[row]], row_image=[0])
        total = total + probability * model(single)[0]
    total.backward()
    return total.detach(), model.soft_prompt.weight.grad


def run(model, batch):
    losses = model(batch)
    losses.sum().backward()
    return losses.detach(), model.soft_prompt.weight.grad


@pytest.mark.parametrize("frozen_prefix", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_pass_equals_the_sum_of_single_passes(parts, layout, frozen_prefix):
    expected = [by_hand(parts, layout, row) for row in range(3)]
    losses, gradient = run(model_of(parts, layout), weighted_batch(parts, layout, frozen_prefix=frozen_prefix))
    assert torch.allclose(losses, torch.stack([loss for loss, _ in expected]), atol=1e-5)
    assert torch.allclose(gradient, sum(grad for _, grad in expected), atol=1e-5) and gradient.abs().max() > 1e-3


@pytest.mark.parametrize("frozen_prefix", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layers_that_run_again_in_the_backward_pass_give_the_same(parts, layout, frozen_prefix):
    again = load_language_half(parts[0])
    again.recompute_layers()
    one = run(model_of(parts, layout), weighted_batch(parts, layout, frozen_prefix=frozen_prefix))
    other = run(model_of(parts, layout, again), weighted_batch(parts, layout, frozen_prefix=frozen_prefix))
    assert torch.allclose(one[0], other[0], atol=1e-6) and torch.allclose(one[1], other[1], atol=1e-6)


def test_a_sample_does_not_depend_on_its_neighbors(parts):
    together = run(model_of(parts, "after_image"), weighted_batch(parts, "after_image"))
    alone = [run(model_of(parts, "after_image"), weighted_batch(parts, "after_image", [row])) for row in range(3)]
    assert torch.allclose(together[0], torch.cat([loss for loss, _ in alone]), atol=1e-5)
    assert torch.allclose(together[1], sum(grad for _, grad in alone), atol=1e-5)


def test_rows_of_one_image_share_its_prefix(parts, monkeypatch):
    """As where layers keep a state, which cannot branch: a row per answer, whose weight is its probability."""
    monkeypatch.setattr("masp.vlm.families.Family.has_tree", False)
    batch = weighted_batch(parts, "after_image")
    images = [row for row in range(3) for p in VOTES[row] if p]
    assert len(batch.prefix.ids) == 3 and batch.prefix_row.tolist() == batch.row_image.tolist() == images
    assert batch.weights.tolist() == pytest.approx([p for votes in VOTES for p in votes if p])
    model = model_of(parts, "after_image")
    losses = model(batch) * batch.weights
    losses.sum().backward()
    expected = [by_hand(parts, "after_image", row) for row in range(3)]
    sums = torch.zeros(3).index_add(0, batch.row_image, losses.detach())
    assert torch.allclose(sums, torch.stack([loss for loss, _ in expected]), atol=1e-5)
    assert torch.allclose(model.soft_prompt.weight.grad, sum(grad for _, grad in expected), atol=1e-5)


def test_what_predicts_what():
    """Two answers that begin alike: what they share is predicted once, with both of their shares."""
    weighted = weigh_answers([((5, 6), 0.5), ((5,), 0.25), ((8, 9, 9), 0.25), ((7,), 0.0)], end=2)
    assert weighted.tree.ids.tolist() == [5, 6, 8, 9, 9]
    assert weighted.shares == pytest.approx(
        {
            (-1, 5): 0.5 / 3 + 0.25 / 2, (0, 6): 0.5 / 3, (1, 2): 0.5 / 3, (0, 2): 0.25 / 2,
            (-1, 8): 0.25 / 4, (2, 9): 0.25 / 4, (3, 9): 0.25 / 4, (4, 2): 0.25 / 4,
        }
    )  # fmt: skip
    assert sum(weighted.shares.values()) == pytest.approx(1.0)
    released = weigh_answers([((5, 6), 0.5), ((5,), 0.5)], end=None, lead=3)
    assert released.shares == pytest.approx({(-2, 3): 0.5 / 3 + 0.5 / 2, (-1, 5): 0.5 / 3 + 0.5 / 2, (0, 6): 0.5 / 3})
    block = answer_block([weighted, released], [7, 4])
    assert block.mask.sum(1).tolist() == [5, 2] and block.ids[1].tolist() == [5, 6, 0, 0, 0]
    places = list(zip(block.rows.tolist(), block.columns.tolist(), strict=True))
    assert sorted(places) == [(0, 6), (0, 7), (0, 8), (0, 9), (0, 10), (0, 11), (1, 2), (1, 3), (1, 7)]
    assert block.target_share.sum().item() == pytest.approx(2.0)
