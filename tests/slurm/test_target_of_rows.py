"""A target of one's own on the rows of a parquet file, on a real Slurm: what the same run gives without Slurm."""

import json
from pathlib import Path

import pytest
import yaml

from masp.cache.reader import open_cache
from masp.config import load_config
from masp.data.keys import path_of
from masp.evaluation.run import evaluate
from masp.extraction.job import extract
from masp.results.metrics_file import read_metrics
from masp.results.records import read_records_file
from masp.training.loop import train
from tests.dataset_forms import read_items, write_form
from tests.images import CATEGORIES, make_dataset
from tests.runs import assert_same, make_config_file, numbers
from tests.slurm.site import logs
from tests.tiny import make_vlm

pytestmark = [pytest.mark.slurm, pytest.mark.full]

SEASONS = ("winter", "spring", "autumn")


def make_run(directory: Path) -> tuple[Path, dict[str, str]]:
    """A configuration for 21 rows; and the seasons that a table gives most of them, by the path in the sample key."""
    items = read_items(make_dataset(directory / "images", 12, 9), 21)
    form = write_form("parquet_bytes", directory / "rows", items)
    seasons = {f"all/{number:08d}": SEASONS[number % 3] for number in range(len(items)) if number % 5}
    table = directory / "seasons.csv"
    table.write_text("\n".join(["image,label", *map(",".join, seasons.items())]) + "\n")
    path = make_config_file(directory, make_vlm(directory / "vlm"), directory / "rows", max_pixels=12544)
    settings = yaml.safe_load(path.read_text())
    given = [yaml.safe_load(setting.replace("=", ": ", 1)) for setting in form.settings]
    settings["dataset"] = {"name": "folder", "categories": list(CATEGORIES)} | given[0] | given[1]
    settings["target"] = {
        "name": "season",
        "questions": ["Which season is it? Choose one of: {categories}.", "Name the season: {categories}."],
        "labels": str(table),
    }
    path.write_text(yaml.safe_dump(settings))
    return path, seasons


def test_a_pipeline_learns_a_target_of_rows_as_one_process_does(site, tmp_path):
    config_path, seasons = make_run(tmp_path)
    run = tmp_path / "run"
    done = site.launch("pipeline", "--config", config_path, "cluster.extract.num_tasks=2", "--wait")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs(run)}"
    (directory,) = (run / "launch").glob("*/")
    parts = json.loads((directory / "submission.json").read_text())["parts"]
    assert [(part["name"], part["num_jobs"], part["num_ranks"]) for part in parts] == [
        ("extract", 2, 1), ("stage1", 1, 2), ("stage2", 1, 2), ("evaluate", 1, 2),
    ]  # fmt: skip

    metrics = run / "evaluate" / "metrics.json"
    found = read_metrics(metrics, [])
    assert found.target == "season" and set(found.categories) == set(SEASONS)
    cache, records = open_cache(tmp_path / "cache"), read_records_file(run / "evaluate" / "records.h5")
    labels = {path_of(key): label for key, label, _ in map(records.outcome, range(len(records.keys)))}
    tested = {path_of(cache.index.keys[row]) for row in cache.rows("test").tolist()}
    assert len(cache) == 21 and labels == {path: season for path, season in seasons.items() if path in tested}
    assert 0 < len(labels) < len(tested) == 9

    alone = load_config(config_path, [f"output_dir={tmp_path / 'alone'}", f"cache.dir={tmp_path / 'cache_alone'}"])
    extract(alone)
    train(alone, "stage1")
    train(alone, "stage2")
    assert_same(numbers(metrics), numbers(evaluate(alone)))
    for shard in sorted((tmp_path / "cache_alone" / "shards").glob("*.tar")):
        assert shard.read_bytes() == (tmp_path / "cache" / "shards" / shard.name).read_bytes(), shard.name
