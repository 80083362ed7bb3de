"""One set of images in every form, through the commands: the same accuracy and predictions, also after kills."""

import hashlib
import random
import signal
import time
from pathlib import Path

import pytest

from masp.cache.verify import verify_cache
from masp.config import save_config
from masp.data.keys import path_of
from masp.results.metrics_file import read_metrics
from masp.results.records import read_records_file
from tests.dataset_forms import FORMS, read_items, write_form
from tests.images import CATEGORIES, make_config, make_dataset
from tests.tiny import make_vlm

ZERO_SHOT = (
    "checkpoint.soft_prompt=none",
    "checkpoint.aspect=none",
    "engine.device=cpu",
    "engine.precision=fp32",
    "evaluate.num_workers=0",
)


def make(tmp_path: Path, name: str, items, vlm, *settings: str):
    """A form of the set and the configuration that extracts and scores it; every image is encoded alone."""
    form = write_form(name, tmp_path / name / "data", items)
    config = make_config(
        "none",
        vlm,
        tmp_path / name / "cache",
        *(f"dataset.{setting}" for setting in form.settings),
        f"dataset.categories=[{', '.join(CATEGORIES)}]",
        "extract.batch_tokens=1",
        f"output_dir={tmp_path / name / 'run'}",
        *ZERO_SHOT,
        *settings,
    )
    save_config(config, tmp_path / f"{name}.yaml")
    return form, tmp_path / f"{name}.yaml"


def predictions(commands, form, config: Path, run: Path) -> tuple[float, dict[str, tuple]]:
    """Accuracy, and per item its label, prediction and scores."""
    for command in ("extract", "evaluate"):
        commands(command, "--config", config)
    records = read_records_file(run / "evaluate" / "records.h5")
    outcomes = [records.outcome(row) for row in range(len(records.keys))]
    problems: list[str] = []
    metrics = read_metrics(run / "evaluate" / "metrics.json", problems)
    assert not problems
    return metrics.accuracy, {
        form.item_of(path_of(key)): (label, said, tuple(scores))
        for (key, label, said), scores in zip(outcomes, records.scores.tolist(), strict=True)
    }


@pytest.mark.parametrize(
    ("names", "num_images"),
    [
        (("folders", "webdataset", "parquet"), 24),
        pytest.param(tuple(FORMS), 300, marks=[pytest.mark.full, pytest.mark.timeout(1800)]),
    ],
)
def test_predictions_and_accuracy_are_the_same(tmp_path, commands, names, num_images):
    num_test = num_images // 4
    items = read_items(make_dataset(tmp_path / "items", num_images - num_test, num_test), num_images)
    vlm = make_vlm(tmp_path / "vlm")
    found = {}
    for name in names:
        form, config = make(tmp_path, name, items, vlm)
        found[name] = predictions(commands, form, config, tmp_path / name / "run")
    accuracy, outcomes = found["folders"]
    assert len(outcomes) == num_test
    for other, others in found.values():
        assert other == accuracy and others.keys() == outcomes.keys()
        for name, (label, said, scores) in others.items():
            assert (label, said) == outcomes[name][:2]
            assert scores == pytest.approx(outcomes[name][2], abs=1e-5)  # batches have other neighbors


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["folders", "table_csv", "webdataset", "parquet", "arrow"])
def test_kills_at_random_moments_of_two_tasks(tmp_path, commands, name):
    items, vlm = read_items(make_dataset(tmp_path / "items", 240, 60), 300), make_vlm(tmp_path / "vlm")
    _, whole = make(tmp_path / "whole", name, items, vlm, "cache.num_shards=12")
    _, killed = make(tmp_path / "killed", name, items, vlm, "cache.num_shards=12")
    started = time.monotonic()
    commands("extract", "--config", whole)
    whole_s, moment, kills = time.monotonic() - started, random.Random(1), 0
    shards = tmp_path / "killed" / name / "cache" / "shards"
    while kills < 10:
        task = kills % 2
        running = commands.start("extract", "--config", killed, "--num-tasks", 2, "--task-index", task)
        time.sleep(moment.uniform(0.1, 0.8) * whole_s / 2)
        running.kill()
        if running.wait().code == -signal.SIGKILL:
            kills += 1
        else:  # it was faster: begin again with half of what is done
            for path in sorted(shards.glob("*.json"))[::2]:
                path.unlink()
    for task in range(2):
        commands("extract", "--config", killed, "--num-tasks", 2, "--task-index", task)
    for path in sorted((tmp_path / "whole" / name / "cache" / "shards").glob("*.tar")):
        again = shards / path.name
        assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(path.read_bytes()).digest()
    assert not verify_cache(shards.parent)
