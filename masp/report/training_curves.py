"""Training logs as the curves of the report."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, with_config

from masp.errors import InputError, MaspError
from masp.files.jsonl import parse_object, read_lines
from masp.files.regular import is_file, read_bytes
from masp.files.typed import read
from masp.report.charts import training_curve
from masp.report.run_config import RunConfig
from masp.runtime.run_directory import read_status

_LOG = "metrics.jsonl"
_VALIDATION = "validation.jsonl"
_RESTARTS = "restarts.json"
_MAX_POINTS = 2000


@dataclass(frozen=True)
class LoggedStep:
    """One line of a training log; what it does not say, or not as a finite number, is None."""

    step: int
    epoch: float | None
    loss: float | None
    learning_rate: float | None
    samples_per_second: float | None


@with_config(ConfigDict(strict=True, extra="ignore", allow_inf_nan=False))
@dataclass(frozen=True)
class HeldOutLoss:
    """One line of `validation.jsonl`."""

    step: Annotated[int, Field(ge=0, le=2**53)]
    loss: float
    best_step: Annotated[int, Field(ge=0, le=2**53)] | None = None


@with_config(ConfigDict(strict=True, extra="ignore", allow_inf_nan=False))
@dataclass(frozen=True)
class ChosenRestart:
    """Of an aspect, what `restarts.json` says: which of its restarts was kept, and why."""

    chosen: Annotated[int, Field(ge=0)]
    """Number of the restart."""
    seed: Annotated[int, Field(ge=0)]
    """Seed of its initial values."""
    held_out_losses: tuple[float | None, ...]
    """Of each restart; None of one that was dropped, and where no held-out image has the aspect."""


@with_config(ConfigDict(strict=True, extra="ignore", allow_inf_nan=False))
@dataclass(frozen=True)
class Restarts:
    """The content of `restarts.json`."""

    aspects: dict[str, ChosenRestart]
    dropped: dict[str, int] = field(default_factory=dict)
    """Restart -> the step that it could not take."""

    @property
    def num_restarts(self) -> int:
        """Number of restarts."""
        return max((len(choice.held_out_losses) for choice in self.aspects.values()), default=0)


@dataclass(frozen=True)
class Curve:
    """A quantity over the steps of a stage."""

    name: str
    label: str
    points: tuple[tuple[int, float], ...]
    """Step and value."""
    smooth: bool = False
    """Whether it is so noisy that a running mean is shown."""
    held_out: tuple[tuple[int, float], ...] = ()
    """The same quantity on held-out images."""


@dataclass(frozen=True)
class TrainingStage:
    """What the report shows of the training of a stage."""

    name: str
    """`stage1` or `stage2`."""
    title: str
    directory: Path
    """Where its log is."""
    curves: tuple[Curve, ...]
    charts: tuple[str, ...]
    """SVG elements."""
    num_steps: int
    epoch: float | None
    loss: float | None
    """Last logged."""
    samples_per_second: float | None
    """Median."""
    num_skipped: int
    """Lines of the log that cannot be read."""
    warning: str = ""
    """What training warned of at its end."""
    best_step: int | None = None
    """The step with the lowest loss on held-out images; None without validation."""
    restarts: Restarts | None = None
    """Which restarts were kept; None where there were none."""


def training_stages(run_dir: Path, evaluate_dir: Path, config: RunConfig) -> list[TrainingStage]:
    """Per stage with a readable log: charts and a few figures of its end.

    The log is looked for in the run directory, then beside the evaluation, then beside the checkpoint.
    """
    stages = []
    for name, title, checkpoint in (
        ("stage1", "Stage 1: aspect modules", config.aspect),
        ("stage2", "Stage 2: soft prompt", config.soft_prompt),
    ):
        directories = [run_dir / name, evaluate_dir.parent / name, *([checkpoint.parent] if checkpoint else [])]
        directory = next((d for d in directories if is_file(d / _LOG)), directories[0])
        steps, num_skipped, warning = _read_log(directory)
        if not steps:
            continue
        held_out = _held_out(directory)
        losses = [(step.step, step.loss) for step in steps if step.loss is not None]
        rates = [(step.step, step.learning_rate) for step in steps if step.learning_rate is not None]
        measured = tuple((line.step, line.loss) for line in held_out)
        found = [Curve("loss", "loss", _thinned(losses), smooth=True, held_out=measured)]
        found.append(Curve("learning_rate", "learning rate", _thinned(rates)))
        curves = tuple(curve for curve in found if curve.points)
        speeds = sorted(step.samples_per_second for step in steps if step.samples_per_second is not None)
        stages.append(
            TrainingStage(
                name=name,
                title=title,
                directory=directory,
                curves=curves,
                charts=tuple(_chart(name, curve) for curve in curves),
                num_steps=steps[-1].step,
                epoch=steps[-1].epoch,
                loss=steps[-1].loss,
                samples_per_second=speeds[len(speeds) // 2] if speeds else None,
                num_skipped=num_skipped,
                warning=warning,
                best_step=held_out[-1].best_step if held_out else None,
                restarts=_restarts(directory),
            )
        )
    return stages


def _thinned(points: list[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    return tuple(points[:: max(1, math.ceil(len(points) / _MAX_POINTS))])


def _chart(stage: str, curve: Curve) -> str:
    label = f"{curve.label} (dashed: on held-out images)" if curve.held_out else curve.label
    steps, values = [step for step, _ in curve.points], [value for _, value in curve.points]
    return training_curve(f"{stage}-{curve.name}", steps, values, label, smooth=curve.smooth, held_out=curve.held_out)


def _held_out(directory: Path) -> list[HeldOutLoss]:
    """What validation measured; damaged lines are left out."""
    try:
        return list(read_lines(HeldOutLoss, directory / _VALIDATION, skip_damaged=True) or ())
    except MaspError:  # a report shows what there is
        return []


def _restarts(directory: Path) -> Restarts | None:
    """Which restarts of stage 1 were kept; None where there were none, or the file is damaged."""
    try:
        return read(Restarts, directory / _RESTARTS)
    except MaspError:  # a report shows what there is
        return None


def _read_log(directory: Path) -> tuple[list[LoggedStep], int, str]:
    """The last line of every step in order (a resumed run logs some steps again), how many could not be read, and what
    the status beside the log warns of."""
    status = None
    try:
        data = read_bytes(directory / _LOG) or b""
        status = read_status(directory) if data else None
    except InputError:  # a report shows what there is
        data = b""
    steps: dict[int, LoggedStep] = {}
    num_skipped = 0
    for text in data.splitlines():
        step = _logged_step(text)
        if step is None:
            num_skipped += 1
        else:
            steps[step.step] = step
    warning = (status.warning if status else None) or ""
    return [steps[number] for number in sorted(steps)], num_skipped, warning


def _logged_step(text: bytes) -> LoggedStep | None:
    line = parse_object(text)
    if line is None or type(line.get("step")) is not int or not 0 <= line["step"] <= 2**53:
        return None
    names = ("epoch", "loss", "learning_rate", "samples_per_second")
    return LoggedStep(line["step"], *(_finite(line.get(name)) for name in names))


def _finite(value: Any) -> float | None:
    """A plain number; None if it is none, or not finite."""
    is_number = (type(value) is int and abs(value) <= 2**53) or (type(value) is float and math.isfinite(value))
    return value if is_number else None
