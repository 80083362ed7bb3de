"""What ranks exchange: barrier, all-reduce, broadcast, gather, agreement. With a single rank, the value itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from masp.distributed.ranks import Ranks
from masp.errors import InputError, OtherRankFailed, OtherTrainingFailed, TrainingFailed


def barrier() -> None:
    """Wait for all ranks."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def sum_integers(values: Sequence[int], device: str = "cpu") -> list[int]:
    """All-reduce integers of at most 64 bits: their sums over all ranks, exactly."""
    total = torch.tensor(values, dtype=torch.int64, device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return total.tolist()


def sum_tensor(values: Tensor) -> Tensor:
    """All-reduce a tensor in place: its sum over all ranks; every rank gets the same bits."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values


def sum_floats(values: Sequence[float], device: str = "cpu") -> list[float]:
    """All-reduce fp64 numbers: their sums over all ranks; every rank gets the same bits."""
    return sum_tensor(torch.tensor(values, dtype=torch.float64, device=device)).tolist()


def broadcast(value: Any) -> Any:
    """Broadcast the value of rank 0, which anything picklable may be, and return it on all ranks."""
    if not torch.distributed.is_initialized():
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def gather(value: Any) -> list[Any]:
    """Gather the value of every rank, in the order of ranks; anything small and picklable, and not in every step."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def any_rank(flag: bool, device: str = "cpu") -> bool:
    """Whether a flag is true on at least one rank; all ranks get the same answer."""
    return sum_integers([int(flag)], device)[0] > 0


def on_rank_0(ranks: Ranks, device: str, work: Callable[[], object]) -> None:
    """Do something on rank 0 only; all ranks wait for it, and if it fails all ranks fail.

    Raises:
        Exception: On rank 0, whatever `work` raises.
        OtherRankFailed: On the other ranks, if `work` raised; `OtherTrainingFailed` if that was a `TrainingFailed`.
    """
    error: Exception | None = None
    if ranks.is_rank_0:
        try:
            work()
        except Exception as caught:  # raised below, after the others know
            error = caught
    if any_rank(error is not None, device):
        is_training = any_rank(isinstance(error, TrainingFailed), device)
        kind = OtherTrainingFailed if is_training else OtherRankFailed
        raise error or kind("rank 0 failed; its own message says why")


def check_agreed(values: Sequence[int], what: str, device: str) -> None:
    """Check that all ranks have the same values, which they may not if they read them from a network disk with a cache.

    Args:
        values: Integers of this rank, as many on each rank.
        what: What the values describe, for the message.
        device: `cpu` or `cuda`.

    Raises:
        InputError: The values are not the same on all ranks.
    """
    counts = sum_integers([1, *values, *(value * value for value in values)], device)
    size, sums, squares = counts[0], counts[1 : 1 + len(values)], counts[1 + len(values) :]
    # Cauchy-Schwarz: size * sum of squares equals the square of the sum only if all are equal
    if any(size * square != total * total for total, square in zip(sums, squares, strict=True)):
        raise InputError(f"{what} differs between ranks; wait until all of them see the same files, and start again")
