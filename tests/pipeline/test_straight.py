"""The way of a new user: a directory of images of all kinds, three commands, an accuracy."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from masp.demo.tiny_vlm import VLM_DIR
from masp.runtime.run_directory import RunState, read_status
from tests.pipeline.test_bad_input import fails
from tests.runs import REPOSITORY, make_run, numbers

__all__ = ["fails"]

CATEGORIES = {"calm": (40, 90, 160), "joyful day": (230, 200, 40), "lonely": (60, 60, 60), "tense": (150, 20, 20),
              "wild": (30, 140, 40)}  # fmt: skip
SHORT = ("aspects=[brightness]", "stage1.num_epochs=1", "stage2.num_epochs=2", "stage2.validate_every=10")
"""The VLM needs not be asked about brightness, which is computed from the pixels."""


def make_images(root: Path, per_category: int = 40) -> Path:
    """Images in the formats, sizes and orientations that people have, a category per directory, one of them broken."""
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees
    for category, color in CATEGORIES.items():
        (root / category).mkdir(parents=True)
        for i in range(per_category):
            width, height = (int(n) for n in random.integers(29, 120, 2))
            pixels = np.clip(random.normal(color, 30, (4, 4, 3)), 0, 255).astype(np.uint8)
            image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
            suffix = ("png", "jpg", "webp", "JPEG")[i % 4]
            image.save(root / category / f"IMG {i:03d}.{suffix}", **({"exif": exif} if suffix == "jpg" else {}))
    (root / "wild" / "IMG 000.png").write_bytes(b"not an image")
    return root


def readme_commands() -> list[list[str]]:
    """The commands of the README's section for new users, as words."""
    section = (REPOSITORY / "README.md").read_text().partition("## Your own images")[2].partition("\n## ")[0]
    return [shlex.split(line) for line in section.splitlines() if line.startswith(("    masp ", "    python "))]


def test_the_readme_needs_three_commands():
    init, run, show = readme_commands()
    assert init == ["masp", "init", "data/mine", "--output", "mine.yaml"]
    assert run == ["masp", "run", "--config", "mine.yaml"]
    assert show == ["python", "-m", "webbrowser", "outputs/mine/report.html"]


@pytest.fixture(scope="module")
def mine(commands, tmp_path_factory) -> Path:
    """The configuration that `masp init` writes for such images; its outputs go beside it."""
    directory = tmp_path_factory.mktemp("mine")
    path = directory / "mine.yaml"
    outputs = (f"output_dir={directory}/run", f"cache.dir={directory}/cache", "engine.num_threads=1")
    data = make_images(directory / "photos")
    done = commands.ok("init", data, "--output", path, f"vlm.path={VLM_DIR}", *SHORT, *outputs)
    assert "200 images" in done.stdout and f"next: masp run --config {path}" in done.last_line
    return path


def test_three_commands_lead_to_an_accuracy(commands, mine):
    done = commands.ok("run", "--config", mine)
    lines = done.stdout.splitlines()
    steps = ["plan", "extract", "annotate", "train", "train", "evaluate", "report"]
    assert [line.split()[2] for line in lines if line.startswith("$ masp ")] == steps
    assert f"$ masp train --stage stage2 --config {mine}" in lines
    assert any(line.split()[:2] == ["annotate", "unknown"] for line in lines)
    assert any(line.startswith("  in all") and "measured on 4 images" in line for line in lines)
    report = mine.parent / "run" / "report.html"
    assert done.last_line == f"report: {report}" and "<html" in report.read_text()
    metrics = json.loads((mine.parent / "run" / "evaluate" / "metrics.json").read_text())
    low, high = metrics["accuracy_ci95"]
    assert lines[-2] == f"accuracy: {metrics['accuracy']:.3f}, 95 % interval {low:.3f} to {high:.3f}, on 59 images"
    assert sorted(metrics["per_category"]) == sorted(CATEGORIES) and metrics["coverage"] == pytest.approx(59 / 60)
    quarantined = (mine.parent / "cache" / "quarantine.jsonl").read_text().splitlines()
    assert len(quarantined) == 1 and "IMG" in quarantined[0]

    again = commands.ok("run", "--config", mine)
    assert again.stdout.startswith("there already, and only checked: extract, annotate, stage1, stage2, evaluate\n")
    assert (
        "$ masp plan" not in again.stdout and "finished already" in again.stdout and again.last_line == done.last_line
    )
    assert numbers(mine.parent / "run" / "evaluate" / "metrics.json") == {
        key: value for key, value in metrics.items() if key not in ("time", "lineage", "notes", "protocol")
    }


@pytest.mark.full
def test_a_run_that_is_stopped_says_how_it_goes_on_and_does(commands, tmp_path):
    config = make_run(tmp_path)
    settings = yaml.safe_load(config.read_text())
    settings["stage1"]["num_epochs"] = 500  # there is time to stop it
    config.write_text(yaml.safe_dump(settings))
    running = commands.start("run", "--config", config)
    log = tmp_path / "run" / "stage1" / "metrics.jsonl"
    running.when(lambda: log.is_file() and log.stat().st_size > 0)
    running.kill(signal.SIGTERM)
    stopped = running.wait()
    assert stopped.code == 75, stopped
    assert f"`masp run --config {config}` goes on from there" in stopped.stderr.splitlines()[-1]
    assert read_status(tmp_path / "run" / "stage1").state == RunState.STOPPED
    resumed = commands.start("run", "--config", config)
    resumed.when(lambda: "resuming after step" in resumed.output()[1])
    out = resumed.output()[0]
    assert out.startswith("there already, and only checked: extract\n") and "is complete" in out
    resumed.kill(signal.SIGTERM)
    assert resumed.wait().code == 75


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A configuration that could run, written before anything is captured."""
    return make_run(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("aspects=[human_action]", "cache.dir=null"), "stage1 cannot be trained: no training image is annotated with"),
        (("aspects=[human_action]", "cache.dir=null"), "masp annotate, which could change that, needs a cache"),
        (  # the VLM annotates only what is listed
            ("aspects=[scene,human_action,colorfulness]", "annotate.aspects=[colorfulness]"),
            "stage1 cannot be trained: no training image is annotated with human_action; give aspects=",
        ),
        (("stage2.supervision=distribution",), "stage2 cannot be trained: stage2.supervision = 'distribution'"),
        (("dataset.root=/no/such/data",), "no such directory"),
        (("stage1.num_epoch=1",), "did you mean stage1.num_epochs"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_anything_is_run(plain, fails, settings, words):
    code, line = fails("run", "--config", plain, *settings)
    assert code == 2 and words in line
    assert not (plain.parent / "run").exists() and not (plain.parent / "cache").exists()


def test_it_runs_as_one_process(plain, fails, monkeypatch):
    launcher = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    code, line = fails("run", "--config", plain)
    assert code == 2 and "run: takes every step itself, as one process" in line and "python -m launch pipeline" in line
