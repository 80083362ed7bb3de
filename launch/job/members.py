"""The members of a submitted sweep: a file of the submission, from which its jobs are made again when it is resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from masp.errors import InputError
from masp.files.atomic import write_bytes
from masp.files.sealed import read_sealed, sealed
from masp.sweep.axes import Asked, MemberSettings

if TYPE_CHECKING:  # it imports torch
    from masp.sweep.members import Sweep

FILE = "members.json"


@dataclass(frozen=True)
class Members:
    """The content of `members.json`."""

    members: tuple[MemberSettings, ...]
    test: Literal["best", "all", "none"]


def write_members(directory: Path, sweep: Sweep) -> None:
    """Write the members of a sweep into the directory of its submission."""
    found = Members(tuple(member.settings for member in sweep.members), sweep.test)
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
    return open_sweep(str(config_path), Asked({}, (), tuple(overrides)), found.members, found.test)
