"""Runs the probe."""

import os
import subprocess
import sys

import pytest

from launch.job.failure import read_failure
from masp.config import load_config, save_config
from tests.runs import REPOSITORY
from tests.unit.launch.job.probe import PROBE


@pytest.fixture
def probe(tmp_path):
    """Runs a job that says what it sees; `asked` is what it asked of scontrol."""
    show = f"cat {tmp_path}/shown 2>/dev/null || echo JobId=17 JobState=RUNNING"
    script = f'#!/bin/sh\nif [ "$1" = --oneliner ]; then {show}; else echo "$@" >> {tmp_path}/asked; fi\n'
    (tmp_path / "scontrol").write_text(script)
    (tmp_path / "scontrol").chmod(0o755)

    def run(**variables: str):
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SUBMITIT_"))}
        path = variables.get("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        config = tmp_path / "submission" / "config.yaml"
        (config.parent / "jobs").mkdir(parents=True, exist_ok=True)
        save_config(load_config(REPOSITORY / "configs" / "demo.yaml", [f"output_dir={tmp_path / 'run'}"]), config)
        done = subprocess.run(
            [sys.executable, "-c", PROBE, str(config)],
            cwd=REPOSITORY,
            env=clean | variables | {"PATH": path, "SUBMITIT_FOLDER": str(config.parent / "jobs")},
            capture_output=True,
            text=True,
        )
        asked = tmp_path / "asked"
        done.asked = asked.read_text() if asked.exists() else ""
        task = f"17_{variables.get('SLURM_PROCID')}_log.out"
        done.failure = read_failure(config.parent / "jobs" / task)
        return done

    return run
