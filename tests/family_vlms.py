"""Small VLMs of many families, of random weights, whose definitions are in the shared directory."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path

import pytest

MAX_SIDE = "vlm.max_side=150"
"""What their processors of small images take."""


def make_family_vlm(shared: Path, family: str, directory: Path) -> Path:
    """Write a VLM of a family that `families/zoo.py` of the shared directory defines; returns its directory."""
    import torch

    sys.path.insert(0, str(shared / "families"))
    try:
        with torch.no_grad():
            importlib.import_module("make_folder").write(family, directory)
    finally:
        sys.path.remove(str(shared / "families"))
    return directory


@pytest.fixture(scope="session")
def family_vlm(shared_dir, tmp_path_factory):
    """Gives the directory of a VLM of a family, written when it is first asked for. Not to be changed."""
    folder = tmp_path_factory.mktemp("families")

    @functools.cache
    def make(family: str) -> Path:
        return make_family_vlm(shared_dir, family, folder / family)

    return make
