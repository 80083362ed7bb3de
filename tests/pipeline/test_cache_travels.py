"""A cache is used on a machine that has neither the images nor the directory in which it was made."""

import json
import shutil

from tests.runs import assert_same, numbers


def test_what_arrived_is_trained_on_and_evaluated(commands, world, trained, tmp_path):
    commands.ok("cache", "push", world.folder / "cache", tmp_path / "archive")
    commands.ok("cache", "pull", tmp_path / "archive", tmp_path / "cache")
    shutil.rmtree(tmp_path / "archive")
    info = commands.ok("cache", "info", tmp_path / "cache").stdout
    here = commands.ok("cache", "info", world.folder / "cache").stdout
    assert info.splitlines()[1:] == here.splitlines()[1:]
    assert "no problem found" in commands.ok("cache", "verify", tmp_path / "cache").stdout

    there = [f"cache.dir={tmp_path / 'cache'}", f"dataset.root={tmp_path / 'no' / 'such' / 'directory'}"]
    for stage in ("stage1", "stage2"):
        commands.ok("train", "--stage", stage, *world.settings(tmp_path / "run", *there))
    for name in ("stage1/aspect.safetensors", "stage2/soft_prompt_folder.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (trained / name).read_bytes(), name
    commands.ok("evaluate", *world.settings(tmp_path / "run", *there))
    commands.ok("evaluate", *world.settings(trained, f"evaluate.output_dir={tmp_path / 'expected'}"))
    metrics = tmp_path / "run" / "evaluate" / "metrics.json"
    assert json.loads(metrics.read_text())["num_samples"] == 13
    assert_same(numbers(metrics), numbers(tmp_path / "expected" / "metrics.json"))
