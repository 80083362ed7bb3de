"""What an optimizer step reads: each image once per epoch, equal questions on any number of ranks, weights that sum."""

import copy
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from masp.cache.reader import open_cache
from masp.data.questions import questions_of
from masp.errors import InputError
from masp.training.schedule import learning_rate
from masp.training.stages import STAGES
from masp.training.steps import Steps
from masp.vlm.prompt import load_prompt


@pytest.fixture(scope="module")
def make_steps(config):
    cache, prompt, questions = (
        open_cache(config.cache.dir),
        load_prompt(config.vlm.path),
        questions_of(config),
    )

    def make(stage: str, rank: int = 0, num_ranks: int = 1, config=config) -> Steps:
        return Steps(STAGES[stage](config, cache, questions), prompt, rank, num_ranks)

    return make


def rows_of(batch) -> list[tuple]:
    """What identifies each row of weight one: its tokens, what is supervised, and its image's features."""
    found = []
    for row in range(len(batch.weights)):
        if batch.weights[row] == 0:
            continue
        image = batch.row_image[row]
        features = batch.features[image][batch.feature_mask[image]]
        tokens = batch.suffix.ids[row][batch.suffix.mask[row]].tolist()
        aspect = -1 if batch.row_aspect is None else int(batch.row_aspect[row])
        found.append(
            (aspect, tuple(tokens), tuple(batch.labels[row][batch.suffix.mask[row]].tolist()), features.sum().item())
        )
    return found


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("stage", STAGES)
def test_ranks_share_a_step_and_ask_the_same_questions(make_steps, stage, num_ranks):
    alone, ranks = make_steps(stage), [make_steps(stage, rank, num_ranks) for rank in range(num_ranks)]
    for number in range(len(alone)):
        expected, steps = alone[number], [steps[number] for steps in ranks]
        together = [row for step in steps for batch in step.batches for row in rows_of(batch)]
        assert Counter(together) == Counter(row for batch in expected.batches for row in rows_of(batch))
        assert len({len(step.batches) for step in steps}) == 1  # or a collective would wait for ever
        assert {step.total_weight for step in steps} == {expected.total_weight}
        weights = sum(float(batch.weights.sum()) for step in steps for batch in step.batches)
        assert weights == expected.total_weight == len(together)
        assert all(len(batch.weights) and batch.features.isfinite().all() for step in steps for batch in step.batches)
        assert all(len(batch.feature_mask) <= 2 for step in steps for batch in step.batches)  # micro_batch_size


@pytest.mark.parametrize("stage", STAGES)
def test_each_image_once_per_epoch(make_steps, stage):
    steps = make_steps(stage)
    per_epoch, num_rows = steps.schedule.steps_per_epoch, len(steps.schedule.rows)
    assert len(steps) == 2 * per_epoch
    epochs = [np.concatenate([steps.rows_of(e * per_epoch + k) for k in range(per_epoch)]) for e in range(2)]
    for rows in epochs:
        assert sorted(rows) == sorted(steps.schedule.rows) and len(rows) == num_rows
    assert list(epochs[0]) != list(epochs[1])
    # stage 1 leaves out images that are not annotated
    assert num_rows == (8 if stage == "stage1" else 13)
    assert len(steps.rows_of(per_epoch - 1)) == num_rows % 5


def test_a_row_of_stage_1_per_annotated_aspect(make_steps):
    steps = make_steps("stage1")
    assert set(steps.schedule.weights.tolist()) == {3}
    asked = Counter(aspect for k in range(2) for batch in steps[k].batches for aspect, *_ in rows_of(batch))
    assert asked == {0: 8, 1: 8, 2: 8}


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_position_may_be_a_pair(make_steps, config, num_ranks):
    other = copy.deepcopy(config)
    other.stage1 = replace(other.stage1, position="pair", global_batch_size=5, micro_batch_size=1)
    whole = make_steps("stage1")
    ranks = [make_steps("stage1", rank, num_ranks, other) for rank in range(num_ranks)]
    schedule = ranks[0].schedule
    assert len(schedule.rows) == 8 * 3 and schedule.steps_per_epoch == 5 and set(schedule.weights.tolist()) == {1}
    for epoch in range(2):
        seen, rows = Counter(), Counter()
        for number in range(epoch * 5, epoch * 5 + 5):
            steps = [one[number] for one in ranks]
            assert len({len(step.batches) for step in steps}) == 1
            assert {step.total_weight for step in steps} == {len(ranks[0].rows_of(number))}
            seen.update(key for step in steps for key in step.own_keys())
            asked = [row for step in steps for batch in step.batches for row in rows_of(batch)]
            rows.update(asked)
            absent = {name for number, name in enumerate(config.aspects) if number not in {row[0] for row in asked}}
            assert all(set(step.absent) == absent for step in steps)
        expected = [whole[epoch * 2 + k] for k in range(2)]  # the questions of the same images and epoch
        assert rows == Counter(row for step in expected for batch in step.batches for row in rows_of(batch))
        keys = {key for step in expected for key in step.own_keys()}
        assert seen == Counter(f"{key}#{aspect}" for key in keys for aspect in config.aspects)
    assert len(set(ranks[0].rows_of(0).tolist())) > 2  # pairs of an image are not together


def test_pairs_are_held_out_by_image(make_steps, config):
    other = copy.deepcopy(config)
    other.stage1 = replace(other.stage1, position="pair", validate_every=1, validation_size=3)
    schedule = make_steps("stage1", config=other).schedule
    assert len(schedule.held_out.rows) == 3 and schedule.held_out.aspects is None
    assert len(schedule.rows) == 5 * 3 and not set(schedule.rows) & set(schedule.held_out.rows)


@pytest.mark.parametrize(("num_steps", "ratio"), [(100, 0.03), (33, 0.1), (7, 1.0), (1, 1.0), (1, 0.0), (10, 0.0)])
def test_the_published_learning_rate_is_that_of_transformers(config, num_steps, ratio):
    from transformers import get_linear_schedule_with_warmup

    stage = replace(config.stage1, learning_rate=2.0, warmup_ratio=ratio, schedule="published")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    theirs = get_linear_schedule_with_warmup(optimizer, math.ceil(num_steps * ratio), num_steps)
    for step in range(num_steps):
        assert learning_rate(step, num_steps, stage) == theirs.get_last_lr()[0]
        optimizer.step()
        theirs.step()


def test_the_seed_and_the_epoch_change_order_and_questions(make_steps, config):
    other = copy.deepcopy(config)
    other.seed += 1
    one, two = make_steps("stage2"), make_steps("stage2", config=other)
    assert list(one.rows_of(0)) != list(two.rows_of(0))
    words = [
        {row[1] for k in range(3) for b in steps[k + e * 3].batches for row in rows_of(b)}
        for steps in (one, two)
        for e in range(2)
    ]
    assert len({frozenset(w) for w in words}) == 4
    again = make_steps("stage2")[4]
    assert all(torch.equal(a.suffix.ids, b.suffix.ids) for a, b in zip(again.batches, one[4].batches, strict=True))


def test_nothing_to_learn_from(make_steps, config):
    other = copy.deepcopy(config)
    other.aspects = ["human_action"]
    with pytest.raises(InputError, match="no training image is annotated with any of human_action"):
        make_steps("stage1", config=other)


def test_a_token_budget_cuts_micro_batches(make_steps, config):
    other = copy.deepcopy(config)
    other.stage2.micro_batch_size, other.stage2.micro_batch_tokens = 8, 1
    steps = make_steps("stage2", config=other)
    assert [len(batch.weights) for batch in steps[0].batches] == [1] * 5
    other.stage2.micro_batch_tokens = 10**6
    assert [len(batch.weights) for batch in steps[0].batches] == [5]


@pytest.mark.parametrize(
    ("num_steps", "ratio", "warmup"), [(100, 0.03, 3), (10, 0.0, 0), (7, 1.0, 6), (1, 1.0, 0), (1, 0.0, 0)]
)
def test_learning_rate_rises_then_falls_linearly_and_is_never_zero(config, num_steps, ratio, warmup):
    stage = copy.deepcopy(config.stage1)
    stage.learning_rate, stage.warmup_ratio = 2.0, ratio
    rates = [learning_rate(step, num_steps, stage) for step in range(num_steps)]
    assert all(0 < rate <= 2.0 for rate in rates)
    assert rates.index(max(rates)) == warmup and rates[warmup] == 2.0
    assert np.allclose(np.diff(rates[: warmup + 1]), 2.0 / (warmup + 1))
    assert np.allclose(np.diff(rates[warmup:]), -2.0 / (num_steps - warmup))
    assert learning_rate(num_steps, num_steps, stage) == 0
