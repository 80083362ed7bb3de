"""What is wrong with a dataset reaches the user through every command, and stays with what was made from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from masp.data.findings import FILE
from tests.runs import make_run

FEW = ("stage1.num_epochs=1", "stage2.num_epochs=1")


@pytest.fixture(scope="module")
def run(commands, tmp_path_factory) -> tuple[Path, Path]:
    """An extracted run whose training images are mostly in the wrong place, and partly in the test split too."""
    folder = tmp_path_factory.mktemp("findings")
    config, pictures = make_run(folder, 8, 4), folder / "pictures"
    loose = pictures / "train"
    for i in range(40):
        (loose / f"{i}.png").write_bytes(b"image")
    shutil.copy(pictures / "train/anger/train.000.jpg", pictures / "test/awe/copy.jpg")
    commands.ok("extract", "--config", config)
    return config, folder


IGNORED = (
    "warning: dataset: 40 of 53 files are ignored, 13 are used (40 in a split but in none of its category directories"
)
TWICE = "warning: dataset: 1 images are in more than one split, byte for byte (1 in test and train)"
TORN = "warning: dataset: 1 images have more than one category"


def test_every_command_says_it(commands, run):
    config, folder = run
    for command in ("doctor", "plan"):
        assert IGNORED.replace("dataset: ", "") in commands.ok(command, "--config", config).stdout
    again = commands.ok("extract", "--config", config)
    assert IGNORED in again.stderr
    info = commands.ok("cache", "info", folder / "cache").stdout
    for text in (IGNORED, TWICE, TORN):
        assert text.replace("dataset: ", "") in info
    for command in (("train", "--stage", "stage1"), ("train", "--stage", "stage2"), ("evaluate",)):
        stderr = commands.ok(*command, "--config", config, *FEW).stderr
        assert all(text in stderr for text in (IGNORED, TWICE, TORN)), stderr
    assert "warning: stage" not in stderr

    before = (folder / "cache" / FILE).read_bytes()
    for directory in ("stage1", "stage2", "evaluate"):
        assert (folder / "run" / directory / FILE).read_bytes() == before
    notes = json.loads((folder / "run/evaluate/metrics.json").read_text())["notes"]
    assert any(IGNORED.removeprefix("warning: ") in note for note in notes)
    commands.ok("report", folder / "run")
    page = (folder / "run/report.html").read_text()
    assert "What the dataset holds" in page and "40 of 53 files are ignored" in page


def test_a_cache_from_before_they_were_kept_gets_them(commands, run):
    config, folder = run
    path = folder / "cache" / FILE
    before = path.read_bytes()
    path.unlink()
    assert "were not recorded" in commands.ok("cache", "info", folder / "cache").stdout
    assert TWICE in commands.ok("extract", "--config", config).stderr
    assert path.read_bytes() == before


def test_live_evaluation_says_what_the_listing_shows(commands, run, tmp_path):
    config, _ = run
    none = ("checkpoint.aspect=none", "checkpoint.soft_prompt=none", "evaluate.source=live")
    done = commands.ok("evaluate", "--config", config, *none, f"evaluate.output_dir={tmp_path}")
    assert IGNORED in done.stderr and (tmp_path / FILE).is_file()


def test_an_aspect_without_images_is_refused_before_anything_is_loaded(commands, run):
    config, folder = run
    aspects = "aspects=[scene,human_action]"
    done = commands("train", "--stage", "stage1", "--config", config, aspects, f"output_dir={folder / 'other'}")
    assert done.code == 2 and done.stderr.splitlines()[-1] == (
        "error: aspects: no training image is annotated with human_action, so that its module would keep random "
        "values; give aspects=[scene] or annotate images with it (`masp annotate` lets the VLM do it)"
    )
    assert not (folder / "other/stage1/aspect.safetensors").exists()


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_learning_rate_of_zero_is_refused(commands, run, tmp_path, stage):
    config, _ = run
    done = commands("train", "--stage", stage, "--config", config, f"{stage}.learning_rate=0", f"output_dir={tmp_path}")
    assert done.code == 2 and f"error: {stage}.learning_rate = 0: nothing would be trained" in done.stderr


def test_steps_that_change_nothing_are_remarked_on_before_and_after(commands, run, tmp_path):
    config, _ = run
    settings = ("stage2.learning_rate=5e-6", "stage2.log_every=1", "stage2.num_epochs=3", f"output_dir={tmp_path}")
    stderr = commands.ok("train", "--stage", "stage2", "--config", config, "aspects=[]", *settings).stderr
    assert "warning: stage2: 6 steps at stage2.learning_rate = 5e-06 move a value by at most about 2e-05" in stderr
    assert "warning: stage2: the loss hardly moved in 6 steps, from " in stderr
    status = json.loads((tmp_path / "stage2" / "status.json").read_text())
    assert status["state"] == "finished" and f"warning: {status['warning']}" in stderr
    again = commands.ok("train", "--stage", "stage2", "--config", config, "aspects=[]", *settings)
    assert f"warning: {status['warning']}" in again.stderr  # a finished stage still says so


def test_predict_needs_neither_cache_nor_dataset_and_looks_for_files_first(commands, run, tmp_path):
    config, folder = run
    mine = tmp_path / "mine.yaml"
    settings = yaml.safe_load(config.read_text())
    mine.write_text(yaml.safe_dump({key: settings[key] for key in ("vlm", "questions", "extract", "engine")}))
    picture = folder / "pictures/train/anger/train.000.jpg"
    given = (
        "checkpoint.aspect=none",
        "checkpoint.soft_prompt=none",
        "dataset.categories=[joy,awe]",
        "cache.dtype=fp32",
    )
    assert commands.ok("predict", picture, "--config", mine, *given).stdout.startswith(f"{picture}: ")
    # Nothing of the VLM is read where no image is there: its directory need not even exist.
    gone = commands("predict", tmp_path / "a.jpg", tmp_path, "--config", mine, *given, "vlm.path=/no/such/vlm")
    assert gone.code == 2 and gone.stderr.startswith(
        f"error: 2 of 2 inputs cannot be read: {tmp_path / 'a.jpg'} (file not found), {tmp_path} (a directory without "
    )
    # A missing soft prompt is found before the encoder is loaded: its weights need not be there.
    bare = tmp_path / "bare"
    shutil.copytree(settings["vlm"]["path"], bare, ignore=shutil.ignore_patterns("*.safetensors"))
    missing = commands("predict", picture, "--config", mine, f"vlm.path={bare}", "questions=/no/such/file")
    assert missing.code == 2 and "questions" in missing.stderr
