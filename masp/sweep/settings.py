"""Members of a sweep that differ in their seed alone, as one setting: its accuracy, and how it compares with the best.

The accuracies of a split choose the best setting, and its comparisons with others are of the same images. So on the
split that chooses, p-values are corrected for all pairs of settings, of whichever the best could have been one; on the
test split, where nothing is chosen, for those that are shown.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from masp.experiments.compare import check_same_samples, correctness
from masp.experiments.seed_statistics import Corrected, SeedTest, claims, compare_seeds, correct
from masp.report.export import Cell, Interval, Signed, Table
from masp.results.metrics_file import check_written_with
from masp.results.records import FILE, Records, read_records_file

LOG = logging.getLogger(__name__)

SEED = "seed"

_CULLED = (
    "No claim is made: members that did badly were dropped, so that the seeds that are left of a setting are its best."
)

Split = Literal["val", "test"]

SPLIT_NAMES: dict[Split, str] = {"val": "validation", "test": "test"}


@dataclass(frozen=True)
class Setting:
    """Members that differ in their seed alone."""

    values: dict[str, Any]
    """Setting -> value, of those that are varied, without the seed."""
    members: dict[str, float]
    """Name -> accuracy, of those that were scored."""
    num_unscored: int
    """Members without a score: not trained to their end, or not scored on this split."""
    accuracy: float | None
    """Mean over the members that were scored; None where none was."""
    spread: float | None
    """Standard deviation over them; None of fewer than two."""
    images_ci95: tuple[float, float] | None
    """Of the mean, over images, for the seeds that were run."""
    both_ci95: tuple[float, float] | None
    """Of the mean, over seeds and images drawn together; None of fewer than two seeds."""
    test: SeedTest | None = None
    """The difference from the best, over the seeds that both have; None of the best itself and without common seeds."""
    corrected: Corrected | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Over seeds and images, or of a single seed over images."""
        return self.both_ci95 or self.images_ci95


@dataclass(frozen=True)
class SettingScores:
    """All settings of a sweep on one split."""

    split: Split
    chosen_on: Split
    """Split whose scores chose the best."""
    num_samples: int
    best: int | None
    """Number of the setting that the others are compared with; None where nothing is."""
    settings: list[Setting]
    num_comparisons: int
    """For how many comparisons p-values are corrected."""
    claims: list[str]
    """What may be said of them; with fewer than five seeds, that nothing is."""

    def to_json(self) -> dict[str, Any]:
        """As `sweep.json` spells it."""
        return asdict(self)


def setting_scores(
    directory: Path,
    members: Mapping[str, Mapping[str, Any]],
    scored: Collection[str],
    split: Split,
    best: Mapping[str, Any] | None = None,
    is_culled: bool = False,
) -> SettingScores:
    """Put members that differ in their seed alone together, and compare their settings.

    Args:
        directory: Directory of the sweep, with that of each member in it.
        members: Name of a member -> what it varies.
        scored: Names of those that were scored on the split.
        split: Split whose scores are taken.
        best: Values of the setting to compare with, which the validation split has chosen; None chooses here.
        is_culled: Whether members were dropped since they did badly: what is left of the seeds of a setting are the
            lucky ones, and nothing is claimed.

    Raises:
        InputError: Members were scored on different samples. DataError: Records are damaged.
    """
    grouped: dict[str, list[str]] = {}
    for name, values in members.items():
        grouped.setdefault(repr(sorted(_without_seed(values).items())), []).append(name)
    right, num_samples = _right(directory, [name for name in members if name in scored], split)
    settings, seeds = [], []
    for names in grouped.values():
        known = [name for name in names if name in right]
        seeds.append({members[name].get(SEED): right[name] for name in known})
        values = _without_seed(members[names[0]])
        settings.append(_setting(values, {name: right[name] for name in known}, len(names) - len(known)))
    place = _best(settings) if best is None else _place(settings, best)
    pairs = {} if place is None else _compared(seeds, place)
    num_scored = sum(bool(setting.members) for setting in settings)
    count = math.comb(num_scored, 2) if best is None else len(pairs)
    tests = {number: compare_seeds(*pair, num_comparisons=count) for number, pair in pairs.items()}
    corrected = correct({str(number): test for number, test in tests.items()}, count)
    if is_culled:
        corrected = {name: replace(value, claim=None) for name, value in corrected.items()}
    for number, test in tests.items():
        settings[number] = replace(settings[number], test=test, corrected=corrected[str(number)])
    titles = [title(setting.values) for setting in settings]
    said = [_CULLED]
    if not is_culled:
        said = claims(
            {titles[number]: test for number, test in tests.items()},
            {titles[number]: corrected[str(number)] for number in tests},
            "" if place is None else titles[place],
            count,
        )
    return SettingScores(split, split if best is None else "val", num_samples, place, settings, count, said)


def _without_seed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != SEED}


def _right(directory: Path, names: Sequence[str], split: Split) -> tuple[dict[str, np.ndarray], int]:
    """Name of a member -> which of its predictions are right; and how many images there are."""
    first: tuple[str, Records] | None = None
    found, unsure = {}, []
    for name in names:
        evaluation = directory / name / "evaluate"
        path = (evaluation / "val" if split == "val" else evaluation) / FILE
        records = read_records_file(path)
        check_written_with(path, records.digest)
        first = first or (name, records)
        note = check_same_samples(*first, name, records)
        unsure += [note] if note and records is not first[1] else []
        found[name] = correctness(records)
    if unsure:
        LOG.info("%s (%d members in all)", unsure[0], len(unsure))
    return found, len(first[1]) if first else 0


def _setting(values: dict[str, Any], right: Mapping[str, np.ndarray], num_unscored: int) -> Setting:
    if not right:
        return Setting(values, {}, num_unscored, None, None, None, None)
    members = {name: float(hits.mean()) for name, hits in right.items()}
    # the accuracy is a difference from being wrong everywhere
    found = compare_seeds([np.zeros_like(hits) for hits in right.values()], list(right.values()))
    spread = statistics.stdev(members.values()) if len(members) > 1 else None
    return Setting(values, members, num_unscored, found.difference, spread, found.images_ci95, found.both_ci95)


def _best(settings: Sequence[Setting]) -> int | None:
    """The highest mean, among settings of which most seeds were scored: one lucky seed is not a setting."""
    most = max((len(setting.members) for setting in settings), default=0)
    candidates = [n for n, setting in enumerate(settings) if setting.members and len(setting.members) == most]
    return max(candidates, key=lambda n: settings[n].accuracy or 0.0, default=None)


def _place(settings: Sequence[Setting], values: Mapping[str, Any]) -> int | None:
    """The number of a setting that was scored."""
    return next((n for n, each in enumerate(settings) if each.values == values and each.members), None)


def _compared(
    seeds: Sequence[Mapping[Any, np.ndarray]], place: int
) -> dict[int, tuple[list[np.ndarray], list[np.ndarray]]]:
    """Number of a setting -> what the best and it got right, over the seeds that both have."""
    found = {}
    for number, theirs in enumerate(seeds):
        both = [seed for seed in seeds[place] if seed in theirs]
        if both and number != place:
            found[number] = ([seeds[place][seed] for seed in both], [theirs[seed] for seed in both])
    return found


def column_names(keys: Sequence[str]) -> list[str]:
    """Short names of settings, `learning_rate`, where no two of them are the same."""
    short = [key.rpartition(".")[2] for key in keys]
    return [name if short.count(name) == 1 else key for key, name in zip(keys, short, strict=True)]


def title(values: Mapping[str, Any]) -> str:
    """A setting in words."""
    named = zip(column_names(list(values)), values.values(), strict=True)
    return ", ".join(f"{name}={value}" for name, value in named) or "as given"


def setting_table(scores: SettingScores) -> Table:
    """The settings, the most accurate first."""
    keys = list(dict.fromkeys(key for setting in scores.settings for key in setting.values))
    columns = (
        *column_names(keys), "seeds", "mean", "spread", "mean over images", "mean over both", "difference",
        "difference over images", "difference over both", "t test p", "both p", "remark",
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for number, setting in sorted(enumerate(scores.settings), key=_rank):
        test, corrected = setting.test, setting.corrected
        rows.append(
            [
                *(str(setting.values.get(key, "")) for key in keys),
                len(setting.members), setting.accuracy, setting.spread,
                Interval(setting.images_ci95), Interval(setting.both_ci95),
                Signed(test.difference if test else None), Interval(test.images_ci95 if test else None),
                Interval(test.both_ci95 if test else None), corrected.t_p if corrected else None,
                corrected.both_p if corrected else None, _remark(setting, number == scores.best),
            ]
        )  # fmt: skip
    name = "settings" if scores.split == "val" else "settings-test"
    return Table(name, f"Settings of the sweep on the {SPLIT_NAMES[scores.split]} split", columns, rows)


def _rank(numbered: tuple[int, Setting]) -> float:
    accuracy = numbered[1].accuracy
    return math.inf if accuracy is None else -accuracy


def _remark(setting: Setting, is_best: bool) -> str:
    parts = ["best"] if is_best else []
    if setting.corrected and setting.corrected.claim:
        parts.append(setting.corrected.claim)
    if setting.num_unscored:
        parts.append(f"{setting.num_unscored} without a score")
    return ", ".join(parts)


def lines_about(scores: SettingScores) -> list[str]:
    """What the table is, and what may be claimed."""
    lines = [
        f"Settings on the {scores.num_samples:,} images of the {SPLIT_NAMES[scores.split]} split, mean and standard "
        "deviation over seeds, with 95 % intervals over the images, for the seeds that were run, and over seeds and "
        "images drawn together."
    ]
    if scores.claims:
        chosen = SPLIT_NAMES[scores.chosen_on]
        lines[0] += (
            f" Differences are from the best of the {chosen} split, on the same seeds and images; p-values are "
            f"corrected for {scores.num_comparisons:,} comparison{'s' * (scores.num_comparisons != 1)} (Holm)."
        )
    return [*lines, *scores.claims]
