"""Training without a cache: what training from a cache gives, on any number of ranks, and augmented runs."""

import json
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from masp.cache.manifest import read_manifest
from masp.demo.data import make_demo_data
from masp.training.logs import read_key_logs
from tests.commands import Ranks
from tests.images import CATEGORIES
from tests.runs import make_run

STAGES = ("stage1", "stage2")
NO_CACHE = "cache.dir=null"
STAGE = ("num_epochs=2", "global_batch_size=6", "micro_batch_size=2", "log_every=1", "log_keys=true")
VALIDATION = ("validate_every=3", "validation_size=4")
SETTINGS = ("cache.num_shards=5", "extract.num_threads=1", "engine.num_threads=1", "extract.max_bad_fraction=0.1")
# small, because Adam turns the rounding of tiny gradients, which ranks sum in other orders, into whole steps
RATES = ("stage1.learning_rate=1e-4", "stage2.learning_rate=1e-3")


@pytest.fixture(scope="module")
def demo(repository, commands, tmp_path_factory):
    """Arguments of commands on a small demo world, one of whose training images is broken, with its cache."""
    folder = tmp_path_factory.mktemp("demo")
    make_demo_data(folder / "data", 22, 6, seed=1)
    rows = json.loads((folder / "data" / "train.json").read_text())
    broken = folder / "data" / rows[4][1]
    broken.write_bytes(broken.read_bytes()[:80])
    stages = [f"{stage}.{value}" for stage in STAGES for value in (*STAGE, *VALIDATION)]

    def argv(command: str, output: str, *more: str) -> list[str]:
        config = str(repository / "configs" / "demo.yaml")
        paths = (f"dataset.root={folder / 'data'}", f"cache.dir={folder / 'cache'}", f"output_dir={folder / output}")
        return [*command.split(), "--config", config, *paths, *SETTINGS, *RATES, *stages, *more]

    commands.ok(*argv("extract", "cached"))
    for stage in STAGES:
        commands.ok(*argv(f"train --stage {stage}", "cached"))
    return argv, folder


def artifact(output: Path, stage: str) -> Path:
    return next((output / stage).glob("*.safetensors"))


def lines(output: Path, stage: str, name: str) -> list[dict]:
    path = output / stage / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keys_of_steps(output: Path, stage: str) -> dict[int, set[str]]:
    found = defaultdict(set)
    for line in read_key_logs(output / stage):
        assert not found[line.step] & set(line.keys)
        found[line.step] |= set(line.keys)
    return found


def assert_same_course(found: Path, expected: Path, stage: str) -> None:
    for name in ("metrics.jsonl", "validation.jsonl"):
        one, other = ([line["loss"] for line in lines(output, stage, name)] for output in (found, expected))
        assert one == pytest.approx(other, abs=1e-5, rel=0) and len(set(one)) > 1, name
    assert keys_of_steps(found, stage) == keys_of_steps(expected, stage)
    one, other = load_file(artifact(found, stage)), load_file(artifact(expected, stage))
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        assert torch.allclose(one[name], tensor, atol=1e-5, rtol=0), (name, (one[name] - tensor).abs().max())


def lineage(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["masp"])


@pytest.mark.full
def test_the_same_losses_tensors_and_samples_as_from_a_cache(demo, commands):
    argv, folder = demo
    for output, more in (("one", ("engine.num_workers=1",)), ("two", ())):
        for stage in STAGES:
            command = argv(f"train --stage {stage}", output, NO_CACHE, *more)
            said = commands.ok(*command) if output == "one" else Ranks(commands, 2, *command).ok()[0]
            assert "cache.dir = null: the encoder runs in training" in said.stderr
            assert "1 of 28 images cannot be read and are left out: " in said.stderr
            assert_same_course(folder / output, folder / "cached", stage)
            assert (folder / output / stage / "quarantine.jsonl").read_bytes() == (
                folder / "cache" / "quarantine.jsonl"
            ).read_bytes()
    # what was trained says that there was no cache, and on which images; and may be used with a cache
    manifest, cached = read_manifest(folder / "cache"), lineage(artifact(folder / "cached", "stage2"))
    live = lineage(artifact(folder / "one", "stage2"))
    assert (live["cache"], live["dataset_digest"]) == (None, manifest.dataset.digest)
    assert cached["cache"] == manifest.index.sha256 and "dataset_digest" not in cached
    assert (live["model"], live["machine"]) == (cached["model"], cached["machine"])
    commands.ok(*argv("evaluate", "one"))  # from the cache
    commands.ok(*argv("evaluate", "two", NO_CACHE))
    one, two = (json.loads((folder / run / "evaluate" / "metrics.json").read_text()) for run in ("one", "two"))
    assert (one["source"], two["source"]) == ("cache", "live") and one["confusion"] == two["confusion"]


@pytest.mark.full
def test_an_augmented_run_that_was_killed_and_one_on_two_ranks(demo, commands):
    argv, folder = demo
    stage, whole, killed = "stage2", folder / "whole", folder / "killed"
    given = f"checkpoint.aspect={artifact(folder / 'cached', 'stage1')}"
    more = (NO_CACHE, "dataset.augment=crop", given, "stage2.checkpoint_every=2", "stage2.num_epochs=3")

    def command(output: Path, *other: str) -> list[str]:
        return argv("train --stage stage2", output.name, *more, *other)

    commands.ok(*command(whole))
    expected, plain = load_file(artifact(whole, stage)), load_file(artifact(folder / "cached", stage))
    assert not torch.allclose(expected["weight"], plain["weight"], atol=1e-4)

    running = commands.start(*command(killed, "engine.num_workers=2"))
    running.when(lambda: len(lines(killed, stage, "metrics.jsonl")) >= 3)
    running.kill(group=True)
    running.wait()
    commands.ok(*command(killed))
    assert torch.equal(load_file(artifact(killed, stage))["weight"], expected["weight"])

    Ranks(commands, 2, *command(folder / "divided")).ok()
    assert_same_course(folder / "divided", whole, stage)


@pytest.mark.full
def test_votes_in_parquet_files_on_three_ranks(commands, tmp_path):
    """Neither labels nor a cache: distributions that a file has, learned by three ranks, whose steps are uneven."""
    config = make_run(tmp_path, 13, 5)
    write_votes(tmp_path / "pictures", tmp_path / "votes")

    def argv(command: str, output: str, *more: str) -> list[str]:
        dataset = (f"dataset.root={tmp_path / 'votes'}", f"dataset.distribution=[{', '.join(CATEGORIES)}]")
        stage = ("num_epochs=3", "global_batch_size=4", "log_every=1", "learning_rate=1e-3", "supervision=distribution")
        settings = (*dataset, "aspects=[]", *(f"stage2.{each}" for each in stage))
        return [*command.split(), "--config", str(config), *settings, f"output_dir={tmp_path / output}", *more]

    commands.ok(*argv("extract", "cached"))
    commands.ok(*argv("train --stage stage2", "cached"))
    Ranks(commands, 3, *argv("train --stage stage2", "live", NO_CACHE)).ok()
    logs = [lines(tmp_path / run, "stage2", "metrics.jsonl") for run in ("live", "cached")]
    one, other = ([line["loss"] for line in log] for log in logs)
    assert one == pytest.approx(other, abs=1e-5, rel=0) and len(set(one)) > 5
    live, cached = (load_file(artifact(tmp_path / run, "stage2")) for run in ("live", "cached"))
    assert all(torch.allclose(live[name], cached[name], atol=1e-5, rtol=0) for name in cached)
    # and labels teach something else
    commands.ok(*argv("train --stage stage2", "labels", "stage2.supervision=label"))
    labels = load_file(artifact(tmp_path / "labels", "stage2"))
    assert not all(torch.allclose(labels[name], cached[name], atol=1e-4) for name in cached)


def write_votes(images: Path, target: Path) -> None:
    """Write images as the parquet files of the Hub, with a column of votes per category."""
    target.mkdir()
    for split in ("train", "test"):
        rows = []
        for number, path in enumerate(sorted((images / split).glob("*/*.*"))):
            votes = {category: (number * (place + 2)) % 5 for place, category in enumerate(CATEGORIES)}
            votes[CATEGORIES[number % 3]] += 5
            rows.append({"image": {"bytes": path.read_bytes(), "path": path.name}, **votes})
        pq.write_table(pa.Table.from_pylist(rows), target / f"{split}-00000-of-00001.parquet", row_group_size=4)
