"""The table and the plot of a study, from the records that its runs left."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from masp.config.yaml_text import read_yaml
from masp.errors import InputError
from masp.experiments.compare import check_same_samples, correctness
from masp.experiments.plots import Panel, intervals_figure
from masp.experiments.variants import FULL, Variant
from masp.files.atomic import write_bytes
from masp.files.text import reason, shortened
from masp.results.intervals import percentiles
from masp.results.records import FILE, Records, read_records_file

LOG = logging.getLogger(__name__)

_NUM_RESAMPLES = 5000


@dataclass(frozen=True)
class StudyRow:
    """One variant of a study."""

    title: str
    group: str
    removes: bool
    """Whether it leaves out a part of the method."""
    accuracies: dict[int, float]
    """Seed -> accuracy."""
    accuracy: float
    """Mean over seeds."""
    spread: float | None
    """Standard deviation over seeds; None of fewer than two."""
    accuracy_ci95: tuple[float, float]
    """Bootstrap over samples of the mean over seeds: the seeds are those that were run."""
    difference: float | None
    """From the method, over the seeds that both have."""
    difference_ci95: tuple[float, float] | None
    behind: bool
    """Whether the whole interval of the difference is below zero."""


@dataclass(frozen=True)
class Study:
    """What `study.json` holds."""

    seeds: list[int]
    """Those with a finished run."""
    num_samples: int
    missing: dict[str, list[int]]
    """Variant without a finished run -> seeds, empty if it needs none of its own."""
    notes: list[str]
    """What could not be checked, and settings that differ."""
    variants: Mapping[str, StudyRow]

    def to_json(self) -> dict[str, Any]:
        """The study as `study.json` spells it."""
        return asdict(self)


def write_table(directory: Path, variants: Sequence[Variant], seeds: Sequence[int]) -> Path:
    """Write `study.json`, `study.md` and `study.png` from the runs that are finished; prints the table.

    Args:
        directory: Directory of the study.
        variants: Variants in the order of the table; the first is the method itself.
        seeds: Seeds of training.

    Returns:
        `study.json`.

    Raises:
        InputError: runs are on different samples. DataError: records are damaged.
    """
    result = study(directory, variants, seeds)
    text = markdown(result)
    path = directory / "study.json"
    rows = result.variants.values()
    accuracies = [(row.title, row.accuracy, row.accuracy_ci95) for row in rows]
    changes = [
        (row.title, row.difference, row.difference_ci95)
        for row in rows
        if row.difference is not None and row.difference_ci95 is not None
    ]
    panels: list[Panel] = [("accuracy, mean over seeds", accuracies, None)]
    if changes:
        panels.append(("difference from MASP", changes, 0.0))
    figure = intervals_figure(panels)
    try:
        write_bytes(path, json.dumps(result.to_json(), indent=1).encode() + b"\n")
        write_bytes(directory / "study.md", text.encode())
        write_bytes(directory / "study.png", figure)
    except OSError as error:
        raise InputError(f"output_dir: {directory} cannot be written: {reason(error)}") from None
    missing = "; ".join(
        f"{name} (seed {', '.join(map(str, lacking))})" if lacking else name for name, lacking in result.missing.items()
    )
    print(f"\n{text}")
    for note in result.notes:
        LOG.info("%s", note)
    if missing:
        print(f"study: not finished, so not in the table: {missing}")
    print(f"study: {path}")
    return path


def seeds_found(directory: Path) -> list[int]:
    """The seeds that a study's directory has runs of, whichever call made them."""
    names = [path.name.removeprefix("seed-") for path in directory.glob("seed-*") if path.is_dir()]
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal() and str(int(name)) == name)


def study(directory: Path, variants: Sequence[Variant], seeds: Sequence[int]) -> Study:
    """The numbers of the table.

    Args:
        directory: Directory of the study.
        variants: Variants in the order of the table.
        seeds: Seeds of training.

    Raises:
        InputError: runs are on different samples, or a configuration is damaged. DataError: records are damaged.
    """
    right: dict[str, dict[int, np.ndarray]] = {}
    first: tuple[str, Records] | None = None
    unsure: list[str] = []
    settings = _Settings()
    for variant in variants:
        for seed in seeds:
            path = directory / f"seed-{seed}" / variant.name / "evaluate" / FILE
            if path.is_file():
                records = read_records_file(path)
                first = first or (str(path), records)
                note = check_same_samples(*first, str(path), records)
                unsure += [note] if note and records is not first[1] else []
                settings.read(path.parents[1], variant)
                right.setdefault(variant.name, {})[seed] = correctness(records)
                if not variant.seeded:
                    break
    full = right.get(FULL, {})
    rows = {}
    for variant in variants:
        mine = right.get(variant.name)
        if not mine:
            continue
        values = {seed: float(hits.mean()) for seed, hits in mine.items()}
        # what depends on no seed was run once, and is set beside each of the method's runs
        once = {} if variant.seeded else dict.fromkeys(full, next(iter(mine.values())))
        theirs = once | mine
        both = [(theirs[seed], full[seed]) for seed in full if seed in theirs]
        difference = np.mean([a.astype(float) - b for a, b in both], axis=0) if both else None
        if variant.name == FULL:
            difference = None
        interval = None if difference is None else _interval(difference)
        rows[variant.name] = StudyRow(
            title=variant.title,
            group=variant.group,
            removes=variant.removes,
            accuracies=values,
            accuracy=statistics.mean(values.values()),
            spread=statistics.stdev(values.values()) if len(values) > 1 else None,
            accuracy_ci95=_interval(np.mean(list(mine.values()), axis=0)),
            difference=None if difference is None else float(difference.mean()),
            difference_ci95=interval,
            behind=interval is not None and interval[1] < 0,
        )
    missing = {v.name: [s for s in seeds if v.seeded and s not in right.get(v.name, {})] for v in variants}
    return Study(
        seeds=[seed for seed in seeds if any(seed in mine for mine in right.values())],
        num_samples=len(first[1]) if first else 0,
        missing={name: lacking for name, lacking in missing.items() if lacking or name not in right},
        notes=[*([f"{unsure[0]} ({len(unsure)} runs in all)"] if unsure else []), *settings.notes()],
        variants=rows,
    )


class _Settings:
    """What training and evaluation of runs were told, compared with the first run's."""

    def __init__(self) -> None:
        self.first: dict[str, tuple[str, dict[str, Any], set[str]]] = {}
        self.differing: dict[str, list[str]] = {}
        """What differs -> the files that say so."""

    def read(self, run: Path, variant: Variant) -> None:
        """Take in a run's settings, but for those that make the variant."""
        for part in (*variant.stages, "evaluate"):
            path = run / part / "config.yaml"
            if not path.is_file():
                continue
            mine = dict(_flat(read_yaml(path)[0]))
            name, theirs, changed = self.first.setdefault(part, (str(path), mine, set(variant.changes)))
            for key in sorted({*mine, *theirs} - {"seed", "output_dir", *changed, *variant.changes}):
                if mine.get(key) != theirs.get(key) and not key.startswith("checkpoint."):
                    what = f"{key} is {_spelled(mine.get(key))}, and {_spelled(theirs.get(key))} in {name}"
                    self.differing.setdefault(what, []).append(str(path))

    def notes(self) -> list[str]:
        """A line per difference."""
        return [f"{_some(paths)}: {what}" for what, paths in self.differing.items()]


def _spelled(value: object) -> str:
    return shortened(repr(value), 200)


def _some(names: Sequence[str]) -> str:
    """The first of some names, and how many there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted names."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _interval(values: np.ndarray) -> tuple[float, float]:
    """Bootstrap over samples of the mean of `[N]` values; few different ones, so resamples are drawn as counts."""
    levels, counts = np.unique(values, return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(values), counts / len(values), size=_NUM_RESAMPLES)
    return percentiles(draws @ levels / len(values))


def markdown(result: Study) -> str:
    """The study as a Markdown table."""
    head = " | ".join(f"seed {seed}" for seed in result.seeds)
    lines = [
        f"Accuracy on {result.num_samples:,} images; mean and standard deviation over the training seeds.",
        "The difference from MASP is over the same images, with a 95 % interval (bootstrap over images).",
        "",
        f"| variant | {head} | mean | spread | difference from MASP | 95 % interval |",
        f"|---|{'---|' * len(result.seeds)}---|---|---|---|",
    ]
    for row in result.variants.values():
        cells = " | ".join(f"{row.accuracies[s]:.3f}" if s in row.accuracies else "" for s in result.seeds)
        spread = "" if row.spread is None else f"{row.spread:.3f}"
        difference, interval = "", ""
        if row.difference is not None and row.difference_ci95 is not None:
            low, high = row.difference_ci95
            difference, interval = f"{row.difference:+.3f}", f"{low:+.3f} to {high:+.3f}"
        lines.append(f"| {row.title} | {cells} | {row.accuracy:.3f} | {spread} | {difference} | {interval} |")
    return "\n".join(lines) + "\n"
