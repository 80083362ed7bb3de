"""Memory that runs out is one line; any other error of torch's stays as it is."""

import pytest
import torch

from masp.errors import InputError
from masp.runtime.devices import plain_memory_errors


def test_a_cpu_without_enough_memory_is_one_line():
    with pytest.raises(InputError, match="^not enough memory: lower x$"), plain_memory_errors("lower x"):
        torch.empty(10**15)


def test_a_bug_is_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), plain_memory_errors("lower x"):
        torch.ones(2, 3) @ torch.ones(2, 3)
