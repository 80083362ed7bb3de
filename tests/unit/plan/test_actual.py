"""What a run has left, beside the prediction."""

import copy
import json

from masp.extraction.job import extract
from masp.plan.actual import Comparison
from masp.plan.plan import make_plan
from masp.plan.render import render
from tests.images import make_dataset


def test_images_that_are_damaged_behind_their_headers_are_the_only_difference(config, tmp_path):
    broken = sorted((tmp_path / "data" / "train").rglob("*.jpg"))[0]
    broken.write_bytes(broken.read_bytes()[:900])
    extract(config)
    actual = make_plan(config).actual.cache
    assert actual.num_images == Comparison(24, 23)
    assert actual.bytes.actual < actual.bytes.predicted


def test_an_unfinished_cache_is_compared_shard_by_shard(config, tmp_path):
    extract(config)
    (tmp_path / "cache" / "manifest.json").unlink()
    (tmp_path / "cache" / "shards" / "train-00001.json").unlink()
    actual = make_plan(config).actual.cache
    assert not actual.complete and actual.num_shards == Comparison(4, 3)
    assert actual.bytes.predicted == actual.bytes.actual > 0
    assert actual.num_images.predicted is None


def test_logs_of_a_run_are_shown_beside_the_prediction(config, tmp_path):
    (tmp_path / "run" / "stage1").mkdir(parents=True)
    line = json.dumps({"samples_per_second": 3.0, "tokens_per_second": 150.0})
    (tmp_path / "run" / "stage1" / "metrics.jsonl").write_text(f"{line}\n{line}\n")
    result = make_plan(config)
    assert list(result.actual.stages) == ["stage1"]
    stage = result.actual.stages["stage1"]
    assert stage.images_per_s.actual == 3.0 and stage.tokens_per_image.actual == 50.0
    assert stage.tokens_per_image.predicted == result.stages["stage1"].tokens_per_image > 0
    assert "stage1: tokens/image" in render(result)


def test_a_cache_of_another_dataset_is_not_compared_with(config, tmp_path):
    """It has the same name and categories, as two folders of images often have."""
    extract(config)
    other = copy.deepcopy(config)
    other.dataset.root = str(make_dataset(tmp_path / "other", 9, 3, seed=5))
    for path in (tmp_path / "other/train").rglob("*.*"):
        path.rename(path.with_name(f"other-{path.name}"))
    for path in (tmp_path / "other/test").rglob("*.*"):
        path.rename(path.with_name(f"other-{path.name}"))
    plan = make_plan(other)
    assert plan.actual.cache is plan.actual.extract is None
    assert "holds features of another dataset" in plan.dataset.notes[-1] and plan.dataset.findings[-1].serious
    assert make_plan(config).actual.cache is not None
