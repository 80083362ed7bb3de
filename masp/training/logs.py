"""What training records: `metrics.jsonl`, the series of trackers, a progress bar with loss, rate and time left, and the
key log.

The key log says which samples each rank trained on, step by step: the proof that every epoch saw each of them exactly
once.

keys/rank-0.jsonl   {"step", "epoch", "num_ranks", "keys": [sample keys of this rank's part of the step]}
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import ConfigDict, with_config
from tqdm import tqdm

from masp.errors import TrainingFailed
from masp.files.atomic import write_bytes
from masp.files.jsonl import cut_lines, read_lines
from masp.files.regular import open_descriptor
from masp.runtime.devices import peak_memory_bytes
from masp.tracking.trackers import Trackers
from masp.vlm.cost.flops import peak_flops

NOT_SERIES = ("step", "time")
"""What of a line is no series of its own."""
_LEAST_CHANGE = 0.05
"""Part of its first value by which the loss of a run should fall."""
KEYS = "keys"
"""Directory of the key log."""


@dataclass(frozen=True)
class StepResult:
    """An optimizer step that was taken; all but `keys` and `wait_s` is of the whole global batch."""

    step: int
    """Number of steps taken, this one included."""
    epoch: int
    """Number of the epoch, from 0."""
    epochs_done: float
    """Epochs trained so far, with the fraction of this one."""
    loss: float
    grad_norm: float
    """Norm of the gradient before clipping."""
    learning_rate: float
    num_images: int
    num_tokens: int
    """Tokens that all ranks ran through the language model."""
    flops: float
    """Floating-point operations of all ranks."""
    keys: tuple[str, ...]
    """Sample keys of this rank's part; none where all of it was padding."""
    wait_s: float
    """Seconds that this rank waited for data."""
    skipped_steps: int = 0
    """Steps lost to fp16's loss scale since the run began."""
    restart_losses: tuple[float | None, ...] = ()
    """Where stage 1 has restarts: the loss of each; None of one that stands still."""
    stop_reason: str = ""
    """Why a rank asks to stop, in words that follow "stopped"; empty if none does."""


@with_config(ConfigDict(strict=True, extra="ignore", allow_inf_nan=False))
@dataclass(frozen=True)
class LossLine:
    """A line of `metrics.jsonl` or `validation.jsonl`, with what tells whether training has moved anything."""

    loss: float


class TrainingLog:
    """Logs of rank 0. Use as a context manager.

    Args:
        directory: Directory of the stage.
        stage: Name of the stage, for the bar.
        num_steps: Number of steps of the whole run.
        first_step: Number of steps already taken by an earlier run.
        every: Number of steps between two lines.
        device: `cpu` or `cuda`, for the peak of memory.
        peak_flops: FLOP/s that all ranks together could reach at most; 0 where it is not known, and no utilization is
            logged.
        trackers: What else is told every number of a line.
        has_bar: Whether to show the progress.
    """

    def __init__(
        self,
        directory: Path,
        stage: str,
        num_steps: int,
        first_step: int,
        every: int,
        device: str = "cpu",
        peak_flops: float = 0.0,
        trackers: Trackers | None = None,
        has_bar: bool = True,
    ):
        self.every, self.num_steps, self.device, self.peak_flops = every, num_steps, device, peak_flops
        self._trackers = trackers or Trackers()
        path = directory / "metrics.jsonl"
        cut_lines(path, first_step)
        self._file = open(_appending(path), "a", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        pause_s = 0.1 if sys.stderr.isatty() else 30.0  # a log file is not a screen
        self._bar = tqdm(
            total=num_steps, initial=first_step, desc=stage, unit="step", mininterval=pause_s, disable=not has_bar
        )
        self._reset()

    def _reset(self) -> None:
        self._start, self._results = time.monotonic(), list[StepResult]()

    def step(self, result: StepResult) -> None:
        """Note a step; every so many steps, write a line with means over them."""
        self._results.append(result)
        self._bar.set_postfix(loss=f"{result.loss:.4f}", refresh=False)
        self._bar.update()
        if result.step % self.every == 0 or result.step == self.num_steps:
            self._write(result)
            self._reset()

    def _write(self, last: StepResult) -> None:
        elapsed_s, results = time.monotonic() - self._start, self._results
        flops = sum(result.flops for result in results)
        entry: dict[str, float | None] = {
            "step": last.step,
            "epoch": round(last.epochs_done, 6),
            "loss": sum(result.loss for result in results) / len(results),
            "learning_rate": last.learning_rate,
            "grad_norm": last.grad_norm,
            "samples_per_second": sum(result.num_images for result in results) / elapsed_s,
            "tokens_per_second": sum(result.num_tokens for result in results) / elapsed_s,
            "data_wait_fraction": sum(result.wait_s for result in results) / elapsed_s,
            "tflops_per_second": flops / elapsed_s / 1e12,
            "model_flops_utilisation": flops / elapsed_s / self.peak_flops if self.peak_flops else None,
            "peak_memory_gb": peak_memory_bytes(self.device) / 1e9,
            "time": time.time(),
        }
        if last.skipped_steps:
            entry["skipped_steps"] = last.skipped_steps
        restarts = _means([result.restart_losses for result in results])
        more = {"restart_losses": restarts} if restarts else {}
        self._file.write(json.dumps(entry | more) + "\n")
        self._file.flush()
        entry |= {f"restart_{number}_loss": loss for number, loss in enumerate(restarts)}
        series = {name: float(v) for name, v in entry.items() if name not in NOT_SERIES and v is not None}
        self._trackers.log(series, last.step)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._file.close()


def _means(losses: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Means of each restart over some steps; None of one that stood still in the last of them."""
    return [
        None if own[-1] is None else sum(loss for loss in own if loss is not None) / len(own)
        for own in zip(*losses, strict=True)
    ]


def hardly_moved(
    directory: Path, stage: str, num_steps: int, learning_rate: float, can_move: bool = True
) -> str | None:
    """What to say of a finished run whose loss is almost what it was at first; None of any other.

    Compared are the means of the first and of the last fifth of the lines of `metrics.jsonl`. The validation losses, if
    there are any, must not have fallen either: the first of them is measured when much has been learned already.

    Args:
        directory: Directory of the stage.
        stage: Name of the stage.
        num_steps: Steps that were taken.
        learning_rate: `learning_rate` of the stage.
        can_move: Whether so many steps can change anything; where not, a loss that rose did so by chance.
    """
    losses = _losses(directory / "metrics.jsonl")
    if len(losses) < 2:
        return None
    part = max(1, len(losses) // 5)
    first, last = (sum(some) / part for some in (losses[:part], losses[-part:]))
    least = (1 - _LEAST_CHANGE) * first
    validated = _losses(directory / "validation.jsonl")
    if last < least or (validated and min(validated) < (1 - _LEAST_CHANGE) * validated[0]):
        return None
    rose = can_move and last > (1 + _LEAST_CHANGE) * first
    verb, how = ("rose", "lower") if rose else ("hardly moved", "raise")
    more = "" if rose else f", or {stage}.num_epochs"
    return (
        f"{stage}: the loss {verb} in {num_steps:,} steps, from {first:.4g} to {last:.4g}; if more was expected, "
        f"{how} {stage}.learning_rate, which is {learning_rate:g}{more}"
    )


def _losses(path: Path) -> list[float]:
    """The losses of a log; none where there is no log."""
    return [line.loss for line in read_lines(LossLine, path, skip_damaged=True) or ()]


def device_peak(device: str, precision: str) -> float:
    """FLOP/s that this process's device could reach at most; 0 where it is not known."""
    return (peak_flops(torch.cuda.get_device_name(), precision) or 0.0) if device == "cuda" else 0.0


@dataclass(frozen=True)
class KeyLine:
    """A line of the key log."""

    step: int
    epoch: int
    num_ranks: int
    keys: tuple[str, ...]
    """Sample keys of the rank's part of the step."""


class KeyLog:
    """The key log of one rank. Use as a context manager.

    Args:
        directory: Directory of the stage.
        rank: Rank of this process.
        num_ranks: World size.
    """

    def __init__(self, directory: Path, rank: int, num_ranks: int):
        self.num_ranks = num_ranks
        path = directory / KEYS / f"rank-{rank}.jsonl"
        path.parent.mkdir(exist_ok=True)
        # By lines: whatever kills the process, no line up to the last checkpoint is lost.
        self._file = open(_appending(path), "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed in __exit__

    def step(self, result: StepResult) -> None:
        """Note a step."""
        line = KeyLine(result.step, result.epoch, self.num_ranks, result.keys)
        self._file.write(json.dumps(asdict(line)) + "\n")

    def __enter__(self) -> KeyLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def cut_key_logs(directory: Path, step: int) -> None:
    """Drop what all ranks of an earlier run, of any number, noted after `step`; rank 0 does so at the start."""
    for path in (directory / KEYS).glob("rank-*.jsonl"):
        cut_lines(path, step)


def read_key_logs(directory: Path) -> list[KeyLine]:
    """The lines of all ranks, by step, then rank.

    Raises:
        DataError: A line is damaged. InputError: A file may not be read.
    """
    paths = sorted((directory / KEYS).glob("rank-*.jsonl"), key=lambda path: int(path.stem.removeprefix("rank-")))
    lines = [line for path in paths for line in read_lines(KeyLine, path, surrogates=True) or ()]
    return sorted(lines, key=lambda line: line.step)


def report_not_finite(
    directory: Path,
    stage: str,
    step: int,
    loss: float,
    keys: Sequence[Sequence[str]],
    suspects: Sequence[Sequence[str]],
    learning_rate: float,
) -> TrainingFailed:
    """Write down the samples of a step whose loss or gradient is not a finite number; it ends the run.

    Args:
        directory: Directory of the stage.
        stage: Name of the stage.
        step: Number of the step, from 1; it was not taken.
        loss: Loss of the global batch; finite if only a gradient is not.
        keys: Sample keys of the step, per rank.
        suspects: Those of them whose own loss is not finite.
        learning_rate: The configured learning rate.

    Returns:
        The error to raise.
    """
    path = directory / f"not-finite-step-{step:08d}.json"
    found = sorted({key for part in suspects for key in part})
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the loss is {loss:.4g}, but a gradient is not finite"
    record = {"step": step, "loss": str(loss), "suspects": found, "keys_per_rank": keys}
    write_bytes(path, json.dumps(record, indent=1).encode() + b"\n")
    num_samples = len({key for part in keys for key in part})
    return TrainingFailed(
        f"{stage}: step {step} is not taken: {what}; {path} names its {num_samples} samples"
        + (f", {len(found)} of them with such a loss" if found else "")
        + f"; the last checkpoint is kept: lower {stage}.learning_rate, which is {learning_rate}, or give "
        "another engine.precision"
    )


def _appending(path: Path) -> int:
    return open_descriptor(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
