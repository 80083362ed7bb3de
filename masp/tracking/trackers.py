"""All trackers of a run: which are asked for, and that none of them ever stops or delays what it tracks.

A tracker of another program is told everything on a thread of its own. If it fails there (no network, a server that
refuses), one warning says so, and the run goes on without it.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from masp.config import Config
from masp.errors import InputError, MaspError, StoppedEarly
from masp.files.sealed import digest_of
from masp.files.text import all_lines
from masp.runtime.background import Background
from masp.tracking.mlflow_run import MlflowRun, where_to_write
from masp.tracking.run_id import run_id
from masp.tracking.tracker import Ending, TrackedRun, Tracker
from masp.tracking.wandb_run import FINISH_TIMEOUT_S, WandbRun

LOG = logging.getLogger(__name__)

KEY = "logging.trackers"
REMOTE = ("wandb", "mlflow")
"""Trackers of other programs, each by the name of its library."""
_OF_PARTS = ("stage1", "stage2", "evaluate", "checkpoint", "logging")
"""Sections that do not concern every part of a run."""
STOP_TIMEOUT_S = 10
"""Seconds that a run which was stopped, or failed, waits for a tracker: a scheduler may not give it many."""
_WAITING = 10_000
"""Things that a tracker may not have taken yet before the run waits for it."""


def require_trackers(config: Config) -> None:
    """Look for the libraries of the trackers that are asked for, and for what the user has to say about them.

    Raises:
        InputError: One is not installed, or does not know where to write.
    """
    for name in config.logging.trackers:
        if name in REMOTE and importlib.util.find_spec(name) is None:
            raise InputError(
                f"{KEY}: {name} is not installed; install it with `pip install masp[trackers]`, or leave it out"
            )
    if MlflowRun.name in config.logging.trackers:
        where_to_write()


def open_trackers(config: Config, part: str, digests: Mapping[str, str], local: Sequence[Tracker] = ()) -> Trackers:
    """The trackers that are asked for, to be entered; rank 0 calls this.

    Args:
        config: Run configuration.
        part: `stage1`, `stage2`, or the directory of an evaluation in the run directory.
        digests: What the part is made from.
        local: Trackers that write files themselves.

    Raises:
        InputError: One lacks something that the user has to give. DataError: `trackers.json` is damaged.
    """
    wanted = [name for name in REMOTE if name in config.logging.trackers]
    found: list[Tracker | _Guarded] = list(local)
    if wanted:
        output_dir = Path(config.output_dir)
        run = TrackedRun(
            id=run_id(output_dir),
            name=output_dir.resolve().name,
            project=config.logging.project,
            part=part,
            settings=settings_of(config, part),
            digests={**digests, "config": digest_of(asdict(config))},
        )
        make: dict[str, Callable[[], Tracker]] = {
            "wandb": lambda: WandbRun(run, output_dir),
            "mlflow": lambda: MlflowRun(run),
        }
        found += [_Guarded(make[name]()) for name in wanted]
    return Trackers(found)


def settings_of(config: Config, part: str) -> dict[str, Any]:
    """The settings that decide a part, by dotted name: its own and those of all parts; lists as text."""
    own = part if part.startswith("stage") else "evaluate"
    found: dict[str, Any] = {}
    for name, value in asdict(config).items():
        if not isinstance(value, dict):
            found[name] = _scalar(value)
        elif name not in _OF_PARTS or name == own or (name == "checkpoint" and own != "stage1"):
            found |= {f"{name}.{key}": _scalar(each) for key, each in value.items()}
    return found


def _scalar(value: Any) -> str | int | float | bool | None:
    return str(value) if isinstance(value, list | dict) else value


class Trackers:
    """Several trackers as one. Use as a context manager."""

    def __init__(self, trackers: Sequence[Tracker | _Guarded] = ()):
        self._trackers = trackers
        self._open: list[Tracker | _Guarded] = []

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Tell all the values of some series after a step."""
        for tracker in self._open:
            tracker.log(values, step)

    def summarize(self, values: Mapping[str, float]) -> None:
        """Tell all results that have no step."""
        for tracker in self._open:
            tracker.summarize(values)

    def __enter__(self) -> Trackers:
        try:
            for tracker in self._trackers:
                tracker.connect()
                tracker.begin()
                self._open.append(tracker)
        except BaseException:
            self._end(Ending.FAILED)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        stopped = isinstance(error, StoppedEarly | KeyboardInterrupt)
        self._end(Ending.FINISHED if error is None else Ending.STOPPED if stopped else Ending.FAILED)

    def _end(self, ending: Ending) -> None:
        while self._open:
            self._open.pop().end(ending)


class _Guarded:
    """A tracker of another program, told everything on a thread of its own; its failure is a warning.

    Args:
        tracker: The tracker.
    """

    def __init__(self, tracker: Tracker):
        self._tracker, self._has_failed = tracker, False
        self._thread: Background[Callable[[], None]] | None = None

    def connect(self) -> None:
        self._tracker.connect()

    def begin(self) -> None:
        self._thread = Background(self._tell, _WAITING)
        if self._tracker.begins_at_once:
            self._tell(self._tracker.begin)
        else:
            self._thread.put(self._tracker.begin)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._put(lambda: self._tracker.log(values, step))

    def summarize(self, values: Mapping[str, float]) -> None:
        self._put(lambda: self._tracker.summarize(values))

    def end(self, ending: Ending) -> None:
        self._put(lambda: self._tracker.end(ending))
        assert self._thread is not None, "begin comes first"
        timeout_s = FINISH_TIMEOUT_S if ending is Ending.FINISHED else STOP_TIMEOUT_S
        if not self._thread.stop(drop=False, timeout_s=timeout_s) and not self._has_failed:
            self._warn(f"has not taken everything within {timeout_s} s")

    def _put(self, work: Callable[[], None]) -> None:
        if not self._has_failed:
            assert self._thread is not None, "begin comes first"
            self._thread.put(work)

    def _tell(self, work: Callable[[], None]) -> None:
        """Have the tracker do something; whatever its library raises ends the tracking and not the run."""
        if self._has_failed:
            return
        try:
            work()
        except MaspError:
            raise
        except Exception as error:  # of another program: of no use here, and it may be anything
            self._warn(f"{type(error).__name__}: {all_lines(error)}")

    def _warn(self, why: str) -> None:
        self._has_failed = True
        LOG.warning("%s: %s %s; the run goes on without it", KEY, self._tracker.name, why)
