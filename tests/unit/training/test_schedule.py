"""The order of training is a permutation, and a step's plan loses and doubles nothing."""

import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masp.training.schedule import PADDING, epoch_order, plan_step


def index_of(shards):
    return types.SimpleNamespace(shard=np.asarray(shards, dtype="i4"))


@given(
    shards=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    window=st.integers(0, 12),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
def test_an_epoch_is_a_permutation_that_stays_within_windows(shards, window, seed, data):
    rows = data.draw(st.lists(st.sampled_from(range(len(shards))), min_size=1, unique=True))
    order = epoch_order(index_of(shards), np.array(rows), seed, 0, window)
    assert sorted(order) == sorted(rows)
    assert (order == epoch_order(index_of(shards), np.array(sorted(rows)), seed, 0, window)).all()
    if window:  # a window's shards are all read before another window begins
        visited = [shards[row] for row in order]
        present = len(set(visited))
        for start in range(0, present, window):
            names = list(dict.fromkeys(visited))[start : start + window]
            last = max(i for i, shard in enumerate(visited) if shard in names)
            assert set(visited[: last + 1]) == set(list(dict.fromkeys(visited))[: start + window])


def test_seeds_and_epochs_differ_and_the_order_is_pinned():
    index = index_of(np.repeat(np.arange(4), 3))
    rows = np.arange(12)
    first = epoch_order(index, rows, seed=1, epoch=0, window_shards=2)
    assert not (first == epoch_order(index, rows, 1, 1, 2)).all()
    assert not (first == epoch_order(index, rows, 2, 0, 2)).all()
    # a checkpoint names a position in this order, so another version of numpy must not change it
    assert first.tolist() == [4, 3, 2, 1, 5, 0, 10, 9, 8, 6, 11, 7]


def test_every_epoch_starts_with_each_shard_about_equally_often():
    index, rows = index_of(np.repeat(np.arange(5), 4)), np.arange(20)
    firsts = [int(index.shard[epoch_order(index, rows, 0, epoch, 1)[0]]) for epoch in range(500)]
    assert np.bincount(firsts, minlength=5).min() > 60


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=70),
    num_ranks=st.integers(1, 9),
    size=st.integers(1, 12),
    tokens=st.one_of(st.none(), st.integers(1, 1200)),
)
def test_a_plan_holds_each_position_once_and_keeps_its_budget(lengths, num_ranks, size, tokens):
    plan = plan_step(lengths, num_ranks, size, tokens)
    assert len(plan) == num_ranks
    assert len({len(rank) for rank in plan}) == 1
    groups = [group for rank in plan for group in rank]
    assert all(groups)
    positions = [p for group in groups for p in group]
    assert sorted(p for p in positions if p != PADDING) == list(range(len(lengths)))
    for group in groups:
        if PADDING in group:
            assert group == [PADDING]
            continue
        assert len(group) <= size
        assert len(group) == 1 or tokens is None or max(lengths[p] for p in group) * len(group) <= tokens
    if [PADDING] in groups:  # padding is the last resort
        assert all(len(group) == 1 for group in groups)
    assert plan == plan_step(lengths, num_ranks, size, tokens)


def test_similar_lengths_stand_together_and_ranks_share_the_work():
    lengths = [10, 100] * 8
    plan = plan_step(lengths, 2, 4, None)
    for rank in plan:
        assert len(rank) == 2
        assert all(len({lengths[p] for p in group}) == 1 for group in rank)
    costs = [sum(max(lengths[p] for p in g) * len(g) for g in rank) for rank in plan]
    assert costs[0] == costs[1]


@pytest.mark.parametrize(
    ("lengths", "num_ranks", "expected"),
    [
        ([900] * 24, 1, [12, 12]),  # where 18 would fit, and 6 be left
        ([900] * 24, 2, [12, 12]),
        ([900] * 24, 3, [8, 8, 8]),
        ([900] * 37, 1, [13, 13, 11]),
        ([900] * 12 + [300] * 20, 1, [12, 20]),  # by tokens, not by number
        ([20_000, *[100] * 30], 1, [1, 15, 15]),  # the first is alone, whatever the others have
    ],
)
def test_micro_batches_are_few_and_even(lengths, num_ranks, expected):
    plan = plan_step(lengths, num_ranks, 24, 16384)
    assert sorted((len(group) for rank in plan for group in rank), reverse=True) == sorted(expected, reverse=True)


def test_fewer_positions_than_ranks_are_padded():
    plan = plan_step([5, 7], 4, 8, 100)
    assert sorted(group[0] for rank in plan for group in rank) == [PADDING, PADDING, 0, 1]


@pytest.mark.parametrize(
    "arguments", [([], 1, 1, None), ([1], 0, 1, None), ([1], 1, 0, None), ([1], 1, 1, 0), ([1, 0], 1, 1, None)]
)
def test_what_makes_no_step_is_refused(arguments):
    with pytest.raises(ValueError, match="a step needs"):
        plan_step(*arguments)
