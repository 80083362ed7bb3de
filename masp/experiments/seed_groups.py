"""Runs that differ in nothing but their seed, told apart by what training and evaluation were told."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from masp.config.yaml_text import read_yaml
from masp.experiments.seed_statistics import Corrected, SeedTest, compare_seeds, correct
from masp.files.regular import is_file
from masp.files.text import shortened

_PARTS = ("stage1", "stage2")
# What says where something is or how fast it goes, and not what comes out.
_OF_NO_MATTER = re.compile(
    r"seed|output_dir|evaluate\.(output_dir|batch_size|num_workers|validation|prompts|linear_probe|attention)|extract\..*"
    r"|logging\..*"
    r"|cache\.(dir|num_shards)|engine\.(num_workers|num_threads|device|zero_stage|offload|time_limit_min)"
    r"|stage\d\.(log_every|log_keys|keep|checkpoint_every|micro_batch_size|micro_batch_tokens)"
)
_MAX_SHOWN = 3


@dataclass(frozen=True)
class RunSettings:
    """What a run was told, as far as its directories say."""

    seed: int | None
    values: Mapping[str, Any]
    """Dotted setting -> value, without what does not matter to the result."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed."""

    runs: Mapping[int, str]
    """Seed -> name of the run."""
    accuracy: float
    """Mean over seeds."""
    spread: float | None
    """Standard deviation over seeds; None of fewer than two."""


@dataclass(frozen=True)
class GroupPair:
    """Two groups, over the seeds that both have."""

    first: str
    second: str
    test: SeedTest
    corrected: Corrected


def read_settings(records: Path) -> RunSettings | None:
    """The settings of the run whose evaluation left a file; None if no configuration is there.

    Args:
        records: `records.h5` in the directory of an evaluation, which is in that of the run.

    Raises:
        InputError: a configuration is damaged.
    """
    evaluation = records.parent if records.parent.name != "val" else records.parent.parent
    found = {}
    for name, path in [
        *((part, evaluation.parent / part / "config.yaml") for part in _PARTS),
        ("evaluate", records.parent / "config.yaml"),
    ]:
        if is_file(path):
            found[name] = dict(_flat(read_yaml(path)[0]))
    if not found:
        return None
    values: dict[str, Any] = {}
    seed = None
    for part, settings in found.items():
        own = settings.get("seed")
        seed = own if seed is None and isinstance(own, int) else seed
        for key, value in settings.items():
            # an evaluation need not repeat what its training was told
            is_trained = key.startswith(_PARTS) and not key.startswith(part)
            if not _OF_NO_MATTER.fullmatch(key) and not is_trained:
                values[key] = _without_place(value, settings.get("output_dir"), own)
    return RunSettings(seed, values)


def _without_place(value: Any, output_dir: Any, seed: Any) -> Any:
    """A value without what only says where the run is: the same of two runs that differ in their seed alone."""
    if isinstance(value, list):
        return tuple(map(repr, value))
    if not isinstance(value, str):
        return value
    if isinstance(output_dir, str) and output_dir:
        value = value.replace(output_dir, "{output_dir}")
    # seed-1, but not stage1
    return re.sub(rf"(?<![^\W_]){seed}(?![^\W_])", "{seed}", value) if "/" in value else value


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def differing(settings: Sequence[RunSettings | None]) -> list[str]:
    """The settings in which runs differ; what a run does not say is not compared."""
    known = [each.values for each in settings if each]
    names = dict.fromkeys(name for values in known for name in values)
    return [name for name in names if len({repr(values[name]) for values in known if name in values}) > 1]


def group_runs(
    settings: Mapping[str, RunSettings | None], correct_of: Mapping[str, np.ndarray]
) -> tuple[dict[str, Group], tuple[GroupPair, ...]]:
    """Put runs into groups and compare these.

    Args:
        settings: Name of the run -> its settings.
        correct_of: Name of the run -> which of its predictions are right, in one order.

    Returns:
        Name -> group, and all pairs with a seed in common; nothing if no two runs differ in their seed alone.
    """
    members: dict[str, dict[int, str]] = {}
    for name, each in settings.items():
        key = name if each is None or each.seed is None else repr(sorted(each.values.items()))
        seed = each.seed if each and each.seed is not None else 0
        while seed in members.get(key, {}):  # the same run twice is not a seed more
            key += "'"
        members.setdefault(key, {})[seed] = name
    if all(len(runs) < 2 for runs in members.values()):
        return {}, ()
    names = differing([settings[next(iter(runs.values()))] for runs in members.values()])
    groups: dict[str, Group] = {}
    for runs in members.values():
        runs = dict(sorted(runs.items()))
        accuracies = [float(correct_of[run].mean()) for run in runs.values()]
        spread = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None
        groups[_name(runs, settings, names, groups)] = Group(runs, float(np.mean(accuracies)), spread)
    tests = {}
    for a, b in itertools.combinations(groups, 2):
        seeds = [seed for seed in groups[a].runs if seed in groups[b].runs]
        if seeds:
            ours, theirs = ([correct_of[groups[name].runs[seed]] for seed in seeds] for name in (a, b))
            tests[a, b] = compare_seeds(ours, theirs)
    corrected = correct({repr(pair): test for pair, test in tests.items()})
    return groups, tuple(GroupPair(*pair, test, corrected[repr(pair)]) for pair, test in tests.items())


def _name(
    runs: Mapping[int, str],
    settings: Mapping[str, RunSettings | None],
    names: Sequence[str],
    taken: Mapping[str, Group],
) -> str:
    """What tells a group from the others: its settings, or its first run."""
    first = next(iter(runs.values()))
    each = settings[first]
    values = each.values if each else {}
    parts = [f"{name}={shortened(str(values[name]), 40)}" for name in names[:_MAX_SHOWN] if name in values]
    name = ", ".join(parts) if parts and len(names) <= _MAX_SHOWN else f"{first} and {len(runs) - 1} more"
    name = first if len(runs) == 1 and not parts else name
    return name if name not in taken else f"{name} ({first})"
