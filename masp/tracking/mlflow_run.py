"""MLflow: a run on the server, or in the files, that MLFLOW_TRACKING_URI names.

Settings are parameters, digests are tags, series and results are metrics. A parameter of MLflow never changes, so the
first value that was sent stays.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import urlparse

from masp.errors import InputError
from masp.files.text import all_lines, shortened, shown
from masp.tracking.tracker import Ending, TrackedRun, Tracker

T = TypeVar("T")

ID_TAG = "masp.run_id"
"""Tag by which a run is found again."""
_URI = "MLFLOW_TRACKING_URI"
_FILES = "MLFLOW_ALLOW_FILE_STORE"
_MAX_VALUE = 500
"""Characters of a parameter that every server takes."""
_AT_ONCE = 100
"""Parameters, tags or metrics of one request."""
_STATUS = {Ending.FINISHED: "FINISHED", Ending.STOPPED: "KILLED", Ending.FAILED: "FAILED"}


def where_to_write() -> str:
    """The address or directory that the environment names.

    Raises:
        InputError: It names none, or a directory to which MLflow would not write.
    """
    uri = os.environ.get(_URI)
    if not uri:
        raise InputError(
            f"logging.trackers: mlflow: {_URI} is not set; set it to the address of a server (http://…) or to a "
            f"directory (file:DIR, with {_FILES}=true), or leave mlflow out"
        )
    is_directory = urlparse(uri).scheme in ("", "file")
    if is_directory and os.environ.get(_FILES, "").lower() not in ("true", "1"):
        raise InputError(
            f"logging.trackers: mlflow: {_URI} = {shown(uri)} is a directory: set {_FILES}=true, without which MLflow "
            "writes to none, or give the address of a server"
        )
    return uri


class MlflowRun(Tracker):
    """A run of MLflow.

    Args:
        run: The run.
    """

    name = "mlflow"

    def __init__(self, run: TrackedRun):
        self._run = run
        self._mlflow: Any = None
        self._client: Any = None
        self._id = ""

    def connect(self) -> None:
        uri = where_to_write()
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # the library's own reports to its makers
        self._mlflow = importlib.import_module("mlflow")
        try:
            self._client = self._mlflow.MlflowClient(tracking_uri=uri)
        except self._mlflow.MlflowException as error:
            raise InputError(f"logging.trackers: mlflow: {_URI} = {shown(uri)}: {all_lines(error)}") from None

    def begin(self) -> None:
        client, run = self._client, self._run
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.project)
        found = client.search_runs([experiment], filter_string=f"tags.`{ID_TAG}` = '{run.id}'", max_results=1)
        if found:
            self._id, known = found[0].info.run_id, found[0].data.params
            client.update_run(self._id, status="RUNNING")
        else:
            self._id, known = client.create_run(experiment, tags={ID_TAG: run.id}, run_name=run.name).info.run_id, {}
        entities = self._mlflow.entities
        self._send(
            params=[
                entities.Param(_plain(name), shortened("null" if value is None else str(value), _MAX_VALUE))
                for name, value in run.settings.items()
                if _plain(name) not in known
            ]
        )
        self._send(
            tags=[entities.RunTag(_plain(f"masp.{run.part}.{name}"), digest) for name, digest in run.digests.items()]
        )

    def _experiment(self, name: str) -> str:
        """The id of an experiment, which is made if it is missing."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(name)
            except self._mlflow.MlflowException:  # another run has made it meanwhile, or it cannot be made
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return found.experiment_id

    def log(self, values: Mapping[str, float], step: int) -> None:
        now, metric = int(time.time() * 1000), self._mlflow.entities.Metric
        part = self._run.part
        self._send(metrics=[metric(_plain(f"{part}/{name}"), float(v), now, step) for name, v in values.items()])

    def summarize(self, values: Mapping[str, float]) -> None:
        self.log(values, 0)

    def end(self, ending: Ending) -> None:
        self._client.set_terminated(self._id, status=_STATUS[ending])

    def _send(self, **entries: Sequence[Any]) -> None:
        for kind, found in entries.items():
            for some in _batches(found, _AT_ONCE):
                self._client.log_batch(self._id, **{kind: some})


def _plain(name: str) -> str:
    """A name of characters that MLflow takes."""
    return re.sub(r"[^A-Za-z0-9_./ -]", "-", name)[:250]


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some
