"""The whole pipeline as a user runs it, on images as users have them, for each family of VLM."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.mixed import BROKEN, CATEGORIES, GOOD, make_mixed
from tests.runs import REPOSITORY
from tests.tiny import FAMILIES, make_vlm

ASPECTS = ["scene", "object", "brightness"]
KEYS = "num_samples num_correct accuracy accuracy_ci95 macro_f1 per_category confusion coverage".split()


def write_config(folder: Path, vlm: Path, images: Path) -> Path:
    stage = {"num_epochs": 2, "learning_rate": 0.01, "global_batch_size": 8, "micro_batch_size": 4, "log_every": 1}
    settings = {
        "output_dir": str(folder / "run"),
        "questions": str(REPOSITORY / "configs" / "questions.yaml"),
        "aspects": ASPECTS,
        "vlm": {"path": str(vlm), "max_pixels": 12544},
        "dataset": {"name": "folder", "root": str(images)},
        "cache": {"dir": str(folder / "cache"), "dtype": "fp32", "num_shards": 4},
        "extract": {"num_workers": 2, "num_threads": 1, "batch_tokens": 64, "max_bad_fraction": 0.2, "device": "cpu"},
        "stage1": stage,
        "stage2": stage | {"num_soft_prompt_tokens": 4},
        "engine": {"precision": "fp32", "device": "cpu", "num_workers": 1, "num_threads": 1},
        "evaluate": {"batch_size": 5, "num_workers": 1},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def check_quarantine(cache: Path) -> None:
    lines = [json.loads(line) for line in (cache / "quarantine.jsonl").read_text().splitlines()]
    assert {Path(line["path"]).name for line in lines} == set(BROKEN)
    assert all(line["reason"] for line in lines)


def check_metrics(path: Path, num_samples: int) -> dict:
    metrics = json.loads(path.read_text())
    assert not [key for key in KEYS if key not in metrics]
    assert metrics["num_samples"] == num_samples and metrics["coverage"] == 1
    assert metrics["accuracy"] == metrics["num_correct"] / num_samples
    assert metrics["accuracy_ci95"][0] <= metrics["accuracy"] <= metrics["accuracy_ci95"][1]
    assert sorted(metrics["per_category"]) == ["joy", "quiet fear"]
    assert sum(map(sum, metrics["confusion"])) == num_samples
    return metrics


@pytest.mark.parametrize(
    "family", [FAMILIES[0], *(pytest.param(name, marks=pytest.mark.full) for name in FAMILIES[1:])]
)
def test_from_images_to_the_report(commands, tmp_path, family):
    images = make_mixed(tmp_path / "images")
    vlm = make_vlm(tmp_path / "vlm", family)
    config, run = write_config(tmp_path, vlm, images), tmp_path / "run"
    before = {path: path.read_bytes() for path in vlm.iterdir()}

    extracted = commands.ok("extract", "--config", config)
    assert extracted.last_line.startswith(f"cache: {tmp_path / 'cache'}: {4 * len(GOOD)} images in 4 shards")
    assert "3 in quarantine" in extracted.last_line
    check_quarantine(tmp_path / "cache")
    assert commands.ok("cache", "verify", tmp_path / "cache").last_line.endswith("no problem found")

    stage1 = commands.ok("train", "--stage", "stage1", "--config", config)
    # each of the twelve formats is annotated in one of the two categories: 12 images, 2 epochs of 2 steps
    assert stage1.last_line == f"stage1: 4 steps: {run / 'stage1' / 'aspect.safetensors'}"
    aspects = load_file(run / "stage1" / "aspect.safetensors")
    released = torch.load(run / "stage1" / "aspect.pth", weights_only=True)
    assert sorted(released) == ["cross_attn", "fuser", "q_view"] and list(released["q_view"]) == ASPECTS
    for aspect in ASPECTS:
        assert torch.equal(released["q_view"][aspect], aspects[f"{aspect}.query"])
        assert torch.equal(released["cross_attn"][aspect]["out_proj.bias"], aspects[f"{aspect}.out_proj_bias"])

    stage2 = commands.ok("train", "--stage", "stage2", "--config", config)
    assert stage2.last_line == f"stage2: 6 steps: {run / 'stage2' / 'soft_prompt_folder.safetensors'}"
    weight = load_file(run / "stage2" / "soft_prompt_folder.safetensors")["weight"]
    rows = torch.load(run / "stage2" / "soft_prompt_folder.pt", weights_only=True)
    assert list(rows) == [f"<|reserved_special_token_{i}|>" for i in range(4)]
    assert torch.equal(torch.stack(list(rows.values())), weight)
    # rows of their own, not views into something large
    assert (run / "stage2" / "soft_prompt_folder.pt").stat().st_size < 20_000

    for stage, num_steps in (("stage1", 4), ("stage2", 6)):
        status = json.loads((run / stage / "status.json").read_text())
        assert (status["state"], status["exit_code"], status["step"]) == ("finished", 0, num_steps)
        steps = [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
        assert [entry["step"] for entry in steps] == list(range(1, num_steps + 1))
        assert all(0 < entry["loss"] < 30 and entry["learning_rate"] > 0 for entry in steps)
        assert steps[-1]["epoch"] == 2 and list((run / stage / "tensorboard").iterdir())
        assert yaml.safe_load((run / stage / "config.yaml").read_text())["aspects"] == ASPECTS

    evaluated = commands.ok("evaluate", "--config", config)
    path = run / "evaluate" / "metrics.json"
    assert evaluated.last_line.startswith("evaluate: accuracy ") and evaluated.last_line.endswith(str(path))
    metrics = check_metrics(path, 2 * len(GOOD))
    assert metrics["lineage"]["soft_prompt"]["origin"] == "trained"
    generated = tmp_path / "generated"
    more = ["evaluate.max_new_tokens=16", f"evaluate.output_dir={generated}"]
    commands.ok("evaluate", "--config", config, "evaluate.scoring=generate", *more)
    check_metrics(generated / "metrics.json", 2 * len(GOOD))

    shown = [images / "test" / "joy" / "test_turned.jpg", images / "test" / "quiet_fear" / "test_one_wide.png"]
    looked = tmp_path / "looked.html"
    predicted = commands.ok("predict", *shown, "--config", config, "--json", "--attention", looked)
    assert looked.read_text().count("<img") == len(shown) * (1 + len(ASPECTS))
    lines = [json.loads(line) for line in predicted.stdout.splitlines()]
    assert [line["image"] for line in lines] == list(map(str, shown))
    for line in lines:
        assert set(line["probabilities"]) == {"joy", "quiet fear"}
        assert abs(sum(line["probabilities"].values()) - 1) < 1e-6
        assert line["prediction"] == max(line["probabilities"], key=line["probabilities"].get)

    report = commands.ok("report", run)
    assert report.last_line == f"report: {run / 'report.html'}"
    assert "quiet fear" in (run / "report.html").read_text()
    assert {path: path.read_bytes() for path in vlm.iterdir()} == before
    for result in (extracted, stage1, stage2, evaluated, predicted, report):
        assert "Warning" not in result.stderr and "Traceback" not in result.stderr, result.stderr
        assert result.stderr.count("\n") <= 2, result.stderr  # the bar, and at most a note


def test_images_without_annotations_with_given_aspect_modules(commands, trained, world, tmp_path):
    images = make_mixed(tmp_path / "mine", annotated=False)
    vlm = world.folder / "vlm"
    config = write_config(tmp_path, vlm, images)
    given = (f"checkpoint.aspect={trained / 'stage1' / 'aspect.safetensors'}", "aspects=[scene,object,brightness]")
    commands.ok("extract", "--config", config)
    check_quarantine(tmp_path / "cache")

    refused = commands("train", "--stage", "stage1", "--config", config)
    assert refused.code == 2 and "no training image is annotated" in refused.stderr
    commands.ok("train", "--stage", "stage2", "--config", config, *given)
    commands.ok("evaluate", "--config", config, *given)
    metrics = check_metrics(tmp_path / "run" / "evaluate" / "metrics.json", 2 * len(GOOD))
    assert metrics["lineage"]["aspect"]["dataset"] == "folder"
    # the same modules in the released format: the same digest, so the soft prompt takes them
    given = (f"checkpoint.aspect={trained / 'stage1' / 'aspect.pth'}", given[1])
    commands.ok("evaluate", "--config", config, *given, f"evaluate.output_dir={tmp_path / 'again'}")
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert again["lineage"]["aspect"]["origin"] == "imported"
    assert again["confusion"] == metrics["confusion"]

    broken = images / "train" / CATEGORIES[0] / "words.png"
    good = images / "train" / CATEGORIES[0] / "train_plain.png"
    predicted = commands("predict", broken, good, "--config", config, *given)
    assert predicted.code == 2 and predicted.stdout.startswith(f"{good}: ")
    assert predicted.stderr.splitlines()[-1].startswith(f"error: 1 of 2 images cannot be read: {broken} (")


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("aspects=[]",), marks=pytest.mark.full),
        ("checkpoint.aspect=none",),
        ("engine.precision=bf16", "engine.zero_stage=1"),
        ("engine.zero_stage=3", "stage2.layout=released"),
        pytest.param(("stage2.frozen_prefix=false", "stage2.soft_prompt_init=question"), marks=pytest.mark.full),
    ],
    ids=lambda value: value[0],
)
def test_stage_2_in_its_variants(commands, world, trained, tmp_path, overrides):
    aspect = f"checkpoint.aspect={trained / 'stage1' / 'aspect.safetensors'}"
    settings = world.settings(tmp_path, aspect, "stage2.num_epochs=1", *overrides)
    commands.ok("train", "--stage", "stage2", *settings)
    commands.ok("evaluate", *settings)
    assert json.loads((tmp_path / "evaluate" / "metrics.json").read_text())["num_samples"] == 13


def test_the_console_command_in_a_process_of_its_own(world, tmp_path):
    """Nothing that the other tests share: a fresh interpreter, from the repository's own directory."""
    command = [sys.executable, "-m", "masp.cli", "train", "--stage", "stage1", *world.settings(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"stage1: 6 steps: {tmp_path / 'stage1' / 'aspect.safetensors'}\n"
    bar = done.stderr.replace("\r", "\n").strip().splitlines()
    assert all(line.startswith("stage1: ") for line in bar), done.stderr
