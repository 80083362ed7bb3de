"""What a run was submitted with: code, packages, machine and variables, for whoever has to understand it later."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

from masp import __version__

CODE = Path(__file__).resolve().parents[2]
FILE, DIFF = "environment.json", "uncommitted.diff"
# Variables that change what a job does. Others may hold secrets, and are left out.
_PREFIXES = tuple("CUDA_ DS_ GLOO_ HF_HOME HF_HUB_ MASP_ MKL_ NCCL_ OMP_ SLURM_CONF TOKENIZERS_".split())
_NAMES = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX")
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")


def snapshot() -> tuple[dict, str]:
    """What is there now.

    Returns:
        A JSON value, and the difference between the code and its commit (empty if there is none, or no git).
    """
    code, diff = _code()
    distributions = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    value = {
        "code": code,
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "machine": {"host": socket.gethostname(), "system": platform.platform()},
        "command": sys.argv,
        "variables": {name: value for name, value in sorted(os.environ.items()) if _is_kept(name)},
        "packages": dict(sorted(distributions.items())),
    }
    return value, diff


def _is_kept(name: str) -> bool:
    if any(word in name for word in _SECRET) and not name.startswith("TOKENIZERS_"):
        return False
    return name in _NAMES or name.startswith(_PREFIXES)


def _code() -> tuple[dict, str]:
    """Version and, in a git checkout, commit and whether it was changed since."""
    value = {"version": __version__, "folder": str(CODE)}
    if not (CODE / ".git").exists():
        return value, ""
    commit, status, diff = _git("rev-parse", "HEAD"), _git("status", "--porcelain"), _git("diff", "HEAD")
    if commit is None or status is None or diff is None:
        return value, ""
    changed = [line[3:] for line in status.splitlines()]
    return value | {"commit": commit.strip(), "dirty": bool(changed), "changed": changed}, diff


def _git(*words: str) -> str | None:
    """What git says; None if there is no git, or it will not look into a checkout of somebody else."""
    command = ["git", "-C", str(CODE), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
