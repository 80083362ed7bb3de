"""Parameters are cut into equal parts and come back bit for bit; `tests/distributed` scores with several ranks."""

import pytest
import torch
from torch import nn

from masp.distributed.partition import FrozenPartition


@pytest.fixture
def alone():
    if torch.distributed.is_initialized():  # by a training that another test ran in this process, of one rank too
        assert torch.distributed.get_world_size() == 1
        yield
        return
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_cut_and_whole(alone, dtype):
    partition = FrozenPartition()
    parameter = nn.Parameter(torch.arange(15).view(3, 5).to(dtype), requires_grad=False)
    other = nn.Parameter(torch.ones(2))
    expected = parameter.detach().clone()
    partition.cut(parameter)
    assert parameter.shape == (15,)
    with torch.inference_mode(), partition.whole([parameter, other]):
        assert torch.equal(parameter, expected) and not parameter.is_inference()
    assert parameter.shape == (15,) and torch.equal(other, torch.ones(2))
    partition.keep_whole([parameter, other])
    assert torch.equal(parameter, expected)
    with partition.whole([parameter]):
        assert torch.equal(parameter, expected)


def test_parts_of_a_length_that_does_not_divide(alone):
    """What each of four ranks keeps of seven values."""
    kept = []
    for rank in range(4):
        partition = FrozenPartition()
        partition.rank, partition.size = rank, 4
        parameter = nn.Parameter(torch.arange(7.0))
        partition.cut(parameter)
        kept.append(parameter.detach())
    assert torch.equal(torch.cat(kept), torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 0]))
    small = nn.Parameter(torch.ones(1))
    partition.cut(small)
    assert torch.equal(small, torch.zeros(1))
