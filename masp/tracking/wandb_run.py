"""Weights & Biases: a run that is sent to its server, or kept in files where WANDB_MODE=offline says so.

Sent are settings, digests, series and results. Code, console, host and the state of git are not.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from masp.errors import InputError
from masp.files.text import all_lines
from masp.tracking.tracker import Ending, TrackedRun, Tracker

FINISH_TIMEOUT_S = 60
"""Seconds to wait in the end for what is still to be sent; it stays in files, which `wandb sync` sends."""


class WandbRun(Tracker):
    """A run of Weights & Biases.

    Args:
        run: The run.
        output_dir: Run directory, where its files are unless WANDB_DIR names another place.
    """

    name = "wandb"
    begins_at_once = True

    def __init__(self, run: TrackedRun, output_dir: Path):
        self._run, self._output_dir = run, output_dir
        self._wandb: Any = None
        self._handle: Any = None

    def connect(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # the library's own reports to its makers
        self._wandb = importlib.import_module("wandb")

    def begin(self) -> None:
        wandb, run = self._wandb, self._run
        settings = wandb.Settings(
            console="off",
            silent=True,
            host="",
            save_code=False,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
            finish_timeout=FINISH_TIMEOUT_S,
            finish_timeout_raises=False,
        )
        try:
            self._handle = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or run.project,
                id=run.id,
                name=run.name,
                resume="allow",
                dir=os.environ.get("WANDB_DIR") or str(self._output_dir),
                settings=settings,
                reinit="create_new",
            )
        except wandb.errors.UsageError as error:
            raise InputError(
                f"logging.trackers: wandb: {all_lines(error)} (or set WANDB_MODE=offline, or leave wandb out)"
            ) from None
        known = dict(self._handle.config)
        self._handle.config.update({name: value for name, value in run.settings.items() if name not in known})
        digests = {f"digests/{run.part}/{name}": digest for name, digest in run.digests.items()}
        self._handle.config.update(digests, allow_val_change=True)
        self._handle.define_metric(f"{run.part}/step", hidden=True)
        self._handle.define_metric(f"{run.part}/*", step_metric=f"{run.part}/step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        part = self._run.part
        # Against a step of our own: W&B's must not go back, as it does where a run resumes from a checkpoint.
        self._handle.log({f"{part}/{name}": value for name, value in values.items()} | {f"{part}/step": step})

    def summarize(self, values: Mapping[str, float]) -> None:
        self._handle.summary.update({f"{self._run.part}/{name}": value for name, value in values.items()})

    def end(self, ending: Ending) -> None:
        self._handle.finish(exit_code=1 if ending is Ending.FAILED else 0)
