"""Runs of W&B, really stored in files (offline) and read back."""

import os
import subprocess
import sys

import pytest

from masp.tracking.tracker import Ending, TrackedRun
from masp.tracking.wandb_run import WandbRun
from tests.unit.tracking.reading import wandb_files, wandb_records

RUN = TrackedRun(
    "0123456789abcdef0123456789abcdef", "my run", "emotions", "stage1",
    {"stage1.learning_rate": 1e-5, "seed": 3407, "aspects": "['scene']", "vlm.min_pixels": None}, {"vlm": "ab" * 32},
)  # fmt: skip


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def track(run, steps, output_dir, ending=Ending.FINISHED):
    tracker = WandbRun(run, output_dir)
    tracker.connect()
    tracker.begin()
    for step in steps:
        tracker.log({"loss": 1 / step, "learning_rate": step / 8}, step)
    tracker.summarize({"accuracy": 0.625})
    tracker.end(ending)


def test_settings_digests_series_and_results_are_stored(offline):
    track(RUN, range(1, 4), offline)
    (path,) = wandb_files(offline)
    found = wandb_records(path)
    assert (found["id"], found["name"], found["project"]) == (RUN.id, "my run", "emotions")
    for name, value in RUN.settings.items():
        assert found["config"][name] == value
    assert found["config"]["digests/stage1/vlm"] == "ab" * 32
    rows = [{name: value for name, value in row.items() if name.startswith("stage1/")} for row in found["history"]]
    assert rows == [
        {"stage1/loss": 1 / step, "stage1/learning_rate": step / 8, "stage1/step": step} for step in (1, 2, 3)
    ]
    assert found["summary"]["stage1/accuracy"] == 0.625


def test_a_resumed_run_is_the_same_run_of_the_tracker(offline):
    track(RUN, (1, 2), offline, Ending.STOPPED)
    track(RUN, (2, 3), offline)
    files = wandb_files(offline)
    found = [wandb_records(path) for path in files]
    assert [each["id"] for each in found] == [RUN.id] * 2
    assert [[row["stage1/step"] for row in each["history"]] for each in found] == [[1, 2], [2, 3]]


def test_neither_code_nor_host_nor_console_is_kept(offline, monkeypatch):
    (offline / "somewhere").mkdir()
    monkeypatch.chdir(offline / "somewhere")
    track(RUN, (1,), offline)
    (path,) = wandb_files(offline)
    found = wandb_records(path)
    assert not found["git"].commit and not found["host"]
    names = {file.name for file in path.parent.joinpath("files").rglob("*")}
    assert not names & {"wandb-metadata.json", "requirements.txt", "output.log", "diff.patch"}
    assert not list((offline / "somewhere").iterdir())


SCRIPT = """
import logging, sys
from pathlib import Path
from masp.errors import InputError
from masp.tracking.trackers import Trackers, _Guarded
from masp.tracking.wandb_run import WandbRun
from tests.unit.tracking.test_wandb_run import RUN
logging.basicConfig(format="%(message)s", stream=sys.stdout)
try:
    with Trackers([_Guarded(WandbRun(RUN, Path(sys.argv[1])))]) as tracked:
        for step in range(1, 4):
            tracked.log({"loss": 1.0}, step)
    print("went on")
except InputError as error:
    print("error:", error)
"""


def in_a_process(directory, **environment) -> list[str]:
    """What a run says in a process of its own: the library keeps what it has read of its environment."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    places = dict.fromkeys(("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"), str(directory))
    environment = inherited | places | {"NETRC": str(directory / "netrc")} | environment
    command = [sys.executable, "-c", SCRIPT, str(directory)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_who_is_not_logged_in_is_told_at_once(tmp_path):
    (line,) = in_a_process(tmp_path)
    assert line.startswith("error: logging.trackers: wandb: No API key") and "WANDB_MODE=offline" in line


def test_without_a_network_the_run_goes_on_after_one_warning(tmp_path):
    nowhere = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "2"}
    warning, end = in_a_process(tmp_path, **nowhere)
    assert warning.startswith("logging.trackers: wandb CommError: "), warning
    assert warning.endswith("; the run goes on without it") and end == "went on"
