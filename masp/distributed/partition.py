"""Frozen parameters divided over the ranks, for ranks that only read them: no engine, no optimizer, any number format.

Training divides with DeepSpeed (`masp.training.engine`), whose parameters belong to an optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed
from torch import Tensor, nn


class FrozenPartition:
    """Keeps of each parameter one part per rank; `masp.distributed.ranks.join` was called.

    Every rank reads the same files, so that cutting exchanges nothing; `whole` is a collective.
    """

    def __init__(self) -> None:
        self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._shapes: dict[nn.Parameter, torch.Size] = {}

    def cut(self, parameter: nn.Parameter) -> None:
        """Keep only this rank's part of a parameter that is whole."""
        values = parameter.data.flatten()
        count = -(-len(values) // self.size)
        part = values[self.rank * count : (self.rank + 1) * count]
        self._shapes[parameter] = parameter.shape
        # a copy, so that nothing of the whole is kept; of one length on all ranks
        parameter.data = nn.functional.pad(part, (0, count - len(part))) if len(part) < count else part.clone()

    @contextmanager
    def whole(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Parameters are whole on every rank while this is entered; they must not be changed then."""
        parts = [(parameter, parameter.data) for parameter in parameters if parameter in self._shapes]
        try:
            for parameter, part in parts:
                with torch.inference_mode(False):  # such a tensor could not become the values of a parameter
                    parameter.data = self._gathered(part, self._shapes[parameter])
            yield
        finally:
            for parameter, part in parts:
                parameter.data = part

    def keep_whole(self, parameters: Iterable[nn.Parameter]) -> None:
        """Undo `cut` for good."""
        for parameter in parameters:
            if parameter in self._shapes:
                parameter.data = self._gathered(parameter.data, self._shapes.pop(parameter))

    def _gathered(self, part: Tensor, shape: torch.Size) -> Tensor:
        on_gpu = torch.distributed.get_backend() == "nccl"
        mine = part.cuda() if on_gpu else part
        found = mine.new_empty(len(mine) * self.size)
        # bytes: gloo does not know every number format
        torch.distributed.all_gather_into_tensor(found.view(torch.uint8), mine.view(torch.uint8))
        return found[: shape.numel()].view(shape).to(part.device)
