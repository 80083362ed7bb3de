"""The runs of a submitted sweep or study: a file of the submission, from which its jobs are made when it is resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from masp.errors import InputError
from masp.files.atomic import write_bytes
from masp.files.sealed import read_sealed, sealed
from masp.sweep.axes import Asked, MemberSettings

if TYPE_CHECKING:  # they import torch
    from masp.experiments.study.run import Study
    from masp.sweep.members import Sweep

FILE = "members.json"
STUDY_FILE = "study.json"


@dataclass(frozen=True)
class Members:
    """The content of `members.json`."""

    members: tuple[MemberSettings, ...]
    test: Literal["best", "all", "none"]
    log_keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Runs:
    """The content of a submission's `study.json`."""

    seeds: tuple[int, ...]
    only: str | None


def write_runs(directory: Path, runs: Sweep | Study) -> None:
    """Write what runs a sweep or study has into the directory of its submission."""
    from masp.sweep.members import Sweep

    if isinstance(runs, Sweep):
        write_members(directory, runs)
    else:
        found = Runs(tuple(runs.seeds), runs.only)
        write_bytes(directory / STUDY_FILE, sealed(asdict(found)))


def read_runs(command: str, directory: Path, config_path: Path, overrides: Sequence[str] = ()) -> Sweep | Study | None:
    """The sweep or study of a submission; None if it is of another command. See `read_sweep`."""
    if command == "sweep":
        return read_sweep(directory, config_path, overrides)
    return read_study(directory, config_path, overrides) if command == "study" else None


def read_study(directory: Path, config_path: Path, overrides: Sequence[str] = ()) -> Study:
    """The study of a submission; arguments and errors as of `read_sweep`."""
    from masp.config import load_config
    from masp.experiments.study.run import open_study

    found = read_sealed(Runs, directory / STUDY_FILE)
    if found is None:
        raise InputError(f"{directory / STUDY_FILE} cannot be read: No such file or directory")
    return open_study(load_config(config_path, overrides), ",".join(map(str, found.seeds)), found.only)


def write_members(directory: Path, sweep: Sweep) -> None:
    """Write the members of a sweep into the directory of its submission."""
    found = Members(tuple(member.settings for member in sweep.members), sweep.test, sweep.log_keys)
    write_bytes(directory / FILE, sealed(asdict(found)))


def read_sweep(directory: Path, config_path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """The sweep of a submission.

    Args:
        directory: Directory of the submission.
        config_path: Resolved configuration that the members start from.
        overrides: What is changed in it, as `key=value`.

    Raises:
        InputError, DataError: A file is missing or damaged, or a setting is not valid.
    """
    from masp.sweep.members import open_sweep

    found = read_sealed(Members, directory / FILE)
    if found is None:
        raise InputError(f"{directory / FILE} cannot be read: No such file or directory")
    sweep = open_sweep(str(config_path), Asked({}, (), tuple(overrides)), found.members, found.test)
    return replace(sweep, log_keys=found.log_keys)
