"""What is refused when a run is submitted, and what stays of it."""

import json
import re
import subprocess
import sys

import pytest

from launch.cli import main
from launch.submission.record import find_directory, read_record
from tests.runs import REPOSITORY
from tests.unit.launch.fake_slurm import COMMANDS, CONFIG, LOCAL, SLURM


@pytest.fixture
def launch(config_path, tmp_path, capsys):
    """Calls the command line; returns exit code, output and errors."""

    def run(command, *arguments):
        cluster = tmp_path / "cluster.yaml"
        cluster.write_text("executor: slurm\ntrain: {nodes: 2}\n")
        outputs = [f"output_dir={tmp_path / 'run'}", f"cache.dir={tmp_path / 'cache'}"]
        code = main([command, "--cluster", str(cluster), "--config", str(config_path), *outputs, *map(str, arguments)])
        printed = capsys.readouterr()
        errors = [line for line in printed.err.splitlines() if "note: " not in line]
        return code, printed.out, "\n".join(errors)

    return run


def test_what_is_queued_already_leaves_when_slurm_refuses_a_part(launch, commands, tmp_path):
    code, _, error = launch("pipeline")
    assert code == 2
    assert error == "error: cluster: Slurm refused stage1: Batch job submission failed: Invalid qos"
    assert (commands / "cancelled").read_text() == "41\n"
    assert not list(tmp_path.rglob("launch/*/"))


def test_a_job_that_slurm_does_not_take_back_is_named_and_known(launch, commands, tmp_path, monkeypatch):
    monkeypatch.setattr("launch.submission.slurm_scripts._POLL_S", 0)
    (commands / "scancel").write_text("#!/bin/sh\nexit 1\n")
    code, _, error = launch("pipeline")
    assert code == 2
    assert error.endswith("Invalid qos; and it did not take back jobs 41: run `scancel 41` when it answers")
    (path,) = tmp_path.rglob("launch/*/submission.json")
    assert [part["job_ids"] for part in json.loads(path.read_text())["parts"]] == [["41"], [], [], []]


@pytest.mark.parametrize(
    ("name", "text", "arguments", "expected"),
    [
        ("scontrol", "echo 'Slurmctld(primary) at x is DOWN'", (), "Slurm does not answer: Slurmctld(primary) at x is"),
        (
            "sbatch",
            "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1",
            ("cluster.partition=gpu",),
            "error: cluster: Slurm would refuse extract: invalid partition specified: gpu; nothing was submitted",
        ),
        ("squeue", "echo 'squeue: error: Socket timed out' >&2; exit 1", (), None),
        (
            "sinfo",
            COMMANDS["sinfo"],
            ("cluster.partition=small", "cluster.extract.timeout_min=31"),
            "error: cluster: extract.timeout_min = 31: partition small allows at most 30",
        ),
        (
            "sinfo",
            COMMANDS["sinfo"],
            ("cluster.train.timeout_min=1441",),
            "error: cluster: train.timeout_min = 1441: partition main allows at most 1440",
        ),
    ],
)
def test_what_slurm_would_refuse_is_one_line_and_leaves_nothing(
    name, text, arguments, expected, launch, commands, tmp_path
):
    (commands / name).write_text(f"#!/bin/sh\n{text}\n")
    if expected is None:
        expected = "error: cluster: squeue: Socket timed out"
        # There is something to ask about only if the run was submitted before.
        folder = tmp_path / "run" / "launch" / "1"
        folder.mkdir(parents=True)
        record = {"command": "extract", "stage": None, "executor": "slurm", "working_directory": "/", "host": "h"}
        part = {"name": "extract", "num_jobs": 1, "num_ranks": 1, "result": "x", "job_ids": ["7"]}
        (folder / "submission.json").write_text(json.dumps(record | {"time": 0, "parts": [part]}))
    code, _, error = launch("pipeline", *arguments)
    assert code == 2
    assert expected in error and error.count("\n") == 0
    assert [path.name for path in tmp_path.rglob("launch/*/")] in ([], ["1"])


def test_submitting_a_part_that_runs_already_is_refused(directory, slurm, tmp_path, capsys):
    slurm("8|N/A|RUNNING|None|0:06|node1|0|\n")
    given = ["--cluster", str(SLURM), "--config", str(CONFIG), f"output_dir={tmp_path / 'run'}"]
    given.append(f"cache.dir={tmp_path / 'cache'}")
    assert main(["train", "--stage", "stage1", *given]) == 2
    error = capsys.readouterr().err
    assert "stage1 is queued or running already" in error and str(directory) in error and error.count("\n") == 1
    assert list((tmp_path / "run" / "launch").glob("*/")) == [directory]
    assert find_directory(str(tmp_path / "run")) == directory
    assert main(["resume", str(directory)]) == 2
    assert "nothing to resume: it is running" in capsys.readouterr().err


def test_notes_of_the_preflight_are_logged_and_the_result_printed(directory, slurm, config_path, tmp_path, capsys):
    (tmp_path / "bin" / "sbatch").unlink()
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho Submitted batch job 41\n")
    (tmp_path / "bin" / "sinfo").write_text("#!/bin/sh\n")
    for name in ("sbatch", "sinfo"):
        (tmp_path / "bin" / name).chmod(0o755)
    run = tmp_path / "other"
    given = ["--cluster", str(SLURM), "--config", str(config_path), f"output_dir={run}"]
    given += [f"cache.dir={tmp_path / 'cache'}", "cluster.extract.num_tasks=6", "cluster.extract.gpus_per_task=0"]
    assert main(["extract", *given]) == 0
    printed = capsys.readouterr()
    (submission,) = (run / "launch").glob("*/")
    assert printed.out.splitlines() == [
        "submitted: jobs 41 (extract, 6 tasks)",
        f"launch: logs in {submission / 'jobs'}; result: {tmp_path / 'cache'}",
    ]
    assert re.search(r"(^| )note: cluster.extract.num_tasks = 6: 2 of them have nothing", printed.err, re.M)
    assert read_record(submission).parts[0].job_ids == ("41",)
    names = ["cluster.yaml", "config.yaml", "environment.json", "jobs", "submission.json"]
    assert [path.name for path in sorted(submission.iterdir()) if path.suffix != ".diff"] == names


def test_two_submissions_at_once(config_path, commands, tmp_path, capsys):
    parent = tmp_path / "run" / "launch"
    parent.mkdir(parents=True)
    code = "from masp.files.locks import *; import pathlib, time\n"
    code += f"with holding(pathlib.Path({str(parent / '.lock')!r}), '', key='output_dir'):\n"
    code += " print(flush=True); time.sleep(60)"
    given = ["--cluster", str(SLURM), "--config", str(config_path), f"output_dir={tmp_path / 'run'}"]
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert main(["extract", *given]) == 2
        other.kill()
    expected = f"error: output_dir: {tmp_path / 'run'}: another `launch` is submitting it at this moment; wait for it\n"
    assert capsys.readouterr().err == expected


def test_a_local_dry_run_names_the_processes_of_each_part(capsys, config_path, tmp_path):
    given = ["--cluster", str(LOCAL), "--config", str(config_path), f"output_dir={tmp_path / 'run'}", "--dry-run"]
    assert main(["train", "--stage", "stage1", *given]) == 2  # all checks run, and there is no cache yet
    printed = capsys.readouterr()
    assert printed.out == f"stage1: 1 x 1 processes on this machine: {tmp_path / 'run' / 'stage1'}\n"
    assert "error: cache.dir: " in printed.err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_checks_what_a_submission_checks(config_path, tmp_path, capsys):
    given = ["--cluster", str(LOCAL), "--config", str(config_path), f"output_dir={tmp_path / 'run'}"]
    given += [f"cache.dir={tmp_path / 'cache'}", f"dataset.root={tmp_path / 'none'}"]
    for more in ([], ["--dry-run"]):
        assert main(["extract", *given, *more]) == 2
        assert f"dataset.root = '{tmp_path / 'none'}': no such directory" in capsys.readouterr().err
        assert not list(tmp_path.rglob("submission.json"))
