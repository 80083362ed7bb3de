"""`python -m launch` without Slurm: the pipeline in the background, and what a failure says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import REPOSITORY, make_run

LOCAL = REPOSITORY / "configs" / "cluster" / "local.yaml"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("local"))


def launch(command: str, config: Path, *arguments: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "launch", command, "--cluster", LOCAL, "--config", config, "--wait", *arguments]
    return subprocess.run(list(map(str, line)), cwd=REPOSITORY, capture_output=True, text=True, timeout=500)


def test_pipeline_with_two_tasks_and_two_ranks(config):
    # Without aspects there is no stage 1, which would show nothing here that stage 2 does not.
    done = launch("pipeline", config, "aspects=[]", "cluster.extract.num_tasks=2", "cluster.train.tasks_per_node=2")
    run = config.parent / "run"
    (folder,) = (run / "launch").iterdir()
    logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("jobs/*.out")))
    assert done.returncode == 0, f"{done.stderr}\n{logs}"
    assert done.stdout.splitlines()[-1] == f"launch: logs in {folder / 'jobs'}; result: {run / 'evaluate/metrics.json'}"
    record = json.loads((folder / "submission.json").read_text())
    ranks = [(part["name"], part["num_ranks"]) for part in record["parts"]]
    assert ranks == [("extract", 1), ("extract", 1), ("stage2", 2), ("evaluate", 1)]
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert json.loads((run / "evaluate" / "metrics.json").read_text())["num_samples"] == 6


def test_a_failed_part_stops_the_chain_and_is_told(config, tmp_path):
    done = launch("pipeline", config, f"output_dir={tmp_path}", f"dataset.root={tmp_path / 'none'}")
    assert done.returncode == 1
    (folder,) = (tmp_path / "launch").iterdir()
    message = json.loads((folder / "status.json").read_text())["message"]
    assert message.startswith("extract: dataset.root") and str(tmp_path / "none") in message
    assert done.stderr == f"error: {message}\n"
    assert not (tmp_path / "stage1").exists()
