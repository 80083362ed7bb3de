"""The table and the plot of a study, from the records that its runs left."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from masp.config.yaml_text import read_yaml
from masp.experiments.compare import check_same_samples, correctness
from masp.experiments.plots import intervals_figure
from masp.experiments.variants import FULL, Variant
from masp.files.atomic import write_bytes
from masp.results.intervals import percentiles
from masp.results.records import FILE, read_records_file

_NUM_RESAMPLES = 5000


def write_table(folder: Path, variants: Sequence[Variant], seeds: Sequence[int]) -> Path:
    """Write `study.json`, `study.md` and `study.png` from the runs that are finished; prints the table.

    Args:
        folder: of the study.
        variants: in the order of the table; the first is the method itself.
        seeds: of training.

    Returns:
        `study.json`.

    Raises:
        InputError: runs are on different samples. DataError: records are damaged.
    """
    result = study(folder, variants, seeds)
    text = markdown(result)
    path = folder / "study.json"
    write_bytes(path, json.dumps(result, indent=1).encode() + b"\n")
    write_bytes(folder / "study.md", text.encode())
    rows = result["variants"].values()
    accuracies = [(row["title"], row["accuracy"], row["accuracy_ci95"]) for row in rows]
    changes = [(row["title"], row["difference"], row["difference_ci95"]) for row in rows if row["difference_ci95"]]
    panels: list[tuple[str, list[tuple[Any, Any, Any]], float | None]] = [
        ("accuracy, mean over seeds", accuracies, None)
    ]
    if changes:
        panels.append(("difference from MASP", changes, 0.0))
    write_bytes(folder / "study.png", intervals_figure(panels))
    missing = "; ".join(
        f"{name} (seed {', '.join(map(str, lacks))})" if lacks else name for name, lacks in result["missing"].items()
    )
    print(f"\n{text}")
    for note in result["notes"]:
        print(f"note: {note}", file=sys.stderr)
    if missing:
        print(f"study: not finished, so not in the table: {missing}")
    print(f"study: {path}")
    return path


def seeds_found(folder: Path) -> list[int]:
    """The seeds that a study's folder has runs of, whichever call made them."""
    names = [path.name.removeprefix("seed-") for path in folder.glob("seed-*") if path.is_dir()]
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal() and str(int(name)) == name)


def study(folder: Path, variants: Sequence[Variant], seeds: Sequence[int]) -> dict[str, Any]:
    """The numbers of the table.

    Returns:
        `seeds` (those with a finished run), `num_samples`, `missing` (variants without a finished run: name -> seeds,
        empty if it needs none of its own), `notes` (what could not be checked, settings that differ), and `variants`:
        name -> `title`, `group`, `removes`, `accuracies` (seed -> accuracy), `accuracy` (mean over seeds), `spread`
        (standard deviation over seeds; None of fewer than two),
        `accuracy_ci95` and `difference_ci95` (bootstrap over samples of the mean over seeds: the seeds are those that
        were run), `difference` (from the method, over the seeds that both have), `behind`: whether the whole interval
        of the difference is below zero.
    """
    right: dict[str, dict[int, np.ndarray]] = {}
    first, unsure, settings = None, [], _Settings()
    for variant in variants:
        for seed in seeds:
            path = folder / f"seed-{seed}" / variant.name / "evaluate" / FILE
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
        # what depends on no seed was run once, and stands beside each of the method's runs
        once = None if variant.seeded else next(iter(mine.values()))
        both = [(hits, full[s]) for s in full if (hits := mine.get(s, once)) is not None]
        difference = np.mean([a.astype(float) - b for a, b in both], axis=0) if both else None
        change = None if variant.name == FULL else difference
        interval = None if change is None else _interval(change)
        rows[variant.name] = {
            "title": variant.title,
            "group": variant.group,
            "removes": variant.removes,
            "accuracies": values,
            "accuracy": statistics.mean(values.values()),
            "spread": statistics.stdev(values.values()) if len(values) > 1 else None,
            "accuracy_ci95": _interval(np.mean(list(mine.values()), axis=0)),
            "difference": None if change is None else float(change.mean()),
            "difference_ci95": interval,
            "behind": interval is not None and interval[1] < 0,
        }
    missing = {v.name: [s for s in seeds if v.seeded and s not in right.get(v.name, {})] for v in variants}
    return {
        "seeds": [seed for seed in seeds if any(seed in mine for mine in right.values())],
        "num_samples": len(first[1].keys) if first else 0,
        "missing": {name: lacks for name, lacks in missing.items() if lacks or name not in right},
        "notes": [*([f"{unsure[0]} ({len(unsure)} runs in all)"] if unsure else []), *settings.notes()],
        "variants": rows,
    }


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
                    what = f"{key} is {mine.get(key)!r}, and {theirs.get(key)!r} in {name}"
                    self.differing.setdefault(what, []).append(str(path))

    def notes(self) -> list[str]:
        """A line per difference."""
        return [f"{_some(paths)}: {what}" for what, paths in self.differing.items()]


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


def _interval(values: np.ndarray) -> list[float]:
    """Bootstrap over samples of the mean of `[N]` values; few different ones, so resamples are drawn as counts."""
    levels, counts = np.unique(values, return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(values), counts / len(values), size=_NUM_RESAMPLES)
    return percentiles(draws @ levels / len(values))


def markdown(result: dict[str, Any]) -> str:
    """The study as a Markdown table."""
    seeds = result["seeds"]
    head = " | ".join(f"seed {seed}" for seed in seeds)
    lines = [
        f"Accuracy on {result['num_samples']:,} images; mean and standard deviation over the training seeds.",
        "The difference from MASP is over the same images, with a 95 % interval (bootstrap over images).",
        "",
        f"| variant | {head} | mean | spread | difference from MASP | 95 % interval |",
        f"|---|{'---|' * len(seeds)}---|---|---|---|",
    ]
    for row in result["variants"].values():
        cells = " | ".join(f"{row['accuracies'][s]:.3f}" if s in row["accuracies"] else "" for s in seeds)
        spread = "" if row["spread"] is None else f"{row['spread']:.3f}"
        difference, interval = "", ""
        if row["difference_ci95"]:
            low, high = row["difference_ci95"]
            difference, interval = f"{row['difference']:+.3f}", f"{low:+.3f} to {high:+.3f}"
        lines.append(f"| {row['title']} | {cells} | {row['accuracy']:.3f} | {spread} | {difference} | {interval} |")
    return "\n".join(lines) + "\n"
