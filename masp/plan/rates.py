"""How fast a machine does the work: stated, taken from an earlier run, or measured here."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, with_config

from masp.errors import InputError
from masp.files.jsonl import read_lines
from masp.report.run_config import find_config

STAGES = ("stage1", "stage2")

DEFAULT_TFLOPS = 989.0
"""Peak of an H100 SXM in bf16 without sparsity, in TFLOP/s, as its data sheet says."""

DEFAULT_UTILIZATION = 0.4
"""Share of the peak that large frozen models reach in practice."""


_MIN_FLOPS_PER_S, _MAX_FLOPS_PER_S = 1.0, 1e24
"""Range of stated rates, in which hours stay finite."""
_NOTHING = 1e-9
"""Images or tokens per second: a line with fewer is of a time in which nothing was trained."""

PerSecond = Annotated[float, Field(ge=0, le=1e15)]


@with_config(ConfigDict(strict=True, extra="ignore", allow_inf_nan=False))
@dataclass(frozen=True)
class Speed:
    """A line of `metrics.jsonl`, with what a plan needs of it."""

    samples_per_second: PerSecond
    """Images per second of all ranks."""
    tokens_per_second: PerSecond
    """Tokens that the language model read per second, of all ranks."""


@dataclass(frozen=True)
class Rate:
    """Work per second of one GPU, or of whatever machine the source is about."""

    per_second: float
    unit: str
    """`FLOP` or `tokens` (of the language model)."""
    source: str
    """Where the rate comes from, for the user."""
    includes_encoder: bool = False
    """Whether it is of a run without a cache, whose tokens took the time of the encoder too."""

    def hours(self, flops: float, tokens: float) -> float:
        """Hours that an amount of work takes, which is given in both units."""
        return (flops if self.unit == "FLOP" else tokens) / self.per_second / 3600


@dataclass(frozen=True)
class Rates:
    """Rates of the encoder and of both stages."""

    extract: Rate
    stage1: Rate
    stage2: Rate


def stated_rates(tflops: float, utilization: float) -> Rates:
    """Assume one rate for encoder and stages.

    Args:
        tflops: Peak of one GPU in TFLOP/s.
        utilization: Share of the peak that is reached, above 0 and at most 1.

    Raises:
        InputError: A value is out of range.
    """
    if not 0 < tflops < math.inf:
        raise InputError(f"--tflops {tflops:g}: must be above 0 and finite")
    if not 0 < utilization <= 1:
        raise InputError(f"--utilization {utilization:g}: must be above 0 and at most 1")
    per_second = tflops * 1e12 * utilization
    if not _MIN_FLOPS_PER_S <= per_second <= _MAX_FLOPS_PER_S:
        raise InputError(
            f"--tflops {tflops:g} at --utilization {utilization:g}: is {per_second:g} FLOP/s, must be from "
            f"{_MIN_FLOPS_PER_S:g} to {_MAX_FLOPS_PER_S:g}"
        )
    rate = Rate(per_second, "FLOP", f"stated: {tflops:g} TFLOP/s at {utilization:.0%} utilization")
    return Rates(rate, rate, rate)


def rates_of_run(run_dir: str | Path, fallback: Rates) -> Rates:
    """Take the stages' rates from an earlier run: the median of the tokens per second in its logs.

    Args:
        run_dir: `output_dir` of that run.
        fallback: Rates of the encoder, and of a stage that has no log there.

    Raises:
        InputError: Neither stage has a log, or it cannot be read. DataError: A log is damaged.
    """
    found = {}
    for stage in STAGES:
        speeds = read_speeds(Path(run_dir) / stage)
        if speeds:
            rate = statistics.median(speed.tokens_per_second for speed in speeds)
            source = f"{run_dir}/{stage}: median of {len(speeds)} lines, all its ranks"
            found[stage] = Rate(rate, "tokens", source, not find_config(Path(run_dir) / stage).has_cache)
    if not found:
        raise InputError(f"--rate-from {run_dir}: holds no stage1/metrics.jsonl or stage2/metrics.jsonl with lines")
    return replace(fallback, **found)


def read_speeds(directory: Path) -> list[Speed]:
    """Read a stage's `metrics.jsonl` but its first line, in which everything warms up.

    Args:
        directory: Directory of the stage.

    Returns:
        The lines in which something was trained; none without a log.

    Raises:
        DataError: A line is damaged. InputError: The log cannot be read.
    """
    lines = read_lines(Speed, directory / "metrics.jsonl") or []
    speeds = [line for line in lines if min(line.samples_per_second, line.tokens_per_second) > _NOTHING]
    return speeds[1:] or speeds
