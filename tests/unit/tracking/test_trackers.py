"""What training and evaluation tell trackers, and that a tracker which fails stops nothing and hides nothing."""

import contextlib
import logging
import threading
import time

import pytest

from masp.config import load_config
from masp.errors import InputError, StoppedEarly
from masp.tracking import trackers
from masp.tracking.tracker import Ending, Tracker
from masp.tracking.trackers import Trackers, _Guarded, open_trackers, require_trackers, settings_of
from tests.unit.tracking.configs import NEEDED


class Told(Tracker):
    """Keeps what it is told; fails where it is asked to."""

    name = "told"

    def __init__(self, fails_at=None, error=None, delay_s=0.0):
        self.fails_at, self.error = fails_at, error or ConnectionError("no network\nat all")
        self.delay_s, self.calls, self.threads = delay_s, [], set()

    def _take(self, call, *what):
        time.sleep(self.delay_s)
        self.threads.add(threading.get_ident())
        if call == self.fails_at:
            raise self.error
        self.calls.append((call, *what))

    def connect(self):
        """Nothing to look at."""

    def begin(self):
        self._take("begin")

    def log(self, values, step):
        self._take("log", dict(values), step)

    def summarize(self, values):
        self._take("summarize", dict(values))

    def end(self, ending):
        self._take("end", ending)


def test_everything_is_told_in_order_on_another_thread():
    told = Told()
    with Trackers([_Guarded(told)]) as found:
        for step in range(200):
            found.log({"loss": step / 2}, step)
        found.summarize({"accuracy": 0.5})
    logged = [("log", {"loss": step / 2}, step) for step in range(200)]
    assert told.calls == [("begin",), *logged, ("summarize", {"accuracy": 0.5}), ("end", Ending.FINISHED)]
    assert threading.get_ident() not in told.threads and len(told.threads) == 1


@pytest.mark.parametrize("call", ["begin", "log", "summarize", "end"])
def test_a_tracker_that_fails_is_one_warning_and_the_others_go_on(caplog, call):
    bad, good = Told(fails_at=call), Told()
    with caplog.at_level(logging.WARNING), Trackers([_Guarded(bad), _Guarded(good)]) as found:
        for step in range(50):
            found.log({"loss": 1.0}, step)
        found.summarize({"accuracy": 1.0})
    (record,) = caplog.records
    assert record.getMessage() == (
        "logging.trackers: told ConnectionError: no network at all; the run goes on without it"
    )
    assert len(good.calls) == 53
    assert call not in [name for name, *_ in bad.calls[-1:]] or call == "end"


@pytest.mark.parametrize(("limit", "ends"), [("FINISH_TIMEOUT_S", None), ("STOP_TIMEOUT_S", StoppedEarly("s"))])
def test_a_tracker_that_hangs_delays_nothing(caplog, monkeypatch, limit, ends):
    monkeypatch.setattr(trackers, limit, 0.2)
    started = time.monotonic()
    expected = contextlib.nullcontext() if ends is None else pytest.raises(StoppedEarly)
    with caplog.at_level(logging.WARNING), expected, Trackers([_Guarded(Told(delay_s=5.0))]) as found:
        for step in range(1000):
            found.log({"loss": 1.0}, step)
        assert time.monotonic() - started < 3
        if ends:
            raise ends
    assert time.monotonic() - started < 9  # of the limit that is not shortened, at least ten
    assert [record.getMessage() for record in caplog.records] == [
        "logging.trackers: told has not taken everything within 0.2 s; the run goes on without it"
    ]


@pytest.mark.parametrize(
    ("error", "ending"),
    [(StoppedEarly("s"), Ending.STOPPED), (KeyboardInterrupt(), Ending.STOPPED), (ValueError("bug"), Ending.FAILED)],
)
def test_what_ends_a_run_is_told_and_not_swallowed(error, ending):
    told = Told()
    with pytest.raises(type(error)), Trackers([_Guarded(told)]):
        raise error
    assert told.calls[-1] == ("end", ending)


def test_a_tracker_that_writes_files_itself_may_fail_as_any_file_does():
    with pytest.raises(OSError, match="disk"), Trackers([Told("log", OSError("disk"))]) as found:
        found.log({"loss": 1.0}, 1)


def test_a_library_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    config = load_config(None, [*NEEDED, "logging.trackers=[mlflow,tensorboard,wandb]"])
    require_trackers(config)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        require_trackers(config)
    assert str(error.value) == (
        "logging.trackers: mlflow is not installed; install it with `pip install masp[trackers]`, or leave it out"
    )
    require_trackers(load_config(None, NEEDED))


def test_nothing_is_opened_that_is_not_asked_for(tmp_path):
    config = load_config(None, [*NEEDED, f"output_dir={tmp_path / 'run'}"])
    assert config.logging.trackers == ["tensorboard"]
    with open_trackers(config, "stage1", {}) as found:
        found.log({"loss": 1.0}, 1)
    assert not (tmp_path / "run").exists()


def test_the_settings_of_a_part_are_its_own_and_those_of_all():
    config = load_config(None, [*NEEDED, "stage1.learning_rate=0.5", "aspects=[scene]"])
    first, second, scored = (settings_of(config, part) for part in ("stage1", "stage2", "evaluate/on/x"))
    assert first["stage1.learning_rate"] == 0.5 and first["aspects"] == "['scene']" and first["seed"] == 3407
    assert not [name for name in first if name.startswith(("stage2.", "evaluate.", "checkpoint.", "logging."))]
    assert "stage2.learning_rate" in second and "stage1.learning_rate" not in second
    assert {"evaluate.split", "checkpoint.aspect", "vlm.path"} <= set(scored) and "stage2.layout" not in scored
