"""What ranks tell each other: barriers, sums, gathering, and agreement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed

from masp.distributed.ranks import Ranks
from masp.errors import InputError, OtherRankFailed

if TYPE_CHECKING:
    from torch import Tensor


def barrier() -> None:
    """Wait for all ranks."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def sum_integers(values: Sequence[int], device: str = "cpu") -> list[int]:
    """The sums of integers over all ranks, exactly."""
    total = torch.tensor(values, dtype=torch.int64, device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return total.tolist()


def sum_tensor(values: Tensor) -> Tensor:
    """A tensor summed over all ranks, in place; every rank gets the same bits."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values


def sum_floats(values: Sequence[float], device: str = "cpu") -> list[float]:
    """The sums of fp64 numbers over all ranks; every rank gets the same bits."""
    return sum_tensor(torch.tensor(values, dtype=torch.float64, device=device)).tolist()


def share(value: Any) -> Any:
    """The lead's value, on all ranks."""
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def gather(value: Any) -> list[Any]:
    """Every rank's value, by rank; for small things and rare moments."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def any_rank(flag: bool, device: str = "cpu") -> bool:
    """Whether the flag is up on at least one rank: all ranks come to the same answer."""
    return sum_integers([int(flag)], device)[0] > 0


def on_lead(ranks: Ranks, device: str, work: Callable[[], object]) -> None:
    """Do something on the lead rank alone; all ranks wait for it, and if it fails all ranks fail.

    Raises:
        OtherRankFailed: on the ranks that only waited. On the lead whatever `work` raised.
    """
    error: Exception | None = None
    if ranks.is_lead:
        try:
            work()
        except Exception as caught:  # raised below, after the others know
            error = caught
    if any_rank(error is not None, device):
        raise error or OtherRankFailed("the lead rank failed; its own message says why")


def check_agreed(values: Sequence[int], what: str, device: str) -> None:
    """Refuse to go on where ranks read different things, as a network disk's caching can make them.

    Raises:
        InputError: the values are not the same on all ranks.
    """
    counts = sum_integers([1, *values, *(value * value for value in values)], device)
    size, sums, squares = counts[0], counts[1 : 1 + len(values)], counts[1 + len(values) :]
    # by Cauchy and Schwarz, size * sum of squares = square of the sum only where all are equal
    if any(size * square != total * total for total, square in zip(sums, squares, strict=True)):
        raise InputError(f"{what} differs between ranks; wait until the disk shows all the same, and start again")
