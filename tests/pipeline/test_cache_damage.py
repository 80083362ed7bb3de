"""A cache that is damaged under a run: training stops with exit code 3 and says what to do, which mends it."""

import hashlib
import json
import shutil

import pytest

from masp.cache.reader import open_cache


def content(folder):
    names = [*(folder / "shards").glob("*.*"), *(folder / n for n in ("index.h5", "manifest.json", "layout.json"))]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in names}


def flip(path, position):
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 64]))


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.full)])
def test_training_stops_at_damaged_bytes_and_repair_mends_them(commands, world, tmp_path, num_workers):
    folder = shutil.copytree(world.folder / "cache", tmp_path / "cache")
    whole, cache = content(folder), open_cache(folder)
    row = int(cache.rows("train")[3])
    shard, key = cache.shard_name(int(cache.index.shard[row])), cache.index.keys[row]
    flip(folder / "shards" / f"{shard}.tar", int(cache.index.offset[row] + cache.index.length[row]) - 9)
    output = tmp_path / "run"
    settings = world.settings(output, f"cache.dir={folder}", f"engine.num_workers={num_workers}")

    result = commands("train", "--stage", "stage2", *settings, "checkpoint.aspect=none")
    assert result.code == 3
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert f"{shard}.tar: sample {key}: the features do not match their checksum" in line
    assert f"rebuild it with `masp cache verify {folder} --repair --config" in line
    status = json.loads((output / "stage2" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 3) and key in status["message"]

    found = commands("cache", "verify", folder)
    assert found.code == 3 and f"shards/{shard}.tar: sample {key}: its features are damaged" in found.stdout
    repaired = commands.ok("cache", "verify", folder, "--repair", *settings)
    assert "1 problems found and repaired" in repaired.stdout
    assert content(folder) == whole
    if num_workers:
        commands.ok("train", "--stage", "stage2", *settings, "checkpoint.aspect=none")


@pytest.mark.full
def test_training_and_evaluation_read_8_bits_unchanged(commands, world, tmp_path):
    settings = world.settings(tmp_path / "run", f"cache.dir={tmp_path / 'cache'}", "cache.dtype=int8")
    commands.ok("extract", *settings)
    for stage in ("stage1", "stage2"):
        commands.ok("train", "--stage", stage, *settings)
    commands.ok("evaluate", *settings)
    metrics = json.loads((tmp_path / "run" / "evaluate" / "metrics.json").read_text())
    assert metrics["num_samples"] == 13
    table = commands.ok("cache", "precision", *settings, "--num-images", "5").stdout
    assert "scored with aspect modules and soft prompt" in table
    refused = commands("evaluate", *world.settings(tmp_path / "run", f"cache.dir={tmp_path / 'cache'}"))
    assert refused.code == 2 and 'made with dtype = "int8", but here it is "fp32"' in refused.stderr
