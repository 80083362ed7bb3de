"""Expected time against time limits."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch.job.config import load_cluster
from launch.job.parts import make_parts
from launch.time_limits import check_time, expected_hours
from masp.config import load_config
from masp.errors import InputError
from tests.unit.launch.fake_slurm import LOCAL, SLURM


def test_expected_time_is_compared_with_limit_and_restarts(config_path):
    config = load_config(config_path, ["output_dir=/none"])
    stages = {"stage1": SimpleNamespace(hours=100.0), "stage2": SimpleNamespace(hours=8.0)}
    scoring = SimpleNamespace(hours=30.0)
    plan = SimpleNamespace(extract=SimpleNamespace(hours=60.0), stages=stages, evaluate=scoring)
    settings = ["train.gpus_per_task=1", "train.nodes=2", "train.tasks_per_node=2", "train.timeout_min=600"]
    settings += ["extract.gpus_per_task=1", "extract.num_tasks=4", "extract.timeout_min=900"]
    settings += [
        "evaluate.gpus_per_task=1",
        "evaluate.num_tasks=8",
        "evaluate.max_parallel=5",
        "evaluate.timeout_min=900",
    ]
    cluster = load_cluster(SLURM, [*settings, "max_requeues=2"])
    parts = make_parts("pipeline", None, config, cluster, Path("config.yaml"))
    assert [expected_hours(part, config, plan) for part in parts] == [15.0, 25.0, 2.0, 6.0]
    (note,) = check_time(parts, config, cluster, plan)
    assert note.startswith("stage1 is expected to take 25.0 h and will start again about 2 times")
    cluster = load_cluster(SLURM, [*settings, "max_requeues=1"])
    with pytest.raises(InputError, match=r"stage1 is expected to take 25.0 h, which is more than 2 runs of 10.0 h"):
        check_time(parts, config, cluster, plan)


def test_on_cpus_nothing_is_expected_without_an_earlier_run(config_path, tmp_path):
    config = load_config(config_path, [f"output_dir={tmp_path}"])
    parts = make_parts("train", "stage1", config, load_cluster(LOCAL), Path("config.yaml"))
    stage = SimpleNamespace(hours=1.0, tokens_per_image=100.0, num_images=3600, num_epochs=2)
    plan = SimpleNamespace(stages={"stage1": stage})
    assert expected_hours(parts[0], config, plan) is None
    (tmp_path / "stage1").mkdir()
    line = json.dumps({"step": 1, "samples_per_second": 1.0, "tokens_per_second": 50.0})
    (tmp_path / "stage1" / "metrics.jsonl").write_text(f"{line}\n{line}\n")
    assert expected_hours(parts[0], config, plan) == pytest.approx(4.0)


@pytest.mark.parametrize(("gpus", "planned", "expected"), [(1, 12.0, 6.0), (0, 12.0, None), (1, None, None)])
def test_an_annotation_is_shared_by_its_tasks(config_path, gpus, planned, expected):
    settings = [f"annotate.gpus_per_task={gpus}", "annotate.num_tasks=2"]
    config = load_config(config_path, ["annotate.aspects=[scene]"])
    (part,) = make_parts("annotate", None, config, load_cluster(SLURM, settings), Path("config.yaml"))
    plan = SimpleNamespace(annotate=None if planned is None else SimpleNamespace(hours=planned))
    assert expected_hours(part, config, plan) == expected
