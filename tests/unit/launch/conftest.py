"""Submissions, and a Slurm that says what a test wants."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.job.config import load_cluster
from launch.job.parts import PartName
from launch.submission.record import Submitted, make_directory, new_record, write_record
from masp.config import load_config
from tests.runs import make_run
from tests.unit.launch.fake_slurm import CONFIG, PIPELINE, SLURM, install


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Callable[..., None]:
    """Sets what squeue and sacct print."""
    commands = tmp_path / "bin"
    commands.mkdir()
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")

    (commands / "scontrol").write_text("#!/bin/sh\necho 'Slurmctld(primary) at here is UP'\n")
    (commands / "scontrol").chmod(0o755)
    for name in ("sbatch", "srun"):
        (commands / name).symlink_to("/bin/false")

    def says(squeue: str = "", sacct: str = "", code: int = 0) -> None:
        for name, text in (("squeue", squeue), ("sacct", sacct)):
            (commands / f"{name}.txt").write_text(text)
            stream = ">&2" if code else ""
            (commands / name).write_text(f"#!/bin/sh\ncat {commands}/{name}.txt {stream}\nexit {code}\n")
            (commands / name).chmod(0o755)

    says()
    return says


@pytest.fixture
def directory(tmp_path) -> Path:
    """A submission of the whole pipeline: extraction is array 7 of 3 tasks, 8 to 10 are the rest."""
    config = load_config(CONFIG, [f"output_dir={tmp_path / 'run'}", f"cache.dir={tmp_path / 'cache'}"])
    directory = make_directory("pipeline", config, load_cluster(SLURM))
    parts = tuple(
        Submitted(name, 3 if name == PartName.EXTRACT else 1, 1, str(tmp_path / name), (str(7 + i),))
        for i, name in enumerate(PIPELINE)
    )
    write_record(directory, new_record("pipeline", None, "slurm", parts))
    return directory


@pytest.fixture(scope="session")
def config_path(tmp_path_factory) -> Path:
    """The configuration of a run that could be submitted."""
    return make_run(tmp_path_factory.mktemp("launch"))


@pytest.fixture
def commands(tmp_path, monkeypatch) -> Path:
    """Slurm's commands, in this directory."""
    install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path / "bin"
