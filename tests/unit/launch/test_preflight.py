"""What is refused before anything is queued."""

import shutil
from pathlib import Path

import pytest

from launch.job.config import load_cluster
from launch.job.parts import make_parts
from launch.preflight import check_writable, limit_minutes, preflight
from masp.config import load_config
from masp.errors import InputError
from tests.unit.launch.fake_slurm import LOCAL


def looked(config_path, command, *overrides, cluster=LOCAL):
    prefixed = [text.removeprefix("cluster.") for text in overrides if text.startswith("cluster.")]
    settings = load_cluster(cluster, prefixed)
    config = load_config(config_path, [text for text in overrides if not text.startswith("cluster.")])
    stage = "stage1" if command == "train" else None
    return preflight(make_parts(command, stage, config, settings, Path("config.yaml")), config, settings)


@pytest.mark.parametrize(
    ("command", "overrides", "expected"),
    [
        ("extract", ["dataset.root=/none"], "dataset.root"),
        ("extract", ["vlm.path=/none"], "vlm.path"),
        ("extract", ["cache.dir=/proc/none"], "cache.dir: /proc/none cannot be written: /proc"),
        ("pipeline", ["questions=/none.yaml"], "questions: /none.yaml is not a file"),
        ("train", ["cache.dir=/none"], "/none"),
        ("evaluate", ["cache.dir=/none"], "/none"),
        ("extract", ["extract.device=cuda"], "extract.device = 'cuda', but cluster.extract.gpus_per_task = 0"),
        (
            "pipeline",
            ["cache.dir=null", "extract.device=cuda"],
            "extract.device = 'cuda', but cluster.train.gpus_per_task = 0, and with cache.dir = null the encoder runs",
        ),
        ("train", ["cache.dir=null", "dataset.root=/none"], "dataset.root"),
        ("evaluate", ["cache.dir=null", "vlm.path=/none"], "vlm.path"),
        ("pipeline", ["cache.dir=null", "aspects=[facial_expression]"], "no training image is annotated with any of"),
        (
            "evaluate",
            ["cluster.evaluate.gpus_per_task=1"],
            "engine.device = 'cpu', but cluster.evaluate.gpus_per_task = 1",
        ),
        (
            "extract",
            ["extract.device=auto", "cluster.extract.gpus_per_task=1"],
            "cluster.extract.tasks_per_node = 1 with a GPU each, but this machine has 0",
        ),
    ],
)
def test_what_would_not_run_is_named(command, overrides, expected, config_path, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    outputs = [f"output_dir={tmp_path / 'run'}", f"cache.dir={tmp_path / 'cache'}"]
    with pytest.raises(InputError) as error:
        looked(config_path, command, *outputs, *overrides)
    assert expected in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_cache_without_room_is_refused(config_path, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(InputError, match="DOES NOT FIT: needs 0.00 GB"):
        looked(config_path, "extract", f"cache.dir={tmp_path / 'cache'}")


def test_a_cache_of_other_settings_is_refused(config_path, tmp_path):
    from masp.extraction.job import agree, prepare

    config = load_config(config_path, [f"cache.dir={tmp_path / 'cache'}"])
    agree(prepare(config))
    outputs = [f"output_dir={tmp_path / 'run'}", f"cache.dir={tmp_path / 'cache'}"]
    assert looked(config_path, "pipeline", *outputs).plan.images.num_images == 18
    with pytest.raises(InputError, match="num_shards = 4, but here it is 3"):
        looked(config_path, "pipeline", *outputs, "cache.num_shards=3")
    with pytest.raises(InputError, match="max_pixels = 12544, but here it is 6272"):
        looked(config_path, "pipeline", *outputs, "vlm.max_pixels=6272")


def test_without_a_cache_the_plan_is_made_and_no_image_is_decoded(config_path, tmp_path, monkeypatch):
    monkeypatch.setattr("masp.extraction.image_stream.read_image_file", None)
    overrides = [f"output_dir={tmp_path / 'run'}", "cache.dir=null"]
    plan = looked(config_path, "pipeline", *overrides).plan
    assert plan.space is None and plan.stages["stage2"].encoder_flops > 0
    assert looked(config_path, "evaluate", *overrides).plan.evaluate.num_images == 6


def test_processes_without_work_are_told(config_path, tmp_path):
    overrides = ["cluster.extract.num_tasks=6", "cluster.train.tasks_per_node=5", f"cache.dir={tmp_path / 'cache'}"]
    notes = looked(config_path, "pipeline", *overrides).notes
    assert "num_tasks = 6: 2 of them have nothing to do" in notes[0]
    assert "stage1: 1 of 5 processes have nothing to do" in notes[1]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("infinite", None), ("1-00:00:00", 1440), ("30:00", 30), ("2:00:00", 120), ("7-12:30:00", 10830), ("n/a", None)],
)
def test_durations_of_slurm(text, minutes):
    assert limit_minutes(text) == minutes


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            InputError, match=f"output_dir: {path} cannot be written: {tmp_path}/file: is not a directory"
        ):
            check_writable("output_dir", str(path))
    check_writable("output_dir", str(tmp_path / "a" / "b"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
