"""Which of several runs of stage 2 are trained together, and their training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from masp.config import Config
from masp.distributed.liveness import RankLost
from masp.errors import OtherTrainingFailed, TrainingFailed
from masp.runtime.stop import StopFlag
from masp.training.group.members import group_key, why_alone
from masp.training.group.trainer import train_group
from masp.training.loop import train


def groups_of(configs: Sequence[Config]) -> list[list[int]]:
    """Numbers of the runs that share a prefix, in the order of their first ones; one that cannot is a group of its own.

    Args:
        configs: Configurations of runs of stage 2, whose aspect modules are named (`checkpoint.aspect`).
    """
    groups: dict[str, list[int]] = {}
    for number, config in enumerate(configs):
        key = group_key(config) if why_alone(config) is None else str(number)
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def train_together(
    configs: Sequence[Config],
    stop: StopFlag | None = None,
    on_loss: Callable[[RankLost], None] | None = None,
    until: Sequence[int] | None = None,
) -> list[str]:
    """Train the runs of a group, or what is left of them. Under a launcher every rank calls this.

    Args:
        configs: Configurations of one of the groups of `groups_of`.
        stop, on_loss: See `masp.training.loop.train`.
        until: Step after which each pauses; None trains all to their ends.

    Returns:
        Of each run why it was stopped, for example since its loss is not finite; empty where it was trained to its end.

    Raises:
        InputError, DataError, StoppedEarly: As `masp.training.group.trainer.train_group`.
    """
    if len(configs) == 1 and why_alone(configs[0]) is not None:
        try:
            train(configs[0], "stage2", stop, on_loss=on_loss, until=None if until is None else until[0])
        except (TrainingFailed, OtherTrainingFailed) as error:  # any other error concerns all runs, or the next call
            return [str(error)]
        return [""]
    return train_group(configs, stop, on_loss, until)
