"""An evaluation on Slurm loses one of its processes: the others finish, and a second call scores the rest."""

import json
import os
import shlex
import subprocess
import sys

import pytest

from masp.config import load_config
from masp.evaluation.run import evaluate
from masp.extraction.job import extract
from masp.results.ledger import read_records
from tests.runs import REPOSITORY, assert_same, make_run, numbers

pytestmark = [pytest.mark.slurm, pytest.mark.full]
NUM_TEST = 36
NOTHING = ["checkpoint.aspect=none", "checkpoint.soft_prompt=none", "evaluate.batch_size=1"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = make_run(tmp_path_factory.mktemp("run"), 3, NUM_TEST)
    extract(load_config(path))
    return path


@pytest.mark.parametrize("how", ["srun", "array"])
def test_one_of_three_dies(cluster, config, tmp_path, how):
    arguments = ["--config", str(config), f"evaluate.output_dir={tmp_path}", *NOTHING]
    ledgers = tmp_path / "ledger"
    command = [
        sys.executable,
        str(REPOSITORY / "tests" / "dying_rank.py"),
        "1",
        str(ledgers / "rank-1.jsonl"),
        *arguments,
    ]
    if how == "srun":
        line = ["srun", "--ntasks=3", "--overcommit", *command]
    else:
        line = ["sbatch", "--wait", "--array=0-2", f"--output={tmp_path}/%a.log", f"--wrap={shlex.join(command)}"]
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | cluster.environment | {"PYTHONPATH": path}
    done = subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode != 0, done.stdout
    counts = [(ledgers / f"rank-{r}.jsonl").read_bytes().count(b"\n") - 1 for r in range(3)]
    assert counts[0] == counts[2] == NUM_TEST // 3 and 2 <= counts[1] < NUM_TEST // 3, (counts, done.stderr)
    assert not (tmp_path / "metrics.json").exists()

    before = {r.sample_key for r in read_records(ledgers)}
    metrics = evaluate(load_config(config, arguments[2:]))
    assert (ledgers / "rank-0.jsonl").read_bytes().count(b"\n") - 1 == NUM_TEST - len(before) + NUM_TEST // 3
    alone = load_config(config, [*arguments[2:], f"evaluate.output_dir={tmp_path / 'alone'}"])
    assert_same(numbers(metrics), numbers(evaluate(alone)))
    assert json.loads(metrics.read_text())["coverage"] == 1
