"""Successive halving: all groups are trained up to a rung, the worst members are dropped, the others go on.

The decisions are in `halving.json`, each written once, with the losses that it was made from.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from masp.errors import InputError, StoppedEarly
from masp.evaluation.feed import open_feed
from masp.files.atomic import write_bytes
from masp.files.sealed import digest_of, read_sealed, sealed
from masp.files.text import shown
from masp.runtime.log import show
from masp.runtime.run_directory import RunState, read_status, write_status
from masp.runtime.stop import StopFlag
from masp.sweep.members import Member, Sweep
from masp.training.group.together import train_together
from masp.training.stages import open_stage
from masp.training.validation import paused_loss

FILE = "halving.json"
LOG = logging.getLogger(__name__)

_MEASURED = (
    "target.name",
    "target.labels",
    "stage2.layout",
    "stage2.supervision",
    "stage2.distribution_loss",
    "stage2.validation_size",
    "dataset.fraction",
    "dataset.shots",
    "dataset.subset_seed",
)
"""Settings that decide what a held-out loss is of."""
_NOT_OF_THE_COURSE = (
    "micro_batch_size",
    "micro_batch_tokens",
    "checkpoint_every",
    "keep",
    "log_every",
    "log_keys",
)
"""Settings of a stage that may change while a sweep is stopped."""


@dataclass(frozen=True)
class Standing:
    """A member at a rung."""

    name: str
    step: int
    """Steps that it has taken."""
    loss: float | None
    """On the held-out images; None where it is not finite, or the member was stopped before."""
    is_kept: bool
    failure: str = ""
    """Why it was stopped before the rung; empty where it was not."""


@dataclass(frozen=True)
class Rung:
    """A decision."""

    standings: tuple[Standing, ...]
    """Members that were compared, the best first."""


@dataclass(frozen=True)
class Halving:
    """The content of `halving.json`."""

    eta: Annotated[int, Field(ge=2)]
    members: dict[str, str]
    """Name -> digest of what decides its course."""
    rungs: tuple[Rung, ...]
    """Those that are decided."""


def num_rungs(num_members: int, eta: int) -> int:
    """How often a share of the members is dropped before fewer than `eta` are left."""
    count = 0
    while num_members >= eta:
        num_members, count = kept_of(num_members, eta), count + 1
    return count


def kept_of(num_members: int, eta: int) -> int:
    """How many of the members that are compared at a rung go on."""
    return -(-num_members // eta)


def rung_step(rung: int, count: int, eta: int, num_epochs: int, steps_per_epoch: int) -> int:
    """Step of a rung: the last is at `1/eta` of the longest member's epochs, each before it at `1/eta` of the next.

    Args:
        rung: Number of the rung, from 0.
        count: Number of rungs.
        eta: What the members are divided by.
        num_epochs: Epochs of the longest member.
        steps_per_epoch: Steps of an epoch of the member that is asked about.
    """
    share = eta ** (count - rung)
    return max(1, (2 * num_epochs * steps_per_epoch + share) // (2 * share))


def check_comparable(members: Sequence[Member]) -> None:
    """Refuse to compare losses of members that do not measure the same.

    Raises:
        InputError: Two members differ in a setting that decides what the loss is of, or there is no cache.
    """
    first = members[0]
    if first.config.cache.dir is None:
        raise InputError("--halving: cache.dir = null: members are compared on features of a cache; give cache.dir")
    for key in _MEASURED:
        for member in members[1:]:
            here, there = (functools.reduce(getattr, key.split("."), m.config) for m in (first, member))
            if here != there:
                raise InputError(
                    f"--halving: {key} is {shown(here)} of {first.name} and {shown(there)} of {member.name}, so their "
                    "losses cannot be compared: give them sweeps of their own"
                )


def check_held_out(sweep: Sweep) -> None:
    """Refuse to begin what would have nothing to compare members by; the cache is there.

    Raises:
        InputError: There is no validation split, and a member holds no images out.
    """
    lacking = any(member.config.stage2.validate_every is None for member in sweep.members)
    if lacking and not open_feed(sweep.base).category_counts("val"):
        raise InputError(
            f"--halving: {sweep.base.cache.dir} has no validation split, and stage2.validate_every = null holds no "
            "images out, so members cannot be compared before their ends; give stage2.validate_every"
        )


def train_halving(sweep: Sweep, eta: int, stop: StopFlag) -> None:
    """Train a sweep with successive halving, or what is left of it; notes in each member what became of it.

    Args:
        sweep: The sweep, whose aspect modules are trained.
        eta: One of `eta` members is kept at each rung.
        stop: What asks to stop.

    Raises:
        InputError: Members cannot be compared, or `halving.json` is of other members. DataError: It is damaged.
            StoppedEarly: As `stop` asked.
    """
    check_comparable(sweep.members)
    path = sweep.directory / FILE
    state = _read(path, eta, {member.name: _course(member) for member in sweep.members})
    num_epochs = max(member.config.stage2.num_epochs for member in sweep.members)
    per_epoch = {group[0].name: _steps_per_epoch(group[0]) for group in sweep.groups}
    count = num_rungs(len(sweep.members), eta)
    going = list(sweep.members)
    for rung in range(count):
        steps = {
            member.name: rung_step(rung, count, eta, num_epochs, per_epoch[group[0].name])
            for group in sweep.groups
            for member in group
        }
        if rung == len(state.rungs):
            for group in sweep.groups:
                train_members([m for m in group if m in going], stop, steps)
            state = replace(state, rungs=(*state.rungs, _decide(going, steps, eta)))
            write_bytes(path, sealed(asdict(state)))
        standings = state.rungs[rung].standings
        _tell(rung, count, standings, {member.name: member for member in sweep.members})
        compared = {standing.name for standing in standings}
        kept = {standing.name for standing in standings if standing.is_kept}
        going = [member for member in going if member.name in kept or member.name not in compared]
        going = [member for member in going if not member.failure]
    for group in sweep.groups:
        train_members([m for m in group if m in going], stop)


def train_members(members: Sequence[Member], stop: StopFlag, until: Mapping[str, int] | None = None) -> None:
    """Train members of a group, or what is left of them; notes in each why it was stopped, if it was.

    Args:
        members: Members of a group; none are fine.
        stop: What asks to stop.
        until: Name -> step after which a member pauses; None trains all to their ends.

    Raises:
        InputError, DataError, StoppedEarly: As `masp.training.group.together.train_together`.
    """
    if not members:
        return
    steps = None if until is None else [until[member.name] for member in members]
    failures = train_together([member.config for member in members], stop, until=steps)
    for member, failure in zip(members, failures, strict=True):
        member.failure = failure
    if stop:  # it came with the last step
        raise StoppedEarly("sweep: stopped on request between two groups; the same command goes on")


def _course(member: Member) -> str:
    """A digest of what decides the course of a member, and may not change after it was compared."""
    config = member.config
    stages = [asdict(stage) for stage in (config.stage1, config.stage2)]
    for stage in stages:
        for name in _NOT_OF_THE_COURSE:
            del stage[name]
    parts = [asdict(config.target), asdict(config.aspect_module)]
    return digest_of(
        [config.seed, config.order_seed, config.aspects, config.vlm.path, config.questions, stages, *parts]
    )


def _steps_per_epoch(member: Member) -> int:
    config = member.config
    return open_stage("stage2", config, "cpu" if config.engine.device == "cpu" else "cuda").schedule.steps_per_epoch


def _read(path: Path, eta: int, courses: dict[str, str]) -> Halving:
    """What is decided already."""
    found = read_sealed(Halving, path)
    if found is None:
        return Halving(eta, courses, ())
    remedy = f"go on without --halving, remove {path} to decide anew, or give another output_dir"
    if found.eta != eta:
        raise InputError(f"--halving {eta}: {path} is of --halving {found.eta}: give that; or {remedy}")
    for name in (*found.members, *courses):
        if found.members.get(name) != courses.get(name):
            what = "other settings" if name in found.members and name in courses else "other members"
            raise InputError(f"--halving: {path} is of {what}: {name}; {remedy}")
    return found


def _decide(going: Sequence[Member], steps: Mapping[str, int], eta: int) -> Rung:
    """Compare the members that have come to a rung. One whose training is over has nothing left to save."""
    standings: list[tuple[float, Standing]] = []
    for member in going:
        step = steps[member.name]
        loss = None if member.failure else paused_loss(member.directory, step)
        if loss is None and not member.failure:
            continue
        worth = math.inf if loss is None else loss
        shown_loss = worth if math.isfinite(worth) else None
        standings.append((worth, Standing(member.name, step, shown_loss, False, member.failure)))
    standings.sort(key=lambda entry: (entry[0], entry[1].name))
    kept = kept_of(len(standings), eta)
    return Rung(
        tuple(
            replace(standing, is_kept=place < kept and standing.loss is not None)
            for place, (_, standing) in enumerate(standings)
        )
    )


def _tell(rung: int, count: int, standings: Sequence[Standing], members: Mapping[str, Member]) -> None:
    """Note a decision in the members that it concerns, and say it."""
    kept = sum(standing.is_kept for standing in standings)
    show(f"sweep: rung {rung + 1} of {count}: {kept} of {len(standings)} members go on")
    for place, standing in enumerate(standings, start=1):
        member = members[standing.name]
        if standing.failure:
            member.failure = standing.failure
        elif not standing.is_kept:
            loss = "that is not finite" if standing.loss is None else f"{standing.loss:.6g}"
            member.dropped = (
                f"dropped at step {standing.step} as number {place} of {len(standings)} by held-out loss {loss}"
            )
            show(f"  {member.name}: {member.dropped}")
            _note_dropped(member, standing.step)


def _note_dropped(member: Member, step: int) -> None:
    status = read_status(member.directory)
    if status is None or status.state != RunState.STOPPED or status.message == member.dropped or status.step != step:
        return  # noted already, or it went on without halving
    write_status(
        member.directory, RunState.STOPPED, StoppedEarly.exit_code, member.dropped,
        step=step, num_steps=status.num_steps,
    )  # fmt: skip
