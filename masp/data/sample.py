"""Samples, datasets, and how a layout lists them."""

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar, get_args

from masp.data.findings import DatasetRecord, Finding, Holdings, Ignored, holdings_of
from masp.taxonomy import Split

SPLITS: tuple[Split, ...] = get_args(Split)


class Sample:
    """One image of a dataset. Small, since each process holds all of them, which may be millions."""

    __slots__ = ("_aspects", "_path", "_texts", "category", "key", "split")

    key: str
    """Sample key, its name in caches and ledgers; see `masp.data.keys`."""

    split: str
    """`train`, `val` or `test`."""

    category: str
    """The emotion that it evokes."""

    def __init__(
        self, key: str, split: str, image_path: str | os.PathLike[str], category: str, answers: Mapping[str, str]
    ):
        """Describe an image; the arguments are its attributes."""
        self.key, self.split, self.category = key, split, category
        self._path = os.fspath(image_path)
        # equal strings and tuples of names are kept once: paths and dictionaries would take a kilobyte
        self._aspects = _equal(tuple(answers))
        self._texts = tuple(map(_equal, answers.values()))

    @property
    def image_path(self) -> Path:
        """Path of the image file, which has not been opened yet."""
        return Path(self._path)

    @property
    def answers(self) -> dict[str, str]:
        """Aspect -> answer text, of every aspect that is annotated, for example `{"brightness": "very low"}`."""
        return dict(zip(self._aspects, self._texts, strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sample) and self._fields == other._fields

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"Sample{self._fields}"

    @property
    def _fields(self) -> tuple[object, ...]:
        return self.key, self.split, self._path, self.category, self.answers


T = TypeVar("T")


@functools.lru_cache(maxsize=1 << 16)
def _equal(value: T) -> T:
    """The first of equal values, as far as it is remembered."""
    return value


@dataclass(frozen=True)
class Dataset:
    """A dataset that has been read: what there is, in an order that depends on nothing but the files' names."""

    name: str
    """`dataset.name` of the configuration."""

    root: Path
    """Directory of the dataset."""

    categories: tuple[str, ...]
    """All categories, in the order in which questions list them."""

    samples: tuple[Sample, ...]
    """All images of all splits, sorted by key."""

    ignored: tuple[str, ...] = ()
    """Files and directories that are not part of the dataset, relative to the root, sorted."""

    findings: tuple[Finding, ...] = ()
    """What the user should know about it."""

    @cached_property
    def holdings(self) -> Holdings:
        """How many images of what there are."""
        return holdings_of(self.samples)

    def record(self, digest: str = "", more: Iterable[Finding] = ()) -> DatasetRecord:
        """What `findings.json` says of it: the same wherever the dataset is.

        Args:
            digest: Digest of the dataset, if it is known.
            more: What is known beside `findings`.
        """
        start = f"{self.root}{os.sep}"
        findings = tuple(
            replace(f, text=f.text.replace(start, ""), examples=tuple(e.replace(start, "") for e in f.examples))
            for f in (*self.findings, *more)
        )
        return DatasetRecord(1, digest, self.holdings, findings)


@dataclass(frozen=True, slots=True)
class Entry:
    """One image as a layout lists it, before its key is made and its annotation read."""

    split: str
    """`train`, `val` or `test`."""

    relative_path: str
    """Its path as it enters the key, with `/` between directories."""

    image_path: Path
    """Path of the image file."""

    category: str
    """The emotion, normalized."""

    annotation_path: Path | None
    """Path that its annotation should have, if the layout gives one."""

    where: str
    """Where it is listed, for errors."""


@dataclass(frozen=True)
class Listing:
    """What a layout lists."""

    entries: list[Entry]
    """All images of all splits."""

    categories: tuple[str, ...]
    """The categories that the layout itself knows, in its order."""

    ignored: tuple[Ignored, ...] = ()
    """What is not part of the dataset."""

    findings: tuple[Finding, ...] = ()
    """What the layout itself shows."""

    lists_annotations: bool = False
    """Whether an annotation path in an entry was written down by the author, so that its file must exist."""
