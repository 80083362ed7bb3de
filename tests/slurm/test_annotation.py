"""A pipeline over images that nobody annotated, on a real Slurm: the VLM annotates them as an array."""

import json
import shutil

import pytest

from masp.annotation.job import annotate
from masp.config import load_config
from tests.runs import make_run
from tests.slurm.site import logs

pytestmark = [pytest.mark.slurm, pytest.mark.full]


def test_a_pipeline_annotates_with_an_array_what_one_process_annotates(site, tmp_path):
    config_path, run = make_run(tmp_path), tmp_path / "run"
    (images,) = {path.parent for path in tmp_path.rglob("annotation")}
    shutil.rmtree(images / "annotation")
    settings = ["aspects=[scene,brightness]", "aspect_definitions=configs/aspects-demo.yaml"]
    settings += ["annotate.aspects=[scene,brightness]", "annotate.device=cpu", "annotate.num_threads=1"]
    arrays = ["cluster.extract.num_tasks=2", "cluster.annotate.num_tasks=2"]
    done = site.launch("pipeline", "--config", config_path, *settings, *arrays, "--wait")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs(run)}"

    (directory,) = (run / "launch").glob("*/")
    parts = {part["name"]: part for part in json.loads((directory / "submission.json").read_text())["parts"]}
    assert list(parts) == ["extract", "annotate", "stage1", "stage2", "evaluate"]
    assert parts["annotate"]["num_jobs"] == 2
    job = parts["annotate"]["job_ids"][0]
    states = site.ask("sacct", "-X", "-P", "-n", "-o", "JobID,State", "-j", job).split()
    assert sorted(states) == [f"{job}_0|COMPLETED", f"{job}_1|COMPLETED"]

    alone = load_config(config_path, [*settings, f"cache.dir={tmp_path / 'alone'}"])
    shutil.copytree(tmp_path / "cache", alone.cache.dir, ignore=shutil.ignore_patterns("annotations"))
    annotate(alone)
    for name in ("scene.parquet", "brightness.parquet", "_manifest.json"):
        here, there = (tmp_path / cache / "annotations" / name for cache in ("cache", "alone"))
        assert here.read_bytes() == there.read_bytes(), name
