"""Several runs together: a study that is killed and resumed, a comparison, and one run on several datasets."""

import json

import pytest
import yaml

from tests.images import make_dataset

EPOCH = ("stage1.num_epochs=1", "stage2.num_epochs=1")


def test_a_study_resumes_after_a_kill_and_its_runs_compare(commands, world, tmp_path):
    settings = (*world.settings(tmp_path, *EPOCH), "--seeds", "4", "--only", "zero_shot,without_vision_features")
    running = commands.start("study", *settings)
    folder = tmp_path / "study" / "seed-4"
    running.when(lambda: (folder / "masp" / "stage1" / "aspect.safetensors").exists())
    running.kill(group=True)
    assert running.wait().code == -9 and not (tmp_path / "study" / "study.json").exists()
    before = (folder / "masp" / "stage1" / "aspect.safetensors").stat().st_mtime_ns
    done = commands.ok("study", *settings)
    assert (folder / "masp" / "stage1" / "aspect.safetensors").stat().st_mtime_ns == before
    assert "| without vision features |" in done.stdout
    result = json.loads((tmp_path / "study" / "study.json").read_text())
    assert list(result["variants"]) == ["masp", "zero_shot", "without_vision_features"]
    for name in result["variants"]:
        metrics = json.loads((folder / name / "evaluate" / "metrics.json").read_text())
        assert result["variants"][name]["accuracies"] == {"4": metrics["accuracy"]}
        assert metrics["vision_features"] is (name != "without_vision_features") and metrics["num_samples"] == 13

    runs = [folder / "masp", folder / "without_vision_features"]
    compared = commands.ok("compare", *runs, "--output", tmp_path / "compare")
    found = json.loads((tmp_path / "compare" / "compare.json").read_text())
    assert result["notes"] == []  # both kept the digest of the same features
    (note,) = found["notes"]
    assert "compared on the test split" in note
    pair = found["pairs"][0]
    assert pair["difference"] == pytest.approx(result["variants"]["without_vision_features"]["difference"])
    assert "McNemar p" in compared.stdout


@pytest.mark.full
def test_every_variant_runs_for_two_seeds(commands, world, tmp_path):
    commands.ok("study", *world.settings(tmp_path, *EPOCH), "--seeds", "1,2")
    result = json.loads((tmp_path / "study" / "study.json").read_text())
    # three aspects; lengths 1, 2 and 8 beside 4; 1 and 10 queries beside 5
    assert len(result["variants"]) == 5 + 3 + 3 + 2 + 1
    assert all(row["spread"] is not None for name, row in result["variants"].items() if name != "zero_shot")


def test_damaged_data_of_one_dataset_do_not_keep_others_from_being_scored(commands, world, trained, tmp_path):
    base = yaml.safe_load(world.config.read_text())
    files = []
    for name, seed in (("near", 1), ("far", 2)):
        pictures = make_dataset(tmp_path / name, 3, 6, seed=seed)
        changed = base | {"dataset": {"name": "folder", "root": str(pictures)}}
        files += ["--on", tmp_path / f"{name}.yaml"]
        files[-1].write_text(yaml.safe_dump(changed | {"cache": base["cache"] | {"dir": str(tmp_path / f"c{seed}")}}))
    broken = next((tmp_path / "near" / "test").rglob("*.png"))
    whole = broken.read_bytes()
    broken.write_bytes(whole[:200])
    settings = world.settings(trained, f"evaluate.output_dir={tmp_path / 'out'}", "evaluate.source=live")
    ended = commands("evaluate", *settings, *files)
    assert ended.code == 3 and ended.stderr.count("error: ") == 1, ended
    assert f"error: near: {broken} cannot be read: " in ended.stderr
    assert (tmp_path / "out" / "on" / "far" / "metrics.json").exists()
    assert not (tmp_path / "out" / "datasets.json").exists()
    broken.write_bytes(whole)
    assert commands.ok("evaluate", *settings, *files).last_line.startswith("evaluate: 3 datasets: ")


@pytest.mark.full
def test_one_call_evaluates_several_datasets_on_any_ranks(commands, world, trained, tmp_path):
    base = yaml.safe_load(world.config.read_text())
    files = []
    for name, seed in (("near", 1), ("far", 2)):
        pictures = make_dataset(tmp_path / name, 3, 6, seed=seed)
        if name == "far":
            for split in ("train", "test"):
                (pictures / split / "awe").rename(pictures / split / "wonder")
        changed = base | {"dataset": {"name": "folder", "root": str(pictures)}}
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(yaml.safe_dump(changed | {"cache": base["cache"] | {"dir": str(tmp_path / f"c{seed}")}}))
    on = [word for file in files for word in ("--on", file)]
    settings = world.settings(trained, f"evaluate.output_dir={tmp_path / 'out'}", "evaluate.source=live")

    refused = commands("evaluate", *settings, *on)
    assert refused.code == 2 and "not trained on: wonder" in refused.stderr and not (tmp_path / "out").exists()
    refused = commands("evaluate", *settings, *on, "evaluate.category_map=[marvel=awe]")
    assert refused.code == 2 and "'marvel' is not a category" in refused.stderr

    mapped = (*settings, *on, "evaluate.category_map=[wonder=awe]")
    first = commands.ok("evaluate", *mapped, RANK=0, WORLD_SIZE=2, LOCAL_RANK=0)
    assert "other ranks still have samples" in first.stdout and not (tmp_path / "out" / "datasets.json").exists()
    last = commands.ok("evaluate", *mapped, RANK=1, WORLD_SIZE=2, LOCAL_RANK=1)
    assert last.last_line == f"evaluate: 3 datasets: {tmp_path / 'out' / 'datasets.json'}"
    rows = json.loads((tmp_path / "out" / "datasets.json").read_text())
    assert {name: row["num_samples"] for name, row in rows.items()} == {"folder": 13, "near": 6, "far": 6}
    assert rows["far"]["category_map"] == {"anger": "anger", "wonder": "awe", "joy": "joy"}
    metrics = json.loads((tmp_path / "out" / rows["far"]["metrics"]).read_text())
    assert metrics["accuracy"] == rows["far"]["accuracy"] and metrics["categories"] == ["anger", "awe", "joy"]
    assert metrics["lineage"]["soft_prompt"]["origin"] == "trained"


def test_a_dataset_to_evaluate_on_needs_only_what_is_used_of_it(world, tmp_path):
    from masp.config import load_config
    from masp.evaluation.transfer import dataset_configs

    other = tmp_path / "other.yaml"
    other.write_text("dataset: {name: FI, root: data/FI}\ncache: {dir: cache/fi}\n")
    config = load_config(world.config)
    found = dataset_configs(config, [str(other)])["other"]
    assert (found.dataset.name, found.cache.dir, found.vlm.path) == ("fi", "cache/fi", config.vlm.path)


def test_a_dataset_is_skipped_only_if_it_is_the_same_and_that_is_said(world, tmp_path, monkeypatch, capsys):
    from masp.config import load_config
    from masp.evaluation.transfer import dataset_configs
    from masp.runtime.log import setup

    setup()

    config = load_config(world.config)
    base = yaml.safe_load(world.config.read_text())
    (tmp_path / "link").symlink_to(world.folder)
    monkeypatch.chdir(world.folder)
    cache = {"dir": str(tmp_path / "link" / "cache")}
    own = {"dataset": base["dataset"] | {"root": "./pictures"}, "cache": base["cache"] | cache}
    train = own | {"evaluate": base["evaluate"] | {"split": "train"}}
    mapped = own | {"evaluate": base["evaluate"] | {"category_map": ["joy=awe"]}}
    for name, changes in {"same": own, "train": train, "train_too": train, "mapped": mapped}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(base | changes))
    files = [str(tmp_path / f"{name}.yaml") for name in ("same", "train", "train_too", "mapped")]
    found = dataset_configs(config, files)
    assert list(found) == ["folder", "train", "mapped"]
    assert found["train"].evaluate.split == "train" and found["mapped"].evaluate.category_map == ["joy=awe"]
    assert capsys.readouterr().err.splitlines() == [
        f"note: --on {files[0]} is skipped: it is the same as the run's own dataset",
        f"note: --on {files[2]} is skipped: it is the same as --on {files[1]}",
    ]
