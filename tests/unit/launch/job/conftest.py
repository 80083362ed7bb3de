"""Runs the probe."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from launch.job.failure import Failure, read_failure
from masp.config import load_config, save_config
from tests.commands import Commands
from tests.runs import REPOSITORY
from tests.unit.launch.job.probe import IMPORTS, PROBE


@dataclass
class Probed:
    """How a probe ended."""

    returncode: int
    stdout: str
    stderr: str
    asked: str
    """What all probes of a test have asked of scontrol."""
    failure: Failure | None


@pytest.fixture(scope="session")
def probes(tmp_path_factory) -> Iterator[Commands]:
    """Starts probes in processes of their own."""
    with Commands(tmp_path_factory.mktemp("probes"), IMPORTS, PROBE) as commands:
        yield commands


@pytest.fixture
def probe(probes, tmp_path):
    """Runs a job that says what it sees."""
    show = f"cat {tmp_path}/shown 2>/dev/null || echo JobId=17 JobState=RUNNING"
    script = f'#!/bin/sh\nif [ "$1" = --oneliner ]; then {show}; else echo "$@" >> {tmp_path}/asked; fi\n'
    (tmp_path / "scontrol").write_text(script)
    (tmp_path / "scontrol").chmod(0o755)

    def run(**variables: str) -> Probed:
        path = variables.get("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        config = tmp_path / "submission" / "config.yaml"
        (config.parent / "jobs").mkdir(parents=True, exist_ok=True)
        save_config(load_config(REPOSITORY / "configs" / "demo.yaml", [f"output_dir={tmp_path / 'run'}"]), config)
        done = probes(config, **variables | {"PATH": path, "SUBMITIT_FOLDER": str(config.parent / "jobs")})
        asked = tmp_path / "asked"
        failure = read_failure(config.parent / "jobs" / f"17_{variables.get('SLURM_PROCID')}_log.out")
        return Probed(done.code, done.stdout, done.stderr, asked.read_text() if asked.exists() else "", failure)

    return run
