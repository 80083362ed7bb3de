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
