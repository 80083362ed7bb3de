"""`environment.json`: code, packages, machine and variables that a run was submitted with, to understand it later."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from masp import __version__
from masp.files.atomic import write_bytes

CODE = Path(__file__).resolve().parents[2]
FILE, DIFF = "environment.json", "uncommitted.diff"
# Variables that change what a job does. Others may hold secrets and are left out.
_PREFIXES = tuple("CUDA_ DS_ GLOO_ HF_HOME HF_HUB_ MASP_ MKL_ NCCL_ OMP_ SLURM_CONF TOKENIZERS_".split())
_NAMES = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX")
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")


@dataclass(frozen=True)
class Code:
    """The code that was submitted; what git says is None without git."""

    version: str
    folder: str
    """Directory of the checkout."""
    commit: str | None = None
    dirty: bool | None = None
    """Whether files were changed since the commit."""
    changed: tuple[str, ...] | None = None
    """The changed files."""


@dataclass(frozen=True)
class Python:
    """The interpreter that submitted."""

    version: str
    executable: str


@dataclass(frozen=True)
class Machine:
    """The machine that submitted."""

    host: str
    system: str


@dataclass(frozen=True)
class Snapshot:
    """The content of `environment.json`."""

    code: Code
    python: Python
    machine: Machine
    command: tuple[str, ...]
    """The command line."""
    variables: dict[str, str]
    """Environment variables that change what a job does."""
    packages: dict[str, str]
    """Installed distributions and their versions."""


def take_snapshot() -> tuple[Snapshot, str]:
    """Look at the environment of this process.

    Returns:
        The snapshot, and the difference between the code and its commit (empty if there is none, or no git).
    """
    code, diff = _code()
    distributions = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    snapshot = Snapshot(
        code=code,
        python=Python(platform.python_version(), sys.executable),
        machine=Machine(socket.gethostname(), platform.platform()),
        command=tuple(sys.argv),
        variables={name: value for name, value in sorted(os.environ.items()) if _is_kept(name)},
        packages=dict(sorted(distributions.items())),
    )
    return snapshot, diff


def write_snapshot(directory: Path) -> None:
    """Keep what a run was submitted with, in the directory of its submission.

    Raises:
        OSError: it cannot be written.
    """
    snapshot, diff = take_snapshot()
    fields = asdict(snapshot)
    fields["code"] = {name: value for name, value in fields["code"].items() if value is not None}
    write_bytes(directory / FILE, json.dumps(fields, indent=1).encode() + b"\n")
    if diff:
        write_bytes(directory / DIFF, diff.encode(errors="replace"))


def _is_kept(name: str) -> bool:
    if any(word in name for word in _SECRET) and not name.startswith("TOKENIZERS_"):
        return False
    return name in _NAMES or name.startswith(_PREFIXES)


def _code() -> tuple[Code, str]:
    """Version and, in a git checkout, commit and whether it was changed since; the difference itself."""
    code = Code(__version__, str(CODE))
    if not (CODE / ".git").exists():
        return code, ""
    commit, status, diff = _git("rev-parse", "HEAD"), _git("status", "--porcelain"), _git("diff", "HEAD")
    if commit is None or status is None or diff is None:
        return code, ""
    changed = tuple(line[3:] for line in status.splitlines())
    return replace(code, commit=commit.strip(), dirty=bool(changed), changed=changed), diff


def _git(*words: str) -> str | None:
    """What git prints; None without git, or if it refuses a checkout that belongs to another user."""
    command = ["git", "-C", str(CODE), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
