"""The members of a sweep with their configurations: which aspect modules they need, and which are trained together."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from masp.artifacts.trained import default_aspect_path, default_soft_prompt_path
from masp.config import Config, load_config
from masp.data.splits.subset import subset_settings
from masp.errors import InputError
from masp.files.regular import is_file
from masp.files.sealed import digest_of
from masp.files.text import shown
from masp.runtime.run_directory import read_status
from masp.sweep.axes import Asked, MemberSettings, member_config
from masp.training.group.together import groups_of

DIRECTORY = "sweep"
Test = Literal["best", "all", "none"]
"""Whose test score a sweep computes."""


@dataclass
class Member:
    """A member with its configuration."""

    settings: MemberSettings
    config: Config
    failure: str = ""
    """Why its training was stopped; empty where it was not."""
    dropped: str = ""
    """Where and why halving dropped it; empty where it did not."""

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def directory(self) -> Path:
        """Directory of its stage 2."""
        return Path(self.config.output_dir) / "stage2"

    @property
    def is_trained(self) -> bool:
        """Whether its soft prompt is there."""
        return is_file(default_soft_prompt_path(self.config))

    def note_failure(self) -> None:
        """Find out, from its files, why it was not trained to its end."""
        if self.failure or self.dropped or self.is_trained:
            return
        status = read_status(self.directory)
        self.failure = "it was not trained" if status is None else status.message or f"it is {status.state}"


@dataclass(frozen=True)
class AspectTraining:
    """A training of stage 1."""

    config: Config
    overrides: tuple[str, ...]
    """What it changes in the configuration that the members start from."""


@dataclass
class Sweep:
    """A sweep, ready to be trained."""

    base: Config
    """What the members start from."""
    directory: Path
    members: list[Member]
    aspects: list[AspectTraining]
    """Trainings of stage 1 that the members need, each once."""
    groups: list[list[Member]]
    """Members that are trained together, in the order of their first ones."""
    test: Test = "best"
    """Whose test score is computed."""
    log_keys: tuple[str, ...] = ()
    """Settings that were drawn from logarithmic ranges, for the figures."""


def open_sweep(config_file: str | None, asked: Asked, members: Sequence[MemberSettings], test: Test = "best") -> Sweep:
    """Configure the members of a sweep; nothing is read but settings.

    Args:
        config_file: Configuration that the members start from.
        asked: What they have in common.
        members: What each varies.
        test: Whose test score is computed.

    Raises:
        InputError: A value is not valid.
    """
    base = load_config(config_file, asked.fixed)
    if base.evaluate.stage != "stage2":
        raise InputError(
            f"evaluate.stage = {base.evaluate.stage!r}: a sweep compares evaluations of stage 2; leave it out"
        )
    directory = Path(base.output_dir) / DIRECTORY
    order_seed = base.seed if base.order_seed is None else base.order_seed
    opened = [
        Member(each, member_config(config_file, asked, each, directory / each.name, order_seed)) for each in members
    ]
    aspects: dict[str, AspectTraining] = {}
    for member in opened:
        if (given := member.config.checkpoint.soft_prompt) is not None:
            raise InputError(
                f"checkpoint.soft_prompt = {shown(given)}: a sweep scores the soft prompts that it trains; leave it out"
            )
        if member.config.aspects and member.config.checkpoint.aspect is None:
            alone = _aspects_of(member.config, directory)
            aspects.setdefault(alone.output_dir, AspectTraining(alone, _overrides(member, alone)))
            member.config.checkpoint.aspect = str(default_aspect_path(alone))
    groups = groups_of([member.config for member in opened])
    together = [[opened[number] for number in group] for group in groups]
    log_keys = tuple(each.key for each in asked.ranges if each.kind == "log")
    return Sweep(base, directory, opened, list(aspects.values()), together, test, log_keys)


def overrides_of(member: Member) -> tuple[str, ...]:
    """What makes the configuration of a member out of the one that all start from, as `key=value`."""
    given = _overrides(member, member.config)
    aspect = member.config.checkpoint.aspect
    return given if aspect is None else (*_without(given, "checkpoint.aspect"), f"checkpoint.aspect={aspect}")


def _overrides(member: Member, config: Config) -> tuple[str, ...]:
    """The values of a member, but for those that a training sets itself."""
    own = {"seed": config.seed, "order_seed": config.order_seed, "output_dir": config.output_dir}
    return (*_without(member.settings.overrides, *own), *(f"{key}={value}" for key, value in own.items()))


def _without(overrides: Sequence[str], *keys: str) -> tuple[str, ...]:
    return tuple(override for override in overrides if override.partition("=")[0] not in keys)


def _aspects_of(config: Config, directory: Path) -> Config:
    """The training of stage 1 that a member needs: the same for all that would have the same but for the seed."""
    alone = copy.deepcopy(config)
    alone.seed = int(config.order_seed or 0)
    parts = (alone.aspects, alone.stage1, alone.aspect_module, alone.vlm, alone.aspect_definitions, alone.questions)
    alone.output_dir = str(directory / f"aspects-{digest_of(repr((*parts, *subset_settings(alone))))[:12]}")
    return alone
