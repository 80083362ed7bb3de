"""Which images lack which aspects, and what the dataset's own annotations say of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from masp.cache.annotations.parts import wanted_digest
from masp.cache.reader import Cache
from masp.config import Config
from masp.config.aspects import Aspect, load_aspects
from masp.data.answer_table import AnswerTable
from masp.data.datasets import dataset_of
from masp.data.lacking import Lacking
from masp.data.sample import Samples
from masp.errors import InputError
from masp.files.sealed import digest_of
from masp.files.text import shown

LOG = logging.getLogger(__name__)


def aspects_to_annotate(config: Config) -> list[Aspect]:
    """The aspects that this configuration annotates, in the order of their definitions.

    Raises:
        InputError: One is defined as never annotated.
    """
    defined, listed = load_aspects(config.aspect_definitions), config.annotate.aspects
    for name in listed or ():
        if defined[name].annotate == "never":
            raise InputError(
                f"annotate.aspects = {shown(listed)}: {config.aspect_definitions} says annotate: never for {name}; "
                "leave it out"
            )
    names = config.aspects if listed is None else listed
    return [aspect for name, aspect in defined.items() if name in names and aspect.annotate != "never"]


def open_samples(config: Config) -> Samples | None:
    """The images of the dataset with its own annotations; None, with a warning, where it cannot be read any more."""
    try:
        return Samples.of(dataset_of(config).samples)
    except InputError as error:
        LOG.warning("annotations that the dataset may have beside those in the cache are not used: %s", error)
        return None


@dataclass(frozen=True)
class Lack:
    """The images of one shard that lack an aspect in the cache."""

    rows: np.ndarray
    """Rows of the index, ascending."""
    given: tuple[str | None, ...]
    """The answers of people that the dataset has and the cache has not; None where the image is to be asked about."""
    digest: str
    """See `wanted_digest`."""

    @property
    def asked(self) -> tuple[int, ...]:
        """Rows of the images to ask about."""
        return tuple(row for row, text in zip(self.rows.tolist(), self.given, strict=True) if text is None)


def lacks_of(
    config: Config, cache: Cache, own: AnswerTable, samples: Samples | None, aspects: Sequence[Aspect]
) -> dict[str, list[Lack]]:
    """Aspect -> per shard of the cache the images that lack it and get an answer; a pure function of the data.

    Args:
        config: Run configuration; `aspects` and `annotate.aspects` matter.
        cache: The cache.
        own: The annotations in it, in the order of its index.
        samples: The dataset with its own annotations, where aspects were defined after extraction.
        aspects: Those to annotate.
    """
    keys, count = list(cache.index.keys), len(cache)
    given = _given(cache, own, keys, samples)
    names = sorted({*config.aspects, *(aspect.name for aspect in aspects)})
    has = np.zeros((count, len(names)), dtype=bool)
    for number, name in enumerate(names):
        if name in own.columns:
            has[:, number] = own.columns[name].numbers >= 0
        has[list(given.get(name, ())), number] = True
    is_train = np.zeros(count, dtype=bool)
    is_train[cache.rows("train")] = True
    first, kind_of = _kinds([is_train, *has.T])
    annotated = [{name for name, mark in zip(names, has[row].tolist(), strict=True) if mark} for row in first.tolist()]
    lacking = Lacking.of(config, zip(np.where(is_train[first], "train", "").tolist(), annotated, strict=True))
    bounds = np.searchsorted(cache.index.shard, np.arange(len(cache.manifest.shards) + 1))
    lacks = {}
    for aspect in aspects:
        told = given.get(aspect.name, {})
        wanted = np.array([lacking.lacks(aspect.name, found) for found in annotated], dtype=bool)[kind_of]
        wanted[list(told)] = True
        lacks[aspect.name] = [
            _lack(np.flatnonzero(wanted[start:stop]) + start, told, keys, shard.sha256)
            for shard, start, stop in zip(cache.manifest.shards, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        ]
    return lacks


def _kinds(columns: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of rows of marks, the first of each kind, and the kind of each row."""
    codes = np.zeros(len(columns[0]), dtype=np.int64)
    for number, column in enumerate(columns, start=1):
        codes = 2 * codes + column
        if number % 30 == 0:  # before the codes grow too large
            codes = np.unique(codes, return_inverse=True)[1]
    _, first, kind_of = np.unique(codes, return_index=True, return_inverse=True)
    return first, kind_of


def _lack(rows: np.ndarray, told: Mapping[int, str], keys: Sequence[str], tar: str) -> Lack:
    given = tuple(told.get(row) for row in rows.tolist())
    return Lack(rows, given, wanted_digest(tar, [keys[row] for row in rows.tolist()], given))


def _given(cache: Cache, own: AnswerTable, keys: Sequence[str], samples: Samples | None) -> dict[str, dict[int, str]]:
    """Aspect -> row -> answer, of the answers that the dataset has to aspects that no image in the cache has."""
    if samples is None:
        return {}
    row_of = {key: row for row, key in enumerate(keys)}
    found: dict[str, dict[int, str]] = {}
    for key, number in zip(samples.keys, samples.table.label[samples.rows].tolist(), strict=True):
        row = row_of.get(key)
        for aspect, text in samples.table.labels[number].items() if row is not None else ():
            if aspect not in own.columns:
                found.setdefault(aspect, {})[row] = text  # type: ignore[index]
    return found


def whole_digest(lacks: Sequence[Lack]) -> str:
    """Digest over what every shard wants."""
    return digest_of([lack.digest for lack in lacks])
