"""`masp compare RUN RUN …`: which of several runs is better on the same samples, and is that more than chance?"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from masp.errors import InputError, one_line
from masp.experiments.plots import intervals_figure
from masp.files.atomic import write_bytes
from masp.files.regular import is_file
from masp.files.text import reason, shown
from masp.results.intervals import percentiles
from masp.results.metrics import wilson_interval
from masp.results.records import FILE, Records, read_records_file

_NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison."""

    accuracy: float
    accuracy_ci95: tuple[float, float]
    """Wilson's interval."""
    num_samples: int
    num_correct: int
    path: str
    """Its `records.h5`."""


@dataclass(frozen=True)
class PairTest:
    """Paired comparison of two runs on the same samples."""

    difference: float
    """Accuracy of the second minus that of the first."""
    difference_ci95: tuple[float, float]
    """Bootstrap over samples."""
    only_first: int
    """Samples that only the first predicts right."""
    only_second: int
    mcnemar_p: float
    """Of McNemar's exact test."""


@dataclass(frozen=True)
class Pair:
    """Two runs of a comparison."""

    first: str
    second: str
    test: PairTest
    mcnemar_p_holm: float
    """Corrected for the number of pairs."""

    def to_json(self) -> dict[str, Any]:
        """The pair as `compare.json` spells it."""
        names = {"first": self.first, "second": self.second}
        return {**names, **asdict(self.test), "mcnemar_p_holm": self.mcnemar_p_holm}


@dataclass(frozen=True)
class Comparison:
    """What `compare.json` holds."""

    runs: Mapping[str, ComparedRun]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]
    """What could not be checked."""

    def to_json(self) -> dict[str, Any]:
        """The comparison as `compare.json` spells it."""
        return {
            "runs": {name: asdict(run) for name, run in self.runs.items()},
            "pairs": [pair.to_json() for pair in self.pairs],
            "notes": self.notes,
        }


def compare(runs: Sequence[str], output: str | Path) -> Comparison:
    """Compare evaluations pair by pair, and write `compare.json`, `compare.md` and `compare.png`.

    Args:
        runs: Run directories, evaluation directories or `records.h5` files.
        output: Directory for the results.

    Raises:
        InputError: fewer than two runs, one has no records, or they are not on the same samples. DataError: damaged.
    """
    if len(runs) < 2:
        raise InputError(f"compare: {len(runs)} run given; name two or more")
    paths = [find_records(run) for run in runs]
    names = names_of(runs)
    real = [path.resolve() for path in paths]
    for run, path in zip(runs, real, strict=True):
        if real.count(path) > 1:
            raise InputError(f"compare: {run} is given twice; each run can be compared with others only")
    found = [read_records_file(path) for path in paths]
    notes = []
    for name, path, records in zip(names[1:], paths[1:], found[1:], strict=True):
        note = check_same_samples(names[0], found[0], f"{name} ({path})", records)
        notes += [note] if note else []
    correct = {name: correctness(records) for name, records in zip(names, found, strict=True)}
    result = Comparison(
        runs={name: _compared_run(hits, path) for (name, hits), path in zip(correct.items(), paths, strict=True)},
        pairs=_pairs(correct),
        notes=tuple(notes),
    )
    _write(result, Path(output))
    return result


def find_records(run: str | Path) -> Path:
    """The `records.h5` that a path means.

    Raises:
        InputError: there is none.
    """
    run = Path(run)
    candidates = [run] if is_file(run) else [run / "evaluate" / FILE, run / FILE]
    for path in candidates:
        if is_file(path):
            return path
    raise InputError(
        f"{run}: no {candidates[0].relative_to(run)}; run `masp evaluate --config … output_dir={run}` first"
    )


def names_of(runs: Sequence[str]) -> list[str]:
    """Short names that tell runs apart: as many last parts of their paths as that takes."""
    parts = [Path(os.path.abspath(run)).parts for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"compare: {runs[0]} is given twice; each run can be compared with others only")


def check_same_samples(name: str, ours: Records, other: str, theirs: Records) -> str | None:
    """Refuse to compare evaluations of different samples.

    Returns:
        Why it is not known whether their images are the same; None if it is.

    Raises:
        InputError: names a sample that only one has, or whose label differs, or both digests of the images.
    """
    our_keys, their_keys = ours.ordered("sample_key"), theirs.ordered("sample_key")
    if not np.array_equal(our_keys, their_keys):
        for one, has, two, lacks in ((name, our_keys, other, their_keys), (other, their_keys, name, our_keys)):
            only = np.setdiff1d(has, lacks, assume_unique=True)
            if len(only):
                raise InputError(
                    f"compare: not on the same samples: {len(only)} of {one} are not in {two}, such as "
                    f"{only[0].decode()}; evaluate both on the same dataset and split"
                )
    our_labels, their_labels = ours.ordered("label"), theirs.ordered("label")
    differing = np.flatnonzero(our_labels != their_labels)
    if len(differing):
        row = differing[0]
        label, their_label = our_labels[row].decode(), their_labels[row].decode()
        raise InputError(
            f"compare: not on the same labels: {our_keys[row].decode()} is {shown(label)} in {name} and "
            f"{shown(their_label)} in {other} ({len(differing)} samples differ)"
        )
    a, b = ours.data, theirs.data
    if not a or not b:
        lacking = " and ".join(n for n, data in ((name, a), (other, b)) if not data)
        return f"whether the images are the same is not known: {lacking} was evaluated before digests of them were kept"
    live = " and ".join(n for n, data in ((name, a), (other, b)) if not data.made_by)
    if live:
        return f"whether the images are the same is not known: {live} was evaluated live"
    if a.data_digest == b.data_digest:
        return None
    if a.made_by == b.made_by:
        raise InputError(
            f"compare: not on the same images: data_digest is {a.data_digest[:12]} in {name} and "
            f"{b.data_digest[:12]} in {other}, whose features were made alike; evaluate both on the same dataset"
        )
    return f"whether the images are the same is not known: the features of {name} and {other} were made differently"


def correctness(records: Records) -> np.ndarray:
    """Which predictions are right, bool, in the order of the keys."""
    return records.is_right[records.order]


def _compared_run(hits: np.ndarray, path: Path) -> ComparedRun:
    right, count = int(hits.sum()), len(hits)
    return ComparedRun(right / count, wilson_interval(right, count), count, right, str(path))


def compare_pair(first: np.ndarray, second: np.ndarray, seed: int = 0) -> PairTest:
    """Paired comparison of two runs.

    Args:
        first, second: Which predictions are right, `[N]` bool, of the same samples.
        seed: Seed of the bootstrap over samples.
    """
    count = len(first)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    # The difference of a resample depends on these three counts alone, so drawing them is drawing samples.
    shares = np.array([only_first, only_second, count - only_first - only_second]) / count
    draws = np.random.default_rng(seed).multinomial(count, shares, size=_NUM_RESAMPLES)
    discordant = only_first + only_second
    return PairTest(
        difference=(only_second - only_first) / count,
        difference_ci95=percentiles((draws[:, 1] - draws[:, 0]) / count),
        only_first=only_first,
        only_second=only_second,
        # exact: under the null each sample that only one run gets right is a fair coin
        mcnemar_p=float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0,
    )


def _pairs(correct: dict[str, np.ndarray]) -> tuple[Pair, ...]:
    names = list(itertools.combinations(correct, 2))
    tests = [compare_pair(correct[a], correct[b]) for a, b in names]
    adjusted = holm([test.mcnemar_p for test in tests])
    return tuple(Pair(a, b, test, p) for (a, b), test, p in zip(names, tests, adjusted, strict=True))


def holm(values: Sequence[float]) -> list[float]:
    """p-values made larger for how many there are, so that 5 % stays the chance of *any* false alarm (Holm)."""
    order = sorted(range(len(values)), key=values.__getitem__)
    adjusted, largest = [0.0] * len(values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, values[index] * (len(values) - place)))
        adjusted[index] = largest
    return adjusted


def _write(result: Comparison, directory: Path) -> None:
    accuracies = [(name, run.accuracy, run.accuracy_ci95) for name, run in result.runs.items()]
    differences = [(f"{p.second} − {p.first}", p.test.difference, p.test.difference_ci95) for p in result.pairs]
    figure = intervals_figure([("accuracy", accuracies, None), ("difference of accuracies", differences, 0.0)])
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_bytes(directory / "compare.json", json.dumps(result.to_json(), indent=1).encode() + b"\n")
        write_bytes(directory / "compare.md", markdown(result).encode("utf-8", "backslashreplace"))
        write_bytes(directory / "compare.png", figure)
    except OSError as error:
        raise InputError(f"--output {directory}: cannot be written: {reason(error)}") from None


def markdown(result: Comparison) -> str:
    """The comparison as two Markdown tables."""
    lines = ["| run | images | accuracy | 95 % interval |", "|---|---|---|---|"]
    for name, run in result.runs.items():
        low, high = run.accuracy_ci95
        lines.append(f"| {_cell(name)} | {run.num_samples:,} | {run.accuracy:.4f} | {low:.4f} to {high:.4f} |")
    lines += [
        "",
        "| second − first | difference | 95 % interval | only second right | only first right | McNemar p | Holm p |",
        "|---|---|---|---|---|---|---|",
    ]
    for pair in result.pairs:
        test, (low, high) = pair.test, pair.test.difference_ci95
        lines.append(
            f"| {_cell(pair.second)} − {_cell(pair.first)} "
            f"| {test.difference:+.4f} | {low:+.4f} to {high:+.4f} "
            f"| {test.only_second} | {test.only_first} | {test.mcnemar_p:.2g} | {pair.mcnemar_p_holm:.2g} |"
        )
    lines += [line for note in result.notes for line in ("", f"Note: {_cell(note)}.")]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """A name as text of a Markdown table, whatever is in it."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in one_line(text))
