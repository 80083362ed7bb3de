"""Runs of MLflow, really stored in files and read back."""

import logging
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from masp.errors import InputError
from masp.tracking.mlflow_run import ID_TAG, MlflowRun
from masp.tracking.tracker import Ending, TrackedRun
from masp.tracking.trackers import Trackers, _Guarded
from tests.unit.tracking.reading import mlflow_runs, mlflow_series

RUN = TrackedRun(
    "0123456789abcdef0123456789abcdef", "my run", "emotions", "stage1",
    {"stage1.learning_rate": 1e-5, "vlm.path": "x" * 9000, "vlm.min_pixels": None} | {f"s.{n}": n for n in range(150)},
    {"vlm": "ab" * 32},
)  # fmt: skip


@pytest.fixture
def uri(tmp_path, monkeypatch):
    found = f"file:{tmp_path / 'mlruns'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", found)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return found


def track(run, steps, ending=Ending.FINISHED):
    tracker = MlflowRun(run)
    tracker.connect()
    tracker.begin()
    for step in steps:
        tracker.log({"loss": 1 / step, "sea side?/accuracy": 0.5}, step)
    tracker.end(ending)


def test_settings_digests_series_and_results_are_stored(uri):
    track(RUN, range(1, 4))
    (run,) = mlflow_runs(uri, "emotions")
    assert (run.info.run_name, run.info.status) == ("my run", "FINISHED")
    assert run.data.params["stage1.learning_rate"] == "1e-05" and run.data.params["vlm.min_pixels"] == "null"
    assert len(run.data.params) == len(RUN.settings) and len(run.data.params["vlm.path"]) == 500
    assert run.data.tags[ID_TAG] == RUN.id and run.data.tags["masp.stage1.vlm"] == "ab" * 32
    assert set(run.data.tags) == {ID_TAG, "masp.stage1.vlm", "mlflow.runName"}  # neither user nor source nor git
    assert mlflow_series(uri, run.info.run_id, "stage1/loss") == [(step, 1 / step) for step in (1, 2, 3)]
    assert mlflow_series(uri, run.info.run_id, "stage1/sea side-/accuracy")[0] == (1, 0.5)


def test_a_resumed_run_and_other_parts_are_the_same_run_of_the_tracker(uri):
    track(RUN, (1, 2), Ending.STOPPED)
    assert mlflow_runs(uri, "emotions")[0].info.status == "KILLED"
    changed = dict(RUN.settings) | {"stage1.learning_rate": 0.5, "new": 1}
    track(replace(RUN, settings=changed, digests={"vlm": "cd" * 32}), (3,), Ending.FAILED)
    scored = MlflowRun(replace(RUN, part="evaluate"))
    scored.connect()
    scored.begin()
    scored.summarize({"accuracy": 0.625})
    scored.end(Ending.FINISHED)
    (run,) = mlflow_runs(uri, "emotions")
    assert [step for step, _ in mlflow_series(uri, run.info.run_id, "stage1/loss")] == [1, 2, 3]
    assert run.data.metrics["evaluate/accuracy"] == 0.625
    # a parameter never changes; a digest does, and new parameters are added
    assert run.data.params["stage1.learning_rate"] == "1e-05" and run.data.params["new"] == "1"
    assert run.data.tags["masp.stage1.vlm"] == "cd" * 32 and run.data.tags["masp.evaluate.vlm"] == "ab" * 32
    track(replace(RUN, id="f" * 32), (1,))
    assert len(mlflow_runs(uri, "emotions")) == 2


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, "MLFLOW_TRACKING_URI is not set; set it to"),
        ("nonsense://x", "MLFLOW_TRACKING_URI = 'nonsense://x': "),
        ("file:/x", "MLFLOW_TRACKING_URI = 'file:/x' is a directory: set MLFLOW_ALLOW_FILE_STORE=true"),
    ],
)
def test_where_to_write_must_be_said(monkeypatch, found, expected):
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if found:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", found)
    with pytest.raises(InputError, match=f"^logging.trackers: mlflow: {expected}") as error:
        MlflowRun(RUN).connect()
    assert "\n" not in str(error.value)


class Refusing(BaseHTTPRequestHandler):
    """A server that answers nothing but errors."""

    def do_GET(self):
        self.send_error(403, "not for you")

    do_POST = do_GET

    def log_message(self, *_):
        """Quietly."""


def test_a_server_that_refuses_is_one_warning(monkeypatch, caplog):
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    with caplog.at_level(logging.WARNING, "masp"), Trackers([_Guarded(MlflowRun(RUN))]) as tracked:
        for step in range(1, 4):
            tracked.log({"loss": 1.0}, step)
            time.sleep(0.01)
    server.shutdown()
    found = [record.getMessage() for record in caplog.records if record.name.startswith("masp")]
    assert len(found) == 1 and "mlflow" in found[0] and found[0].endswith("; the run goes on without it"), found
