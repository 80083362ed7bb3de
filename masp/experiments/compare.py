"""`masp compare RUN RUN …`: which of several runs is better on the same samples, and is that more than chance?"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from masp.data.questions import EMOTION
from masp.errors import InputError
from masp.experiments.distribution_tables import (
    MeasurePair,
    check_same_distributions,
    distribution_table,
    measure_pair_table,
    measure_pairs,
    measures_of,
    summary_of,
)
from masp.experiments.plots import intervals_figure
from masp.experiments.seed_groups import Group, GroupPair, RunSettings, differing, group_runs, read_settings
from masp.experiments.seed_statistics import MIN_SEEDS, holm
from masp.files.atomic import write_bytes
from masp.files.regular import is_file
from masp.files.text import reason, shown, shown_apart
from masp.report.export import Interval, Signed, Table, markdown_escaped, markdown_table, write_tables
from masp.results.intervals import percentiles
from masp.results.metrics import wilson_interval
from masp.results.metrics_file import MetricsFile, check_written_with
from masp.results.probabilities.distributions import DistributionMetrics
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
    distributions: DistributionMetrics | None = None
    """Against the distributions of the data; None if they have none."""

    def to_json(self) -> dict[str, Any]:
        """The run as `compare.json` spells it: `distributions` only where there are any."""
        values = asdict(self)
        if self.distributions is None:
            del values["distributions"]
        return values


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
    """What could not be checked, and warnings."""
    groups: Mapping[str, Group] = field(default_factory=dict)
    """Runs that differ in their seed alone; empty if no two do."""
    group_pairs: tuple[GroupPair, ...] = ()
    claims: tuple[str, ...] = ()
    """What may be said of the groups."""
    distribution_pairs: tuple[MeasurePair, ...] = ()
    """Where the data have distributions: the differences of every two runs against them."""

    def to_json(self) -> dict[str, Any]:
        """The comparison as `compare.json` spells it."""
        return {
            "runs": {name: run.to_json() for name, run in self.runs.items()},
            "pairs": [pair.to_json() for pair in self.pairs],
            "notes": self.notes,
            "groups": {name: asdict(group) for name, group in self.groups.items()},
            "group_pairs": [asdict(pair) for pair in self.group_pairs],
            "claims": self.claims,
            **({"distribution_pairs": [asdict(p) for p in self.distribution_pairs]} if self.distribution_pairs else {}),
        }


def compare(runs: Sequence[str], output: str | Path, split: str | None = None) -> Comparison:
    """Compare evaluations pair by pair, and write `compare.json`, `compare.md`, `compare.png` and its tables.

    Args:
        runs: Run directories, evaluation directories or `records.h5` files.
        output: Directory for the results.
        split: `val`: what `evaluate.validation` left beside each evaluation; None: the evaluation itself.

    Raises:
        InputError: fewer than two runs, one has no records, or they are not on the same samples. DataError: damaged.
    """
    if len(runs) < 2:
        raise InputError(f"compare: {len(runs)} run given; name two or more")
    paths = [find_records(run, split) for run in runs]
    names = names_of(runs)
    real = [path.resolve() for path in paths]
    for run, path in zip(runs, real, strict=True):
        if real.count(path) > 1:
            raise InputError(f"compare: {run} is given twice; each run can be compared with others only")
    found = [read_records_file(path) for path in paths]
    metrics = [check_written_with(path, records.digest) for path, records in zip(paths, found, strict=True)]
    targets = _target_notes(names, metrics)
    notes = [*targets, *_protocol_notes(dict(zip(names, metrics, strict=True)))]
    for name, path, records in zip(names[1:], paths[1:], found[1:], strict=True):
        note = check_same_samples(names[0], found[0], f"{name} ({path})", records)
        notes += [note] if note else []
        check_same_distributions(names[0], found[0], f"{name} ({path})", records)
    measured = {name: values for name, records in zip(names, found, strict=True) if (values := measures_of(records))}
    summaries = [summary_of(records, measured.get(name)) for name, records in zip(names, found, strict=True)]
    correct = {name: correctness(records) for name, records in zip(names, found, strict=True)}
    settings = {name: read_settings(path) for name, path in zip(names, paths, strict=True)}
    notes += _selection_notes(list(settings.values()), found[0].keys)
    groups, group_pairs = group_runs(settings, correct)
    result = Comparison(
        runs={
            name: _compared_run(hits, path, summary)
            for (name, hits), path, summary in zip(correct.items(), paths, summaries, strict=True)
        },
        pairs=_pairs(correct),
        notes=tuple(notes),
        groups=groups,
        group_pairs=group_pairs,
        claims=_claims(group_pairs),
        distribution_pairs=measure_pairs(measured),
    )
    _write(result, Path(output))
    return result


def _target_notes(names: Sequence[str], metrics: Sequence[MetricsFile | None]) -> list[str]:
    """What the runs recognize, if it is not the emotion.

    Raises:
        InputError: Two recognize different targets.
    """
    targets = [(each and each.target) or EMOTION for each in metrics]
    for name, target in zip(names[1:], targets[1:], strict=True):
        if target != targets[0]:
            raise InputError(
                f"compare: {names[0]} recognizes the target {shown(targets[0])}, {name} the target {shown(target)}; "
                "compare runs of one target"
            )
    return [] if targets[0] == EMOTION else [f"Target: {targets[0]}."]


def _claims(pairs: Sequence[GroupPair]) -> tuple[str, ...]:
    found = []
    for pair in pairs:
        if pair.corrected.claim:
            words = "ahead of" if pair.corrected.claim == "ahead" else "behind"
            found.append(f"{pair.second} is {words} {pair.first}, over seeds and images.")
    few = min((pair.test.num_seeds for pair in pairs), default=MIN_SEEDS)
    if few < MIN_SEEDS:
        found.append(
            f"No claim is made about pairs with fewer than {MIN_SEEDS} seeds in common (here {few} at the least)."
        )
    return tuple(found)


def find_records(run: str | Path, split: str | None = None) -> Path:
    """The `records.h5` that a path means, see `compare`.

    Raises:
        InputError: there is none.
    """
    run = Path(run)
    if is_file(run) and run.suffix != Path(FILE).suffix:
        raise InputError(f"{run} is not a {FILE}; name the directory of the run")
    candidates = [run] if is_file(run) else [run / "evaluate" / FILE, run / FILE]
    if split is not None:
        candidates = [path.parent / split / FILE for path in candidates]
    for path in candidates:
        if is_file(path):
            return path
    lacking = os.path.relpath(candidates[0], run.parent if is_file(run) else run)
    more = "" if split is None else " evaluate.validation=true"
    raise InputError(f"{run}: no {lacking}; run `masp evaluate --config … output_dir={run}{more}` first")


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
        label, their_label = shown_apart(repr(our_labels[row].decode()), repr(their_labels[row].decode()))
        raise InputError(
            f"compare: not on the same labels: {our_keys[row].decode()} is {label} in {name} and "
            f"{their_label} in {other} ({len(differing)} samples differ)"
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


def _compared_run(hits: np.ndarray, path: Path, distributions: DistributionMetrics | None) -> ComparedRun:
    right, count = int(hits.sum()), len(hits)
    return ComparedRun(right / count, wilson_interval(right, count), count, right, str(path), distributions)


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


def _write(result: Comparison, directory: Path) -> None:
    accuracies = [(name, run.accuracy, run.accuracy_ci95) for name, run in result.runs.items()]
    differences = [(f"{p.second} − {p.first}", p.test.difference, p.test.difference_ci95) for p in result.pairs]
    if result.group_pairs:
        differences = [
            (f"{p.second} − {p.first}", p.test.difference, p.test.both_ci95 or p.test.images_ci95)
            for p in result.group_pairs
        ]
    figure = intervals_figure([("accuracy", accuracies, None), ("difference of accuracies", differences, 0.0)])
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_bytes(directory / "compare.json", json.dumps(result.to_json(), indent=1).encode() + b"\n")
        write_bytes(directory / "compare.md", markdown(result).encode("utf-8", "backslashreplace"))
        write_bytes(directory / "compare.png", figure)
        write_tables(directory, tables_of(result), "--output")
    except OSError as error:
        raise InputError(f"--output {directory}: cannot be written: {reason(error)}") from None


def markdown(result: Comparison) -> str:
    """The comparison as Markdown tables: groups of seeds where there are any, else pairs of runs."""
    lines = markdown_table(_run_table(result))
    tables = [_group_table(result), _group_pair_table(result)] if result.groups else [_pair_table(result)]
    tables += _distribution_tables(result)
    lines += [line for table in tables if table.rows for line in ("", *markdown_table(table))]
    if result.groups and result.group_pairs:
        lines += ["", "Over seeds and images, paired; p-values corrected for the number of pairs (Holm)."]
    lines += [line for claim in result.claims for line in ("", markdown_escaped(claim))]
    lines += [line for note in result.notes for line in ("", f"Note: {markdown_escaped(note)}.")]
    return "\n".join(lines) + "\n"


def tables_of(result: Comparison) -> list[Table]:
    """All tables of a comparison."""
    tables = [_run_table(result), _pair_table(result), _group_table(result), _group_pair_table(result)]
    return [*tables, *_distribution_tables(result)]


def _distribution_tables(result: Comparison) -> list[Table]:
    """Those against the distributions of the data; none where they have none."""
    if not result.distribution_pairs:
        return []
    runs = {name: run.distributions for name, run in result.runs.items()}
    title = "The runs against the distributions of the data"
    return [distribution_table("distributions", runs, "run", title), measure_pair_table(result.distribution_pairs)]


def _run_table(result: Comparison) -> Table:
    rows = [(name, run.num_samples, run.accuracy, Interval(run.accuracy_ci95)) for name, run in result.runs.items()]
    return Table("runs", "Accuracy of the runs", ("run", "images", "accuracy", "95 % interval"), rows, 4)


def _pair_table(result: Comparison) -> Table:
    columns = ("second − first", "difference", "95 % interval", "only second right", "only first right", "McNemar p",
               "Holm p")  # fmt: skip
    rows = [
        (
            f"{p.second} − {p.first}", Signed(p.test.difference), Interval(p.test.difference_ci95), p.test.only_second,
            p.test.only_first, p.test.mcnemar_p, p.mcnemar_p_holm,
        )
        for p in result.pairs
    ]  # fmt: skip
    return Table("pairs", "Pairs of runs on the same images", columns, rows, 4)


def _group_table(result: Comparison) -> Table:
    rows = [
        (name, len(group.runs), ", ".join(map(str, group.runs)), group.accuracy, group.spread)
        for name, group in result.groups.items()
    ]
    return Table("groups", "Runs that differ in their seed alone", ("group", "num", "seeds", "mean", "spread"), rows, 4)


def _group_pair_table(result: Comparison) -> Table:
    columns = ("second − first", "seeds", "difference", "over images", "over seeds", "over both", "t test p", "both p")
    rows = [
        (
            f"{p.second} − {p.first}", p.test.num_seeds, Signed(p.test.difference), Interval(p.test.images_ci95),
            Interval(p.test.seeds_ci95), Interval(p.test.both_ci95), p.corrected.t_p, p.corrected.both_p,
        )
        for p in result.group_pairs
    ]  # fmt: skip
    return Table("group-pairs", "Pairs of groups over seeds and images", columns, rows, 4)


def _protocol_notes(metrics: Mapping[str, MetricsFile | None]) -> list[str]:
    """A line for everything but the model that decides an answer, and in which the evaluations differ."""
    notes = []
    for name in ("scoring", "question", "category_map"):
        values = {run: value for run, each in metrics.items() if (value := getattr(each, name, None)) is not None}
        first = next(iter(values), "")
        if other := next((run for run, value in values.items() if value != values[first]), None):
            here, there = shown_apart(shown(values[first]), shown(values[other]))
            notes.append(
                f"these runs were not evaluated alike: {name} is {here} in {first}, but {there} in {other}, so their "
                "difference is not one of the models alone"
            )
    return notes


def _selection_notes(settings: Sequence[RunSettings | None], keys: Sequence[str]) -> list[str]:
    """A warning where runs that were trained differently are compared on the test split."""
    trained = [name for name in differing(settings) if name.startswith(("stage1.", "stage2.", "aspect_module."))]
    if not trained or not keys[0].startswith("test/"):
        return []
    what = ", ".join(trained[:3]) + (", …" if len(trained) > 3 else "")
    return [
        f"these runs differ in {what} and are compared on the test split: choosing one of them by these numbers is "
        "selecting on the test split, after which its accuracy there is too high; choose on the validation split "
        "(`masp evaluate … evaluate.validation=true` for each run, then `masp compare --split val …`)"
    ]
