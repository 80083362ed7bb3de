"""How fast a machine does the work: stated, taken from an earlier run, or measured here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from masp.errors import InputError
from masp.files.jsonl import read_objects

STAGES = ("stage1", "stage2")

DEFAULT_TFLOPS = 989.0
"""Peak of an H100 SXM in bf16 without sparsity, in TFLOP/s, as its data sheet says."""

DEFAULT_UTILIZATION = 0.4
"""Share of the peak that large frozen models reach in practice."""


@dataclass(frozen=True)
class Rate:
    """Work per second of one GPU, or of whatever machine the source is about."""

    per_second: float
    unit: str
    """`FLOP` or `tokens` (of the language model)."""
    source: str
    """Where the rate comes from, for the user."""

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
    rate = Rate(tflops * 1e12 * utilization, "FLOP", f"stated: {tflops:g} TFLOP/s at {utilization:.0%} utilization")
    return Rates(rate, rate, rate)


def rates_of_run(run_dir: str | Path, fallback: Rates) -> Rates:
    """Take the stages' rates from an earlier run: the median of the tokens per second in its logs.

    Args:
        run_dir: `output_dir` of that run.
        fallback: Rates of the encoder, and of a stage that has no log there.

    Raises:
        InputError: There is no log of either stage.
    """
    found = {}
    for stage in STAGES:
        lines = read_metrics(Path(run_dir) / stage)
        if lines:
            rate = statistics.median(line["tokens_per_second"] for line in lines)
            found[stage] = Rate(rate, "tokens", f"{run_dir}/{stage}: median of {len(lines)} lines, all its ranks")
    if not found:
        raise InputError(f"--rate-from {run_dir}: holds no stage1/metrics.jsonl or stage2/metrics.jsonl with lines")
    return replace(fallback, **found)


def read_metrics(folder: Path) -> list[dict]:
    """Read the lines of a stage's `metrics.jsonl` but the first, in which everything warms up; none without a log."""
    lines = read_lines(folder / "metrics.jsonl", ("samples_per_second", "tokens_per_second"))
    return lines[1:] or lines


def read_lines(path: Path, names: Sequence[str]) -> list[dict]:
    """The lines of a log that have a number above zero under each of these names; none without a log."""
    return [
        entry
        for entry in read_objects(path)
        if all(isinstance(entry.get(n), int | float) and entry[n] > 0 for n in names)
    ]
