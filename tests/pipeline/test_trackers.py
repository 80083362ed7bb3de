"""Whole runs under trackers: what TensorBoard, W&B and MLflow store is what the files of the run say."""

import json
import threading
from http.server import HTTPServer
from pathlib import Path

import pytest

from masp.files.sealed import digest_file
from tests.unit.tracking.reading import mlflow_runs, mlflow_series, wandb_files, wandb_records
from tests.unit.tracking.test_mlflow_run import Refusing
from tests.unit.tracking.test_tensorboard_files import series

pytestmark = pytest.mark.full

SETTINGS = (
    "stage1.log_every=1", "stage2.log_every=1", "stage1.validate_every=2", "stage2.validate_every=2",
    "stage1.validation_size=4", "stage2.validation_size=4",
)  # fmt: skip
OF_DOCS = {
    "loss", "learning_rate", "grad_norm", "samples_per_second", "tokens_per_second", "data_wait_fraction",
    "tflops_per_second", "peak_memory_gb",
}  # fmt: skip
"""Series that docs/training.md names, without the utilization, which needs a GPU whose peak is known."""


@pytest.fixture(autouse=True)
def file_store(monkeypatch):
    """Lets MLflow read from a directory."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


@pytest.fixture(scope="module")
def tracked(commands, world, tmp_path_factory):
    """A run under all trackers, whose stage 1 was stopped once: its directory, and where the trackers store."""
    output = tmp_path_factory.mktemp("tracked") / "my run"
    output.mkdir()
    stored = output.parent
    environment = {
        "WANDB_MODE": "offline", "WANDB_DIR": stored, "HOME": stored, "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_TRACKING_URI": f"file:{stored / 'mlruns'}",
    }  # fmt: skip
    settings = world.settings(output, *SETTINGS, "logging.trackers=[tensorboard,wandb,mlflow]", "logging.project=p")
    (output / "STOP").touch()
    assert commands("train", "--stage", "stage1", *settings, **environment).code == 75
    for stage in ("stage1", "stage2"):
        commands.ok("train", "--stage", stage, *settings, **environment)
    commands.ok("evaluate", *settings, **environment)
    commands.ok("evaluate", *settings, "evaluate.stage=stage1", **environment)
    return output, stored


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def logged(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """The series of a stage as its files have them."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in lines(directory / "metrics.jsonl"):
        for name, value in line.items():
            if name not in ("step", "time") and value is not None:
                found.setdefault(name, []).append((line["step"], value))
    found["validation_loss"] = [(line["step"], line["loss"]) for line in lines(directory / "validation.jsonl")]
    return found


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_tensorboard_has_every_series_that_the_documents_name(tracked, stage):
    output, _ = tracked
    expected, found = logged(output / stage), series(output / stage)
    assert set(expected) >= OF_DOCS | {"validation_loss"} and set(found) == set(expected)
    for name, points in expected.items():
        assert found[name] == [(step, pytest.approx(value, rel=1e-6)) for step, value in points], name


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_mlflow_has_one_run_with_every_series(tracked, stage):
    output, stored = tracked
    uri = f"file:{stored / 'mlruns'}"
    (run,) = mlflow_runs(uri, "p")
    for name, points in logged(output / stage).items():
        assert mlflow_series(uri, run.info.run_id, f"{stage}/{name}") == [
            (step, pytest.approx(value)) for step, value in points
        ], name


def test_wandb_has_one_run_with_every_series(tracked):
    output, stored = tracked
    found = [wandb_records(path) for path in wandb_files(stored)]
    assert len(found) == 5 and len({each["id"] for each in found}) == 1
    assert {(each["name"], each["project"], each["host"]) for each in found} == {("my run", "p", "")}
    for stage in ("stage1", "stage2"):
        rows = [row for each in found for row in each["history"] if f"{stage}/step" in row]
        for name, points in logged(output / stage).items():
            theirs = [(row[f"{stage}/step"], row[f"{stage}/{name}"]) for row in rows if f"{stage}/{name}" in row]
            assert theirs == [(step, pytest.approx(value)) for step, value in points], name


@pytest.mark.parametrize("part", ["evaluate", "evaluate-stage1"])
def test_final_metrics_digests_and_settings_are_attached(tracked, part):
    output, stored = tracked
    metrics = json.loads((output / part / "metrics.json").read_text())
    (run,) = mlflow_runs(f"file:{stored / 'mlruns'}", "p")
    summaries = {}
    for path in wandb_files(stored):
        summaries |= wandb_records(path)["summary"]
    configs = [wandb_records(path)["config"] for path in wandb_files(stored)]
    digest = metrics["lineage"]["aspect"]["digest"]
    for name in ("accuracy", "num_samples"):
        assert run.data.metrics[f"{part}/{name}"] == summaries[f"{part}/{name}"] == metrics[name]
    assert summaries[f"{part}/accuracy_ci95_low"] == metrics["accuracy_ci95"][0]
    if part == "evaluate-stage1":
        assert summaries[f"{part}/scene/accuracy"] == metrics["per_aspect"]["scene"]["accuracy"]
    assert run.data.tags[f"masp.{part}.aspect"] == digest
    assert digest in [config.get(f"digests/{part}/aspect") for config in configs]
    identity = metrics["lineage"]["aspect"]["settings"]
    assert (
        run.data.tags["masp.stage1.cache"] == identity["cache"] and run.data.tags["masp.stage1.vlm"] == identity["vlm"]
    )
    assert run.data.params["stage1.learning_rate"] == "0.01" and run.data.params["stage2.num_soft_prompt_tokens"] == "4"


def test_a_tracker_that_fails_changes_nothing_of_what_is_trained(commands, world, tracked, tmp_path):
    output, _ = tracked
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = world.settings(tmp_path / "run", *SETTINGS, "logging.trackers=[mlflow]")
    uri = f"http://127.0.0.1:{server.server_port}"
    done = commands.ok("train", "--stage", "stage1", *settings, MLFLOW_TRACKING_URI=uri)
    server.shutdown()
    assert done.stderr.count("the run goes on without it") == 1 and "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "stage1" / "tensorboard").exists()
    found = [digest_file(path / "stage1" / "aspect.safetensors") for path in (output, tmp_path / "run")]
    assert found[0] == found[1]


@pytest.mark.parametrize("command", [("train", "--stage", "stage1"), ("evaluate",)])
def test_a_tracker_that_lacks_something_is_one_line_before_anything_is_trained(
    commands, world, trained, command, tmp_path
):
    settings = world.settings(tmp_path if command[0] == "train" else trained, "logging.trackers=[mlflow]")
    extra = () if command[0] == "train" else (f"evaluate.output_dir={tmp_path}",)
    done = commands(*command, *settings, *extra, MLFLOW_TRACKING_URI="")
    assert done.code == 2 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: logging.trackers: mlflow: MLFLOW_TRACKING_URI is not set")
    assert not list(tmp_path.rglob("ledger")) and not list(tmp_path.rglob("checkpoints"))
