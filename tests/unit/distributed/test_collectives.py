"""With one rank every collective is the value itself; several ranks: tests/distributed."""

import pytest
import torch

from masp.distributed.collectives import (
    any_rank,
    barrier,
    broadcast,
    check_agreed,
    gather,
    on_rank_0,
    sum_floats,
    sum_integers,
    sum_tensor,
)
from masp.distributed.ranks import Ranks


def test_one_rank_needs_no_process_group(monkeypatch):
    # An earlier test of this process may have left one.
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: False)
    barrier()
    assert sum_integers([2**62, -1]) == [2**62, -1]
    assert sum_floats([0.1]) == [0.1]
    assert torch.equal(sum_tensor(torch.arange(3)), torch.arange(3))
    assert broadcast({"a": 1}) == {"a": 1} and gather("b") == ["b"]
    assert any_rank(True) and not any_rank(False)
    check_agreed([3, -4, 0], "what", "cpu")


def test_what_rank_0_raises_is_raised():
    done = []
    on_rank_0(Ranks(), "cpu", lambda: done.append(1))
    assert done == [1]
    with pytest.raises(KeyError, match="bug"):
        on_rank_0(Ranks(), "cpu", lambda: {}["bug"])
