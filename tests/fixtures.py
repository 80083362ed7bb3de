"""Fixtures for tests that run commands; the conftest of a directory imports those it needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commands import Commands
from tests.runs import make_run


@pytest.fixture(scope="session")
def commands(tmp_path_factory) -> Iterator[Commands]:
    """Runs `masp …` in separate processes."""
    with Commands(tmp_path_factory.mktemp("commands")) as commands:
        yield commands


@dataclass
class World:
    """A run with a finished cache: images of mixed sizes, two thirds of them annotated, and a tiny VLM."""

    config: Path
    folder: Path
    """Holds `pictures`, `vlm` and `cache`."""

    def settings(self, output: Path, *overrides: str) -> tuple[str, ...]:
        """Arguments of any command, for a separate run on this cache."""
        return ("--config", str(self.config), f"output_dir={output}", *overrides)


@pytest.fixture(scope="session")
def world(commands, tmp_path_factory) -> World:
    """18 training and 13 test images, extracted."""
    folder = tmp_path_factory.mktemp("world")
    config = make_run(folder, 18, 13)
    commands.ok("extract", "--config", config)
    return World(config, folder)


@pytest.fixture(scope="session")
def trained(commands, world) -> Path:
    """Output directory of an uninterrupted run of both stages."""
    output = world.folder / "undisturbed"
    for stage in ("stage1", "stage2"):
        commands.ok("train", "--stage", stage, *world.settings(output))
    return output
