"""Which shards a cache has and which samples each holds: fixed by the dataset and `num_shards` alone.

A cache begins with one generation of shards; images that are added later form generations of their own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masp.cache.fingerprint import FORMAT_VERSION, Fields, compare
from masp.errors import DataError, InputError
from masp.files.sealed import create_sealed, read_sealed_object
from masp.files.text import reason

LAYOUT = "layout.json"


MANIFEST = "manifest.json"


INDEX = "index.h5"


QUARANTINE = "quarantine.jsonl"


LOCK = ".lock"
"""Locked in ranges: byte `k` by whoever writes shard `k`; `FINISHING` and all below it by whoever merges the
sidecars."""


FINISHING = 1 << 40


SHARDS = "shards"


NAME = re.compile(r"(?P<split>[A-Za-z0-9_-]+?)(?:-g(?P<generation>[1-9]\d*))?-(?P<number>\d{5,})")
"""A shard's name: `train-00000`, or `train-g1-00000` of the images that were added first."""


@dataclass(frozen=True)
class Shard:
    """One tar of the cache."""

    number: int
    """Its place among all shards of all generations; the index names shards by it."""
    name: str
    split: str
    generation: int
    samples: tuple[Any, ...]
    """Its `masp.data.datasets.Sample`s, in the order of the tar."""


def assign(samples: Sequence[Any], num_shards: int, generation: int = 0, first_number: int = 0) -> list[Shard]:
    """Divide samples over shards.

    A split gets shards in proportion to its samples, at least one and never an empty one. Within a split, samples
    stand in the order of a hash of their keys, which mixes the categories (file names sort by category), and are cut
    into equal runs.

    Args:
        samples: with `.key` and `.split`; any order.
        num_shards: over all splits; raised to the number of splits, lowered to the number of samples.
        generation: 0, or which extension of the cache these samples form.
        first_number: number of the first shard.
    """
    by_split: dict[str, list] = {}
    for sample in samples:
        by_split.setdefault(sample.split, []).append(sample)
    counts = {split: len(by_split[split]) for split in sorted(by_split)}
    shards: list[Shard] = []
    for split, num in _shares(counts, num_shards).items():
        ordered = sorted(by_split[split], key=lambda s: (hashlib.sha256(s.key.encode()).digest(), s.key))
        for n in range(num):
            run = ordered[len(ordered) * n // num : len(ordered) * (n + 1) // num]
            name = f"{split}-g{generation}-{n:05d}" if generation else f"{split}-{n:05d}"
            shards.append(Shard(first_number + len(shards), name, split, generation, tuple(run)))
    return shards


def _shares(counts: dict[str, int], num_shards: int) -> dict[str, int]:
    """Largest remainders, with at least one and at most `counts[split]` shards per split."""
    shares = dict.fromkeys(counts, 1)
    total = sum(counts.values())
    while sum(shares.values()) < min(num_shards, total):
        open_splits = [s for s in counts if shares[s] < counts[s]]
        # the split that is furthest below its due; ties go to the first name
        best = max(open_splits, key=lambda s: counts[s] * num_shards / total - shares[s])
        shares[best] += 1
    return shares


@contextlib.contextmanager
def plain_write_errors(folder: Path) -> Iterator[None]:
    """Turn what a file system refuses while the cache `folder` is written into one line for the user.

    Raises:
        InputError: for every OSError.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "no space is left" if full else f"writing failed ({reason(error)})"
        then = "free some space" if full else "make it writable"
        raise InputError(
            f"cache.dir: {folder}: {why}; finished shards are kept: {then} and run the same command again"
        ) from None


def tar_path(folder: Path, name: str) -> Path:
    """Where a shard lies."""
    return folder / SHARDS / f"{name}.tar"


def sidecar_path(folder: Path, name: str) -> Path:
    """Where a finished shard's sidecar lies."""
    return folder / SHARDS / f"{name}.json"


def make_layout(
    dataset: str, categories: Sequence[str], num_shards: int, shards: Sequence[Shard], model: Fields, machine: Fields
) -> dict:
    """What a cache folder will hold, decided before the first shard is written and compared on every later call.

    `generations` lists per generation its `num_shards` (as configured) and its shards' names with their number of
    samples; those that are added later (`masp.cache.layout`) also list the keys of their samples. `machine` is
    that of every feature in the folder.
    """
    return {
        "format_version": FORMAT_VERSION,
        "dataset": dataset,
        "categories": list(categories),
        "model": model,
        "machine": machine,
        "generations": [{"num_shards": num_shards, "shards": {s.name: len(s.samples) for s in shards}}],
    }


def shard_names(layout: dict) -> list[str]:
    """Names of all shards of all generations, in the order of their numbers."""
    # JSON objects are kept with sorted keys, so the order is said here: splits by name, then numbers
    return [
        name
        for generation in layout["generations"]
        for name in sorted(generation["shards"], key=lambda n: (split_of(n), len(n), n))
    ]


def split_of(name: str) -> str:
    """The split that a shard's name names."""
    match = NAME.fullmatch(name)
    if not match:
        raise DataError(f"{name!r} is no name of a shard")
    return match["split"]


def read_layout(folder: Path) -> dict | None:
    """The folder's layout, or None if there is none.

    Raises:
        DataError: damaged. InputError: written by another version of the format.
    """
    layout = read_sealed_object(folder / LAYOUT)
    if layout is not None and layout.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{folder / LAYOUT}: format_version is {layout.get('format_version')!r}, this version of masp reads "
            f"{FORMAT_VERSION}; extract into a new cache.dir"
        )
    return layout


def agree_on_layout(folder: Path, wanted: dict) -> dict:
    """Write the layout, or check that the folder's own is the wanted one but for the machine; returns the folder's.

    Raises:
        InputError: the folder belongs to another configuration or dataset; names the field and both values.
    """
    found = read_layout(folder)
    if found is None:
        with plain_write_errors(folder):
            if create_sealed(folder / LAYOUT, wanted):
                return wanted
        found = read_layout(folder)
        if found is None:
            raise DataError(f"{folder / LAYOUT} appeared and went; is another job deleting this folder?")
    check_layout(folder, found, wanted)
    return found


def check_layout(folder: Path, found: dict, wanted: dict) -> None:
    """Compare a folder's layout with the one that a call would give it, but for machine and shards.

    Raises:
        InputError: the folder belongs to another configuration or dataset; names the field and both values.
    """
    what, remedy = f"cache.dir: {folder}", "give the old value or a new cache.dir"
    compare(_settings(found), _settings(wanted), what, remedy)
    compare(found["model"], wanted["model"], what, remedy)


def _settings(layout: dict) -> Fields:
    return {
        "dataset.name": layout["dataset"],
        "dataset.categories": layout["categories"],
        "cache.num_shards": layout["generations"][0]["num_shards"],
    }


def shards_of(layout: dict | None, samples: Sequence[Any], num_shards: int) -> list[Shard]:
    """All shards of a cache, in the order of their numbers.

    Later generations hold the samples whose keys the layout lists for them; all others are of the first. Whether the
    samples are still the ones that the layout counted is for the caller to compare.

    Args:
        layout: of the folder; None if there is none yet.
        samples: the dataset's, with `.key` and `.split`.
        num_shards: `cache.num_shards`, for the first generation.
    """
    added = added_keys(layout)
    shards = assign([sample for sample in samples if sample.key not in added], num_shards)
    for number, generation in enumerate(layout["generations"][1:] if layout else (), 1):
        members = [sample for sample in samples if added.get(sample.key) == number]
        shards += assign(members, generation["num_shards"], number, len(shards))
    return shards


def added_keys(layout: dict | None) -> dict[str, int]:
    """Key -> generation, of all samples that were added after the first."""
    if layout is None:
        return {}
    return {key: number for number, g in enumerate(layout["generations"][1:], 1) for key in g["keys"]}


def make_generation(layout: dict, samples: Sequence[Any]) -> dict:
    """The layout's entry for a generation that is added: as many samples to a shard as the first one has.

    Its keys are listed, since a later dataset does not tell what was there when.

    Args:
        layout: of the cache.
        samples: the new ones, at least one.
    """
    number, first = len(layout["generations"]), layout["generations"][0]
    num_shards = max(1, round(len(samples) * len(first["shards"]) / sum(first["shards"].values())))
    shards = assign(samples, num_shards, number)
    return {
        "num_shards": num_shards,
        "shards": {shard.name: len(shard.samples) for shard in shards},
        "keys": sorted(sample.key for sample in samples),
    }
