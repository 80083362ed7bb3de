"""Learning distributions: the loss of all categories, a drawn answer, and what is refused or said."""

import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from masp.cache.reader import open_cache
from masp.data.questions import drawn_category, questions_of
from masp.errors import InputError
from masp.models.sequence import IGNORED
from masp.training.stages import STAGES, open_stage
from masp.training.steps import HeldOutSteps, Steps
from masp.training.supervision import more_tokens, weights_of
from masp.vlm.prompt import load_prompt
from tests.votes import cache_with_votes


@pytest.fixture(scope="module")
def voted(config, tmp_path_factory):
    """A configuration whose cache has distributions, without aspect modules."""
    config = copy.deepcopy(config)
    config.cache.dir = str(cache_with_votes(Path(config.cache.dir), tmp_path_factory.mktemp("votes") / "cache"))
    config.checkpoint.aspect = "none"
    config.stage2 = replace(config.stage2, supervision="distribution", learning_rate=0.01)
    return config


def changed(config, **settings):
    config = copy.deepcopy(config)
    config.stage2 = replace(config.stage2, **settings)
    return config


def steps_of(config, rank=0, num_ranks=1, kind=Steps):
    stage = STAGES["stage2"](config, open_cache(config.cache.dir), questions_of(config))
    return kind(stage, load_prompt(config.vlm.path), rank, num_ranks)


def loss_of(config, number=0, num_ranks=1):
    """Loss and gradient of a step, summed over ranks."""
    model, _ = open_stage("stage2", config, "cpu").build("cpu")
    total = torch.zeros(())
    for rank in range(num_ranks):
        step = steps_of(config, rank, num_ranks)[number]
        for batch in step.batches:
            total = total + (model(batch) * batch.weights).sum() / step.total_weight
    total.backward()
    return total.detach(), model.soft_prompt.weight.grad


def test_the_loss_of_a_step_is_the_weighted_sum_over_categories(voted):
    """Against steps whose labels are changed to each category in turn, and the samples weighted by hand."""
    loss, gradient = loss_of(voted)
    steps = steps_of(voted)
    stage, cache = steps.stage, steps.stage.cache
    rows = steps.rows_of(0)
    samples = [cache.read(row) for row in rows]
    assert any(s.distribution is None for s in samples) and any(s.distribution for s in samples)
    model, prompt = open_stage("stage2", voted, "cpu").build("cpu")
    stage.settings = replace(stage.settings, supervision="label")
    total = torch.zeros(())
    for category in cache.categories:
        weights = [weights_of(sample, cache.categories).get(category, 0.0) for sample in samples]
        told = [replace(sample, category=category) for sample in samples]
        batch = stage.batch(prompt, list(rows), told, weights, 0)
        total = total + (model(batch) * batch.weights).sum() / len(rows)
    total.backward()
    assert abs(float(loss - total.detach())) < 1e-5
    assert torch.allclose(gradient, model.soft_prompt.weight.grad, atol=1e-5) and gradient.abs().max() > 1e-4


@pytest.mark.parametrize("has_tree", [True, False])
def test_any_number_of_ranks_and_micro_batches_has_the_same_loss(voted, has_tree, monkeypatch):
    expected = loss_of(voted)
    monkeypatch.setattr("masp.vlm.families.Family.has_tree", has_tree)
    for num_ranks, size in ((1, 5), (2, 2), (3, 1)):
        loss, gradient = loss_of(changed(voted, micro_batch_size=size), num_ranks=num_ranks)
        assert abs(float(loss - expected[0])) < 1e-5
        assert torch.allclose(gradient, expected[1], atol=1e-5)


def test_what_a_step_says_of_itself(voted, monkeypatch):
    one, tree = steps_of(changed(voted, supervision="label"))[0], steps_of(voted)[0]
    monkeypatch.setattr("masp.vlm.families.Family.has_tree", False)
    many = steps_of(voted)[0]
    assert one.own_keys() != () and set(one.own_keys()) == set(tree.own_keys()) == set(many.own_keys())
    assert one.total_weight == tree.total_weight == many.total_weight == 5
    for step in (one, tree, many):
        assert sum(float(batch.weights.sum()) for batch in step.batches) == pytest.approx(5)
        losses = [torch.ones(len(batch.weights)) for batch in step.batches]
        assert {key for key, is_finite in step.finite_keys(losses) if is_finite} == set(step.own_keys())
    answers = sum(int((batch.labels != IGNORED).sum()) for batch in one.batches)
    nodes = sum(int(batch.answers.mask.sum()) for batch in tree.batches)
    assert tree.num_tokens - nodes == one.num_tokens - answers  # all before the answers, whose last token is not run
    assert one.num_tokens < tree.num_tokens < many.num_tokens and one.flops < tree.flops < many.flops


def test_drawn_answers_come_as_often_as_their_probabilities():
    categories, votes = ("awe", "fear", "joy", "calm"), (0.5, 0.2, 0.0, 0.3)
    draws = [drawn_category(categories, votes, 7, epoch, "train/a") for epoch in range(20_000)]
    counts = Counter(draws)
    assert "joy" not in counts
    for category, p in zip(categories, votes, strict=True):
        assert abs(counts[category] / 20_000 - p) < 4 * (p * (1 - p) / 20_000) ** 0.5 + 1e-9
    again = [drawn_category(categories, votes, 7, epoch, "train/a") for epoch in range(9)]
    assert draws[:9] == again
    for other in ((8, "train/a"), (7, "train/b")):
        assert draws[:100] != [drawn_category(categories, votes, other[0], epoch, other[1]) for epoch in range(100)]
    assert {drawn_category(("a", "b"), (0.0, 1.0), 1, epoch, "k") for epoch in range(50)} == {"b"}


def answers_in(steps, step):
    """Sample key -> text of its one answer."""
    found = {}
    for batch, keys in zip(step.batches, step.keys, strict=True):
        for row, key in enumerate(keys):
            labels = batch.labels[row]
            found[key] = steps.prompt.decode(labels[labels != IGNORED].tolist()).strip()
    return found


def test_drawn_answers_depend_on_neither_rank_nor_micro_batch(voted):
    config = changed(voted, distribution_loss="drawn", num_epochs=12)
    alone, cache = steps_of(config), open_cache(config.cache.dir)
    seen: dict[str, Counter[str]] = {}
    for number in range(len(alone)):
        found = answers_in(alone, alone[number])
        if number < 3:
            ranks = [steps_of(changed(config, micro_batch_size=1), rank, 2) for rank in range(2)]
            shares = [answers_in(steps, steps[number]) for steps in ranks]
            assert {key: answer for share in shares for key, answer in share.items() if key is not None} == found
        for key, answer in found.items():
            seen.setdefault(key, Counter())[answer] += 1
    assert all(sum(counts.values()) == 12 for counts in seen.values())
    for key, counts in seen.items():
        sample = cache.read(cache.row_of(key))
        assert set(counts) <= set(weights_of(sample, cache.categories))
        if sample.distribution is None:
            assert set(counts) == {sample.category}
    assert any(len(counts) > 1 for counts in seen.values())


def test_held_out_images_are_measured_over_all_categories(voted):
    """Whatever training draws: the loss of an image must not change from one validation to the next by a draw."""
    config = changed(voted, distribution_loss="drawn", validate_every=1, validation_size=4)
    drawn = steps_of(config, kind=HeldOutSteps)
    weighted = steps_of(changed(config, distribution_loss="weighted"), kind=HeldOutSteps)
    model, _ = open_stage("stage2", config, "cpu").build("cpu")
    losses = []
    with torch.no_grad():
        for steps in (drawn, weighted):
            losses.append(sum(float((model(b) * b.weights).sum()) for k in range(len(steps)) for b in steps[k].batches))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert all(batch.answers is not None for batch in drawn[0].batches)


def test_the_identity_names_targets_only_where_they_are_no_labels(voted):
    label = open_stage("stage2", changed(voted, supervision="label"), "cpu").identity()
    for loss in ("weighted", "drawn"):
        found = open_stage("stage2", changed(voted, distribution_loss=loss), "cpu").identity()
        assert {key: found[key] for key in set(found) - set(label)} == {
            "stage2.supervision": "distribution",
            "stage2.distribution_loss": loss,
        }
    assert (
        open_stage("stage2", changed(voted, supervision="label", distribution_loss="drawn"), "cpu").identity() == label
    )


def test_a_cache_without_distributions_is_refused(config):
    config = changed(config, supervision="distribution")
    config.checkpoint.aspect = "none"
    with pytest.raises(InputError) as caught:
        open_stage("stage2", config, "cpu")
    assert str(caught.value) == (
        f"stage2.supervision = 'distribution': no training image in cache.dir: {config.cache.dir} has a distribution "
        "over the categories, only a label; give stage2.supervision=label, or a cache of a dataset with votes"
    )


def test_how_many_are_trained_on_their_label_is_said(voted):
    stage = open_stage("stage2", voted, "cpu")
    rows = stage.schedule.rows
    without = [stage.cache.read(row).distribution is None for row in rows]
    assert 0 < sum(without) < len(rows)
    [note] = [note for note in stage.notes() if "distribution" in note]
    assert f"{sum(without)} of {len(rows)} training images have no distribution over the categories" in note
    assert not [
        n for n in open_stage("stage2", changed(voted, supervision="label"), "cpu").notes() if "distribution" in n
    ]


def test_the_token_budget_counts_the_answers(voted, monkeypatch):
    prompt, categories = load_prompt(voted.vlm.path), ("awe", "fear", "fear of heights")
    nodes = len(prompt.answer("awe")) + len(prompt.answer("fear of heights"))
    assert more_tokens(prompt, categories, 100) == nodes
    label, weighted = steps_of(changed(voted, supervision="label")), steps_of(voted)
    assert (weighted.schedule.lengths > label.schedule.lengths).all()
    monkeypatch.setattr("masp.vlm.families.Family.has_tree", False)
    assert more_tokens(prompt, categories, 100) == 200
