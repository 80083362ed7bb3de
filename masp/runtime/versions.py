"""The versions of what a run computes with, for its records."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from masp import __version__

LIBRARIES = ("torch", "transformers", "deepspeed", "numpy", "pillow", "safetensors", "scikit-learn", "torchao")
"""Distributions whose version may matter to a number."""


def software() -> dict[str, str]:
    """The versions of MASP, Python and `LIBRARIES`; without those that are not installed."""
    found = {"masp": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # torchao is an extra
            continue
    return found
