"""What submitit is told about a part. What sbatch then gets is in tests/unit/launch/test_cli.py."""

from pathlib import Path

import pytest

from launch.job.config import load_cluster
from launch.job.parts import make_parts
from launch.submission.slurm_scripts import check_installed, parameters, scripts
from masp.config import load_config
from masp.errors import InputError
from tests.unit.launch.fake_slurm import CONFIG, SLURM


def part(name: str, *settings: str):
    cluster = load_cluster(SLURM, settings)
    every = make_parts("pipeline", None, load_config(CONFIG), cluster, Path("config.yaml"))
    return next(part for part in every if part.name == name), cluster


def test_a_rank_that_dies_ends_training_but_not_evaluation():
    for name, kills in (("stage1", True), ("evaluate", False), ("extract", False)):
        chosen, cluster = part(name)
        assert ("--kill-on-bad-exit=1" in parameters(cluster, chosen, "run", None)["srun_args"]) == kills, name


def test_what_is_not_set_is_left_to_slurm():
    chosen, cluster = part("stage1", "train.gpus_per_task=0", "train.memory_gb=null", "partition=null")
    found = parameters(cluster, chosen, "run", None)
    assert found["job_name"] == "masp-run-stage1"
    assert not {"partition", "account", "mem", "gpus_per_node", "dependency", "array_parallelism"} & set(found)
    assert parameters(cluster, chosen, "run", "41")["dependency"] == "afterok:41"


def test_memory_is_in_whole_megabytes():
    chosen, cluster = part("stage1", "train.memory_gb=0.5")
    assert parameters(cluster, chosen, "run", None)["mem"] == "512MB"


def test_an_array_has_its_limit():
    chosen, cluster = part("extract", "extract.num_tasks=8", "extract.max_parallel=3")
    assert parameters(cluster, chosen, "run", None)["array_parallelism"] == 3
    (text,) = scripts([chosen], cluster, "run", Path("/shared/run")).values()
    assert "#SBATCH --array=0-7%3" in text and "/shared/run/jobs" in text


def test_without_slurm_there_is_nothing_to_submit_to(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="this machine has no sbatch"):
        check_installed()


def test_options_of_a_part_win_and_never_stand_twice():
    settings = ["sbatch=[partition=all, mem=0]", "partition=main", "train.gpu_type=a100", "train.memory_gb=8"]
    options = "train.sbatch=[partition=h100, gres=gpu:h100:2]"
    srun = "train.srun=[container-image=/masp.sqsh, container-mount-home]"
    for name, gpu in (("stage1", "--gpus-per-node=a100:8"), ("stage1 with gres", "--gres=gpu:h100:2")):
        more = [options, srun, "train.python=/opt/python"] if "gres" in name else []
        chosen, cluster = part("stage1", *settings, *more)
        (text,) = scripts([chosen], cluster, "run", Path("/shared/run")).values()
        lines = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
        assert gpu in lines and sum("gpu" in line or "gres" in line for line in lines) == 1
        assert [line for line in lines if line.startswith("--partition")] == [
            f"--partition={'h100' if more else 'all'}"
        ]
        assert [line for line in lines if line.startswith("--mem")] == ["--mem=0"]
        assert "wckey" not in text
    assert "--container-image=/masp.sqsh --container-mount-home /opt/python -u -m launch.job.task" in text
    chosen, cluster = part("stage1", "sbatch=[wckey=lab]")
    assert "#SBATCH --wckey=lab" in scripts([chosen], cluster, "run", Path("/shared/run"))["stage1"]


def test_the_shipped_example_has_no_more_processes_than_a_step_has_images():
    config = load_config(SLURM.parents[1] / "train.yaml")
    chosen, _ = part("stage1")
    assert chosen.num_ranks <= min(config.stage1.global_batch_size, config.stage2.global_batch_size)
