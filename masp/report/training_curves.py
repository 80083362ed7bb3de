"""Training logs as the curves of the report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masp.errors import InputError
from masp.files.jsonl import parse_object
from masp.files.regular import is_file, read_bytes
from masp.report.charts import training_curve
from masp.report.run_config import RunConfig
from masp.runtime.run_directory import read_status

_LOG = "metrics.jsonl"
_MAX_POINTS = 2000


@dataclass(frozen=True)
class LoggedStep:
    """One line of a training log; what it does not say, or not as a finite number, is None."""

    step: int
    epoch: float | None
    loss: float | None
    learning_rate: float | None
    samples_per_second: float | None


@dataclass(frozen=True)
class TrainingStage:
    """What the report shows of the training of a stage."""

    title: str
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
        steps, num_skipped, warning = _read_log(directories)
        if not steps:
            continue
        losses = [(step.step, step.loss) for step in steps if step.loss is not None]
        rates = [(step.step, step.learning_rate) for step in steps if step.learning_rate is not None]
        charts = [
            _chart(f"{name}-loss", losses, "loss", smooth=True),
            _chart(f"{name}-learning_rate", rates, "learning rate", smooth=False),
        ]
        speeds = sorted(step.samples_per_second for step in steps if step.samples_per_second is not None)
        stages.append(
            TrainingStage(
                title=title,
                charts=tuple(chart for chart in charts if chart),
                num_steps=steps[-1].step,
                epoch=steps[-1].epoch,
                loss=steps[-1].loss,
                samples_per_second=speeds[len(speeds) // 2] if speeds else None,
                num_skipped=num_skipped,
                warning=warning,
            )
        )
    return stages


def _chart(name: str, points: list[tuple[int, float]], label: str, *, smooth: bool) -> str | None:
    if not points:
        return None
    points = points[:: math.ceil(len(points) / _MAX_POINTS)]
    return training_curve(name, [step for step, _ in points], [value for _, value in points], label, smooth=smooth)


def _read_log(directories: list[Path]) -> tuple[list[LoggedStep], int, str]:
    """The last line of every step in order (a resumed run logs some steps again), how many could not be read, and what
    the status beside the log warns of."""
    status = None
    try:
        directory = next((d for d in directories if is_file(d / _LOG)), None)
        data = (read_bytes(directory / _LOG) if directory else None) or b""
        status = read_status(directory) if directory else None
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
