"""`masp annotate` in real processes: two tasks, one of them killed; what training and evaluation then say."""

import json
import signal
from pathlib import Path

import pytest

from masp.cache.annotations.manifest import read_stored
from masp.config import save_config
from tests.annotated import changed, copy_cache, files_of, make_annotated
from tests.runs import assert_same, numbers

LONG = ("annotate.aspects=[weather,mood]", "annotate.batch_size=1", "annotate.max_new_tokens=48")
"""Settings with which a signal meets a job that is still at work."""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return make_annotated(tmp_path_factory.mktemp("annotated"), num_train=40, num_test=10)


def test_two_tasks_of_which_one_is_killed(commands, config, tmp_path):
    whole = copy_cache(config, tmp_path / "whole")
    save_config(whole, tmp_path / "whole.yaml")
    assert "masp train" in commands.ok("annotate", "--config", tmp_path / "whole.yaml").last_line

    save_config(
        changed(copy_cache(config, tmp_path / "two"), tmp_path, "annotate.num_workers=1"), tmp_path / "two.yaml"
    )
    two = changed(whole, tmp_path, f"cache.dir={tmp_path / 'two' / 'cache'}")
    parts = tmp_path / "two" / "cache" / "annotations" / ".parts"

    def task(index):
        return commands.start("annotate", "--config", tmp_path / "two.yaml", "--num-tasks", 2, "--task-index", index)

    first = task(0)
    first.when(lambda: any(parts.glob("*/*.json")) or first.output()[0] != "")
    first.kill()
    first.wait()
    kept = {path: path.read_bytes() for path in parts.glob("*/*.json")}
    other = task(1).wait()
    assert other.code == 0 and "still missing" in other.last_line
    again = task(0).wait()
    assert again.code == 0 and "masp train" in again.last_line, again
    assert kept and all(path.read_bytes() == data for path, data in kept.items())
    assert files_of(two) == files_of(whole)


@pytest.mark.full
def test_a_signal_stops_it_cleanly_and_the_next_call_goes_on(commands, config, tmp_path):
    whole, stopped = (copy_cache(config, tmp_path / name) for name in ("whole", "stopped"))
    for own in (whole, stopped):
        save_config(changed(own, tmp_path, *LONG), Path(own.cache.dir).parent / "config.yaml")
    parts = Path(stopped.cache.dir) / "annotations" / ".parts"
    commands.ok("annotate", "--config", tmp_path / "whole" / "config.yaml")

    def found():
        return {path: path.stat().st_mtime_ns for path in parts.glob("*/*.json")}

    def stop_with(number, kept):
        running = commands.start("annotate", "--config", tmp_path / "stopped" / "config.yaml")
        running.when(lambda: len(found()) > len(kept))
        running.kill(number)
        result = running.wait()
        assert result.code == 75, result
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert "stopped on request" in line and "keeps the answers of finished shards, the same command resumes" in line
        assert found().items() >= kept.items()  # what was answered is not asked again
        assert not list(parts.parent.glob("*.parquet"))
        return found()

    kept = stop_with(signal.SIGUSR2, stop_with(signal.SIGTERM, {}))
    last = commands.ok("annotate", "--config", tmp_path / "stopped" / "config.yaml")
    assert "masp train" in last.last_line and found().items() > kept.items()
    assert files_of(stopped) == files_of(whole)


def test_training_evaluation_and_report_say_who_answered(commands, config, tmp_path):
    fresh = copy_cache(config, tmp_path / "own")
    path, run = tmp_path / "own.yaml", tmp_path / "run"
    save_config(changed(fresh, tmp_path, "aspects=[weather,scene]", f"output_dir={run}", "engine.zero_stage=0"), path)
    result = commands("train", "--stage", "stage1", "--config", path)
    assert result.code == 2 and "masp annotate" in result.stderr
    commands.ok("annotate", "--config", path)
    sizes = ("stage1.num_epochs=1", "stage1.learning_rate=1e-3")
    trained = commands.ok("train", "--stage", "stage1", "--config", path, *sizes)
    assert "answers to weather: 5" in trained.stderr and "by the VLM" in trained.stderr
    evaluated = commands.ok("evaluate", "--config", path, "evaluate.stage=stage1", "evaluate.num_workers=0")
    assert "answers to weather" in evaluated.stderr + evaluated.stdout
    metrics = json.loads((run / "evaluate-stage1" / "metrics.json").read_text())
    stored = read_stored(Path(fresh.cache.dir))["weather"]
    lineage = metrics["lineage"]["aspect"]["answers"]["weather"]
    assert (lineage["vlm"], lineage["people"], lineage["file"]) == (stored.num_answers["vlm"], 0, stored.sha256)
    assert any(f"annotations {stored.sha256[:12]}" in note for note in metrics["notes"])
    live = ("evaluate.source=live", f"evaluate.output_dir={tmp_path / 'live'}", "evaluate.num_workers=0")
    said = commands.ok("evaluate", "--config", path, "evaluate.stage=stage1", *live).stderr
    assert "answers to weather" in said
    one, other = (numbers(path / "metrics.json") for path in (tmp_path / "live", run / "evaluate-stage1"))
    assert (one.pop("source"), other.pop("source")) == ("live", "cache")
    assert_same(one, other)
    commands.ok("report", run)
    assert stored.sha256 in (run / "report.html").read_text()

    # a resumed training knows that the answers are other ones
    other = commands("train", "--stage", "stage1", "--config", path, *sizes, "annotate.min_confidence=0.99")
    assert other.code == 2 and "answers.weather" in other.stderr


def test_agreement_and_review(commands, config, tmp_path):
    fresh = copy_cache(config, tmp_path / "own")
    save_config(fresh, tmp_path / "own.yaml")
    result = commands.ok("annotate", "--config", tmp_path / "own.yaml", "--agreement", 20)
    assert "kappa" in result.stdout and not (Path(fresh.cache.dir) / "annotations" / "scene.parquet").exists()
    found = json.loads((Path(fresh.cache.dir) / "annotations" / "_agreement.json").read_text())["aspects"]
    assert found.keys() == {"scene"} and found["scene"]["agreement"]["num_images"] == 20

    refused = commands("annotate", "--config", tmp_path / "own.yaml", "--review", tmp_path / "page.html")
    assert refused.code == 2 and "run `masp annotate` first" in refused.stderr
    commands.ok("annotate", "--config", tmp_path / "own.yaml", "annotate.aspects=[weather,light]")
    commands.ok("annotate", "--config", tmp_path / "own.yaml", "--review", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img ") == 100 and "Which weather is it?" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--agreement", "0"], "--agreement 0: must be at least 1"),
        (["--review", "a.html", "--num-tasks", "2", "--task-index", "0"], "--review is a work of its own"),
        (["--num-tasks", "2", "--task-index", "2"], "--task-index 2: must be at least 0 and below"),
        (["annotate.min_confidence=1.5"], "annotate.min_confidence"),
    ],
)
def test_bad_arguments(commands, config, tmp_path, arguments, message):
    save_config(copy_cache(config, tmp_path / "own"), tmp_path / "own.yaml")
    result = commands("annotate", "--config", tmp_path / "own.yaml", *arguments)
    assert result.code == 2 and message in result.stderr
    (_,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
