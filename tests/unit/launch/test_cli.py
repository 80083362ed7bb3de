"""`python -m launch`: what would be submitted, and how mistakes are told. Nothing here needs Slurm."""

import subprocess
import sys

import pytest

from launch.cli import main
from launch.job.parts import COMMANDS
from masp.errors import DataError
from tests.runs import REPOSITORY

SLURM = REPOSITORY / "configs" / "cluster" / "slurm.yaml"
LOCAL = REPOSITORY / "configs" / "cluster" / "local.yaml"
CONFIG = REPOSITORY / "configs" / "demo.yaml"


@pytest.fixture
def launch(capsys, tmp_path):
    """Calls the command line with outputs in a temporary directory; returns exit code, output and errors."""

    def run(command, *arguments, cluster=SLURM):
        given = ["--cluster", cluster, "--config", CONFIG, f"output_dir={tmp_path / 'run'}", *arguments]
        code = main([command, *map(str, given)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def scripts(output: str) -> dict[str, list[str]]:
    """The lines of each part's script."""
    found, lines = {}, []
    for line in output.splitlines():
        if line.startswith("# -------- "):
            lines = found[line.strip("# -")] = []
        lines.append(line)
    return found


def test_pipeline_is_a_chain(launch, tmp_path):
    code, output, _ = launch("pipeline", "--dry-run", "cluster.partition=gpu", "cluster.sbatch=[reservation=lab]")
    assert code == 0
    found = scripts(output)
    assert list(found) == ["extract", "stage1", "stage2", "evaluate"]
    for lines in found.values():
        assert {"#!/bin/bash", "#SBATCH --partition=gpu", "#SBATCH --reservation=lab", "#SBATCH --requeue"} <= {*lines}
        assert "#SBATCH --signal=USR2@120" in lines
        (command,) = (line for line in lines if line.startswith("srun "))
        assert "--cpus-per-task=8" in command and "-m launch.job.task" in command
    assert "#SBATCH --array=0-15%16" in found["extract"]
    assert not any("dependency" in line for line in found["extract"])
    for name, before in (("stage1", "extract"), ("stage2", "stage1"), ("evaluate", "stage2")):
        assert f"#SBATCH --dependency='afterok:<id of {before}>'" in found[name]
        assert "#SBATCH --kill-on-invalid-dep=yes" in found[name]
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=8", "#SBATCH --gpus-per-node=8"} <= {*found["stage1"]}
    assert {"#SBATCH --mem=262144MB", "#SBATCH --time=1440"} <= {*found["stage2"]}
    assert not list(tmp_path.iterdir())  # a dry run writes nothing


def test_settings_reach_the_script(launch):
    settings = ["cluster.train.nodes=4", "cluster.setup=[module load cuda, export A=1]", "cluster.max_requeues=0"]
    settings += ["cluster.account=lab", "cluster.qos=high", "cluster.constraint=a100|h100", "cluster.mail_user=me@here"]
    _, output, _ = launch("train", "--stage", "stage2", "--dry-run", *settings, "cluster.train.gpus_per_task=0")
    ((name, lines),) = scripts(output).items()
    assert name == "stage2"
    assert {"#SBATCH --nodes=4", "#SBATCH --no-requeue", "#SBATCH --account=lab", "#SBATCH --qos=high"} <= {*lines}
    assert {"#SBATCH --constraint='a100|h100'", "#SBATCH --mail-user=me@here"} <= {*lines}
    assert lines.index("module load cuda") < lines.index("export A=1") < lines.index("export SUBMITIT_EXECUTOR=slurm")
    assert not any("gpus" in line or "dependency" in line for line in lines)


def test_without_aspects_there_is_no_stage_1(launch):
    _, output, _ = launch("pipeline", "--dry-run", "aspects=[]")
    assert list(scripts(output)) == ["extract", "stage2", "evaluate"]


def test_dry_run_without_slurm_tells_the_order(launch):
    code, output, _ = launch("pipeline", "--dry-run", "cluster.train.tasks_per_node=2", cluster=LOCAL)
    assert code == 0
    assert [line.partition(":")[0] for line in output.splitlines()] == ["extract", "stage1", "stage2", "evaluate"]
    assert "stage1: 1 x 2 processes on this machine" in output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train"], "error: the following arguments are required: --stage; see `python -m launch train --help`"),
        (["extract", "--stage", "stage1"], "error: unrecognized arguments: --stage"),
        (
            ["train", "--stage", "stage1", "--learning_rate", "1e-4"],
            "error: unrecognized arguments: --learning_rate; a setting is given as key=value, without dashes: "
            "stage1.learning_rate=1e-4; see",
        ),
        (
            ["extract", "--partition=gpu"],
            "error: unrecognized arguments: --partition=gpu; a setting is given as key=value, without dashes: "
            "cluster.partition=gpu; see",
        ),
        (["status"], "error: the following arguments are required: RUN"),
        (["cancel", "here", "there"], "error: unrecognized arguments: there"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line(arguments, expected, capsys):
    if arguments[0] in COMMANDS:
        arguments = [*arguments, "--cluster", str(SLURM), "--config", str(CONFIG)]
    with pytest.raises(SystemExit) as error:
        main(arguments)
    printed = capsys.readouterr().err
    assert error.value.code == 2
    assert printed.startswith(expected) and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["extract", "stage1.num_epoch=1"], "did you mean stage1.num_epochs?"),
        (["extract", "cluster.extract.num_task=1"], "did you mean extract.num_tasks?"),
        (["extract", "output_dir=/proc/none"], "error: output_dir: /proc/none/launch cannot be written: /proc"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(arguments, expected, launch, tmp_path):
    code, _, error = launch(*arguments)
    assert code == 2
    assert expected in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("launch/*/"))


def test_a_machine_without_slurm_is_told_so(launch, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, error = launch("extract")
    assert code == 2
    assert "this machine has no sbatch" in error and "configs/cluster/local.yaml" in error
    assert not list(tmp_path.rglob("launch/*/"))


def test_settings_of_run_and_cluster_may_be_anywhere(launch):
    code, output, _ = launch("extract", "cluster.account=a", "--dry-run", "seed=3", "cluster.qos=high")
    assert code == 0
    assert {"#SBATCH --account=a", "#SBATCH --qos=high"} <= {*scripts(output)["extract"]}


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (DataError("a\nb"), 3, "error: a\\nb\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted: what was submitted goes on\n"),
    ],
)
def test_what_ends_a_command_is_an_exit_code(monkeypatch, capsys, error, code, printed):
    def status(run, wait):
        assert (run, wait) == ("outputs/run", False)
        raise error

    monkeypatch.setattr("launch.follow.status", status)
    assert main(["status", "outputs/run"]) == code
    assert capsys.readouterr().err == printed


def test_help_imports_nothing_heavy():
    code = "import sys, launch.cli; print([m for m in ('torch', 'submitit', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
