"""Which shards a cache has and which samples each holds: fixed by the dataset and `num_shards` alone.

A cache begins with one generation of shards; images that are added later form generations of their own.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from masp.cache.fingerprint import FORMAT_VERSION, Fields, Machine, ModelPart, compare, fingerprint_digest
from masp.config.aspects import Aspects
from masp.data.answers import AnswerForm, answer_form
from masp.data.sample import Sample, Samples
from masp.errors import DataError, InputError
from masp.files.fields import OMIT_NONE, DatasetOf, Positive
from masp.files.sealed import create_sealed, read_sealed, read_sealed_object, sealed
from masp.files.text import reason

LAYOUT = "layout.json"
MANIFEST = "manifest.json"
INDEX = "index.h5"
QUARANTINE = "quarantine.jsonl"
SHARDS = "shards"

LOCK = ".lock"
"""Locked in ranges: byte `k` by whoever writes shard `k`; `FINISHING` and all below it by whoever merges the
sidecars."""
FINISHING = 1 << 40

NAME = re.compile(r"(?P<split>[A-Za-z0-9_-]+?)(?:-g(?P<generation>[1-9]\d*))?-(?P<number>\d{5,})", re.ASCII)
"""A shard's name: `train-00000`, or `train-g1-00000` of the images that were added first."""


@dataclass(frozen=True)
class Generation:
    """Shards that were decided on together."""

    num_shards: Positive
    """As configured for the first generation, as computed for later ones."""
    shards: dict[str, Positive]
    """Name of each shard -> its number of samples."""
    keys: tuple[str, ...] | None = None
    """Keys of its samples, sorted; None for the first generation, which has all that no other lists."""


@dataclass(frozen=True)
class Layout:
    """What a cache will hold, decided before the first shard is written and compared on every later call."""

    format_version: int
    dataset: DatasetOf
    """`dataset.name` of the configuration."""
    categories: tuple[str, ...]
    model: ModelPart
    """Model part of the fingerprint."""
    machine: Machine
    """Machine part, of every feature in the cache."""
    generations: tuple[Generation, ...]
    answer_forms: Annotated[dict[str, AnswerForm] | None, OMIT_NONE] = None
    """Aspect -> form of its answers, of all aspects that were defined when the cache was begun: these are read from
    annotations. None in a cache from before that was recorded."""

    def __post_init__(self) -> None:
        if not self.generations or self.generations[0].keys is not None:
            raise ValueError("must have a first generation, which lists no keys")
        if any(generation.keys is None for generation in self.generations[1:]):
            raise ValueError("must list the keys of each generation but the first")
        for number, generation in enumerate(self.generations):
            names = [NAME.fullmatch(name) for name in generation.shards]
            if not names or any(name is None or int(name["generation"] or 0) != number for name in names):
                example = f"train-g{number}-00000" if number else "train-00000"
                raise ValueError(f"must have shards with names such as {example} in generation {number}")

    @property
    def shard_names(self) -> list[str]:
        """Names of all shards of all generations, in the order of their numbers."""
        # JSON objects are kept with sorted keys, so the order is set here: splits by name, then numbers
        return [
            name
            for generation in self.generations
            for name in sorted(generation.shards, key=lambda n: (split_of(n), len(n), n))
        ]

    @functools.cached_property
    def model_digest(self) -> str:
        """Digest of the model part, which every sidecar has."""
        return fingerprint_digest(self.model)

    @property
    def num_samples(self) -> dict[str, int]:
        """Name of each shard -> its number of samples, quarantined ones too."""
        return {name: count for generation in self.generations for name, count in generation.shards.items()}

    @property
    def added_keys(self) -> dict[str, int]:
        """Key -> generation, of all samples that were added after the first."""
        return {key: number for number, g in enumerate(self.generations) for key in g.keys or ()}


@dataclass(frozen=True)
class Shard:
    """One tar of the cache."""

    number: int
    """Its place among all shards of all generations; the index names shards by it."""
    name: str
    split: str
    generation: int
    samples: Samples
    """Its samples, in the order of the tar."""


def assign(samples: Sequence[Sample], num_shards: int, generation: int = 0, first_number: int = 0) -> list[Shard]:
    """Divide samples over shards.

    A split gets shards in proportion to its samples, at least one and never an empty one. Within a split, samples
    are in the order of a hash of their keys, which mixes the categories (file names sort by category), and are cut
    into equal runs.

    Args:
        samples: Samples in any order; their `key` and `split` matter.
        num_shards: Number of shards over all splits; raised to the number of splits, lowered to the number of samples.
        generation: 0, or which extension of the cache these samples form.
        first_number: Number of the first shard.
    """
    found = Samples.of(samples)
    by_split = {split: found.in_split(split) for split in found.table.splits}
    counts = {split: len(members) for split, members in by_split.items() if len(members)}
    shards: list[Shard] = []
    for split, num in _shares(counts, num_shards).items():
        ordered = _mixed(by_split[split])
        for n in range(num):
            run = ordered[len(ordered) * n // num : len(ordered) * (n + 1) // num]
            name = f"{split}-g{generation}-{n:05d}" if generation else f"{split}-{n:05d}"
            shards.append(Shard(first_number + len(shards), name, split, generation, run))
    return shards


def _mixed(samples: Samples) -> Samples:
    """Samples in the order of the SHA-256 of their keys.

    Where images are read in blocks, such as the rows of a row group, the blocks are in the order of the hashes of their
    names: in that of the keys alone, every shard would read all blocks.
    """
    hashes = _hashes(samples.keys)
    words = hashes.T[::-1]
    blocks = samples.table.blocks
    if blocks is None:
        order = np.argsort(hashes[:, 0], kind="stable")
        first = hashes[order, 0]
        return samples[np.lexsort(words) if (first[1:] == first[:-1]).any() else order]
    rank = np.empty(len(blocks.names), dtype=np.int64)
    rank[np.lexsort(_hashes(blocks.names).T[::-1])] = np.arange(len(blocks.names))
    return samples[np.lexsort((*words, rank[blocks.numbers[samples.rows]]))]


def _hashes(texts: Sequence[str]) -> np.ndarray:
    """SHA-256 of each text as numbers `[N, 4]`."""
    digests = b"".join([hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in texts])
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64).reshape(-1, 4)


def _shares(counts: Mapping[str, int], num_shards: int) -> dict[str, int]:
    """Largest remainders, with at least one and at most `counts[split]` shards per split."""
    shares = dict.fromkeys(counts, 1)
    total = sum(counts.values())
    while sum(shares.values()) < min(num_shards, total):
        open_splits = [s for s in counts if shares[s] < counts[s]]
        # the split that is furthest below its due; ties go to the first name
        best = max(open_splits, key=lambda s: counts[s] * num_shards / total - shares[s])
        shares[best] += 1
    return shares


def tar_path(directory: Path, name: str) -> Path:
    """Path of a shard."""
    return directory / SHARDS / f"{name}.tar"


def sidecar_path(directory: Path, name: str) -> Path:
    """Path of a finished shard's sidecar."""
    return directory / SHARDS / f"{name}.json"


def make_layout(
    dataset: str,
    categories: Sequence[str],
    num_shards: int,
    shards: Sequence[Shard],
    model: Fields,
    machine: Machine,
    aspects: Aspects | None = None,
) -> Layout:
    """The layout of a new cache, which has one generation of shards."""
    first = Generation(num_shards, {shard.name: len(shard.samples) for shard in shards})
    forms = None if aspects is None else answer_forms(aspects)
    return Layout(FORMAT_VERSION, dataset, tuple(categories), model, machine, (first,), forms)


def answer_forms(aspects: Aspects) -> dict[str, AnswerForm]:
    """Aspect -> form of its answers, by name."""
    return {name: answer_form(aspects[name]) for name in sorted(aspects)}


def cached_aspects(directory: Path, forms: Mapping[str, AnswerForm] | None, aspects: Aspects) -> Aspects:
    """The aspects whose answers a cache holds, whatever has been defined since.

    Args:
        directory: Directory of the cache.
        forms: What it records of the aspects that were defined when it was begun; None if it does not.
        aspects: Aspects that are defined now.

    Raises:
        InputError: One of them is no longer defined, or its annotations would now become other answers.
    """
    if forms is None:
        return aspects
    now = {name: str(answer_form(aspects[name])) if name in aspects else "not defined" for name in forms}
    remedy = "define the aspect as before (aspect_definitions), or extract into a new cache.dir"
    compare({name: str(form) for name, form in forms.items()}, now, f"cache.dir: {directory}", remedy)
    return {name: aspect for name, aspect in aspects.items() if name in forms}


def split_of(name: str) -> str:
    """The split that a shard's name begins with.

    Raises:
        DataError: Not a valid name of a shard.
    """
    match = NAME.fullmatch(name)
    if not match:
        raise DataError(f"{name!r} is not a valid name of a shard")
    return match["split"]


def read_layout(directory: Path) -> Layout | None:
    """The layout of a cache, or None if there is none.

    Raises:
        DataError: Damaged.
        InputError: Written by another version of the format.
    """
    path = directory / LAYOUT
    try:
        layout = read_sealed(Layout, path)
    except DataError:
        refuse_other_versions(path)
        raise
    if layout is not None:
        check_version(path, layout.format_version)
    return layout


def refuse_other_versions(path: Path) -> None:
    """Where a sealed file does not have the form of this version: refuse it by its version, if it has another one.

    Raises:
        InputError: Written by another version of the format.
        DataError: Damaged.
    """
    version = (read_sealed_object(path) or {}).get("format_version")
    if type(version) is int:
        check_version(path, version)


def check_version(path: Path, version: int) -> None:
    """Refuse a file of another version of the format.

    Raises:
        InputError: Names the file and both versions.
    """
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path}: format_version is {version}, this version of masp reads {FORMAT_VERSION}; extract into a new "
            "cache.dir"
        )


def layout_bytes(layout: Layout) -> bytes:
    """A layout as its file holds it."""
    return sealed(layout, omit_none=True)


def agree_on_layout(directory: Path, wanted: Layout) -> Layout:
    """Write the layout, or check that the one found is the wanted one but for the machine; returns the cache's.

    Raises:
        InputError: The cache belongs to another configuration or dataset; names the field and both values.
    """
    found = read_layout(directory)
    if found is None:
        with plain_write_errors(directory):
            if create_sealed(directory / LAYOUT, wanted, omit_none=True):
                return wanted
        found = read_layout(directory)
        if found is None:
            raise DataError(f"{directory / LAYOUT} appeared and went; is another job deleting this directory?")
    check_layout(
        directory,
        found,
        dataset=wanted.dataset,
        categories=wanted.categories,
        num_shards=wanted.generations[0].num_shards,
        model=wanted.model,
    )
    if None not in (found.answer_forms, wanted.answer_forms) and found.answer_forms != wanted.answer_forms:
        old, new = ({name: str(form) for name, form in (each.answer_forms or {}).items()} for each in (found, wanted))
        remedy = "define the aspects as before (aspect_definitions), or extract into a new cache.dir"
        compare(old, new, f"cache.dir: {directory}", remedy)
    return found


def check_layout(
    directory: Path, found: Layout, *, dataset: str, categories: Sequence[str], num_shards: int, model: Fields
) -> None:
    """Compare a cache's layout with what a call would give it, but for machine and shards.

    Raises:
        InputError: The cache belongs to another configuration or dataset; names the field and both values.
    """
    what, remedy = f"cache.dir: {directory}", "give the old value or a new cache.dir"
    names = ("dataset.name", "dataset.categories", "cache.num_shards")
    old = (found.dataset, found.categories, found.generations[0].num_shards)
    new = (dataset, tuple(categories), num_shards)
    compare(dict(zip(names, old, strict=True)), dict(zip(names, new, strict=True)), what, remedy)
    compare(found.model, model, what, remedy)


def shards_of(layout: Layout | None, samples: Sequence[Sample], num_shards: int) -> list[Shard]:
    """All shards of a cache, in the order of their numbers.

    Later generations hold the samples whose keys the layout lists for them; all others are of the first. Whether the
    samples are still the ones that the layout counted is for the caller to compare.

    Args:
        layout: Layout of the cache; None if there is none yet.
        samples: Samples of the dataset.
        num_shards: `cache.num_shards`, for the first generation.
    """
    found = Samples.of(samples)
    if layout is None or len(layout.generations) == 1:
        return assign(found, num_shards)
    added = layout.added_keys
    numbers = np.array([added.get(key, 0) for key in found.keys], dtype=np.int32)
    shards = assign(found[numbers == 0], num_shards)
    for number, generation in enumerate(layout.generations[1:], 1):
        shards += assign(found[numbers == number], generation.num_shards, number, len(shards))
    return shards


def make_generation(layout: Layout, samples: Sequence[Sample]) -> Generation:
    """The generation that is added for new samples: as many samples to a shard as the first one has.

    Its keys are listed, since a later dataset does not tell what was there when.

    Args:
        layout: Layout of the cache.
        samples: The new ones, at least one.
    """
    number, first = len(layout.generations), layout.generations[0]
    num_shards = max(1, round(len(samples) * len(first.shards) / sum(first.shards.values())))
    shards = assign(samples, num_shards, number)
    return Generation(
        num_shards,
        {shard.name: len(shard.samples) for shard in shards},
        tuple(sorted(sample.key for sample in samples)),
    )


@contextlib.contextmanager
def plain_write_errors(directory: Path, key: str = "cache.dir") -> Iterator[None]:
    """Turn what a file system refuses while a cache is written into one line for the user.

    Args:
        directory: Directory of the cache.
        key: Setting or argument that it comes from.

    Raises:
        InputError: For every OSError.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "no space is left" if full else f"writing failed ({reason(error)})"
        then = "free some space" if full else "make it writable"
        raise InputError(
            f"{key}: {directory}: {why}; finished shards are kept: {then} and run the same command again"
        ) from None
