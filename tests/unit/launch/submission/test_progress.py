"""How far a part is, from a run's files, whatever state they are in."""

import json
import os

import pytest

from launch.job.parts import PartName
from launch.submission.progress import progress
from masp.config import Config, load_config
from masp.evaluation.run import evaluate_dir
from masp.runtime.run_directory import RunState, write_status
from tests.unit.launch.fake_slurm import CONFIG


@pytest.fixture
def config(tmp_path) -> Config:
    (tmp_path / "run" / "stage1").mkdir(parents=True)
    return load_config(CONFIG, [f"output_dir={tmp_path / 'run'}", f"cache.dir={tmp_path / 'cache'}"])


def test_nothing_is_said_while_there_is_nothing(config):
    assert {progress(name, config) for name in PartName} == {""}


def test_steps_of_training(config, tmp_path):
    stage = tmp_path / "run" / "stage1"
    write_status(stage, RunState.RUNNING, step=0, num_steps=40)
    assert progress(PartName.STAGE1, config) == "step 0 of 40"
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]
    (stage / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "lo')
    assert progress(PartName.STAGE1, config) == "step 3 of 40"
    write_status(stage, RunState.RUNNING)
    assert progress(PartName.STAGE1, config) == "step 3"


@pytest.mark.parametrize("odd", ["[]", '{"step": "9"}', '{"step": true}', "[" * 100_000, '{"loss": NaN}', "\0"])
def test_a_line_that_is_not_one_of_the_log_is_passed_over(odd, config, tmp_path):
    stage = tmp_path / "run" / "stage1"
    write_status(stage, RunState.RUNNING, num_steps=40)
    (stage / "metrics.jsonl").write_text(f'{odd}\n{{"step": 3}}\n{odd[:3000]}\n')
    assert progress(PartName.STAGE1, config) == "step 3 of 40"


def test_a_record_counts_for_each_line_but_the_header(config, tmp_path):
    of_stage1 = load_config(CONFIG, [f"output_dir={config.output_dir}", "evaluate.stage=stage1"])
    ledger = evaluate_dir(of_stage1) / "ledger"
    ledger.mkdir(parents=True)
    for rank, num_lines in enumerate((0, 1, 4)):
        (ledger / f"rank-{rank}.jsonl").write_text("{}\n" * num_lines)
    assert progress(PartName.EVALUATE, of_stage1) == "3 records"


@pytest.mark.parametrize("file", ["run/stage1/status.json", "run/stage1/metrics.jsonl"])
@pytest.mark.parametrize("odd", ["directory", "fifo"])
def test_what_cannot_be_read_is_said_in_the_table(file, odd, config, tmp_path):
    write_status(tmp_path / "run" / "stage1", RunState.RUNNING, num_steps=40)
    path = tmp_path / file
    path.unlink(missing_ok=True)
    path.mkdir() if odd == "directory" else os.mkfifo(path)
    assert progress(PartName.STAGE1, config) == f"cannot be read: {path} cannot be read: not a regular file"


@pytest.mark.parametrize("name", ["layout.json"])
def test_a_damaged_cache_is_said_in_the_table(name, config, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / name).write_text("{}")
    assert progress(PartName.EXTRACT, config).startswith("cannot be read: ")
