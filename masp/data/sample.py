"""Samples, datasets, and how a layout lists them."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

SPLITS = ("train", "val", "test")


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
    """Files and directories that are not part of the dataset, relative to the root, so that a command can name them."""

    notes: tuple[str, ...] = ()
    """What else the user should know, one line each."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One image as a layout lists it, before its key is made and its annotation read.

    Holds what differs between images only once: there may be millions.
    """

    split: str
    """`train`, `val` or `test`."""

    relative_path: str
    """Its path as it enters the key, with `/` between directories."""

    directory: str
    """Directory that `relative_path` is relative to."""

    category: str
    """The emotion, normalized."""

    annotations: str | None
    """Directory of its annotation, if the layout gives one."""

    annotation: str | None = None
    """Path of its annotation in that directory; None where it is named after the image."""

    index_file: str | None = None
    """Index file that lists it, if one does."""

    row: int = 0
    """Number of its row there, from 1."""

    @property
    def image_path(self) -> str:
        """Path of the image file."""
        return os.path.join(self.directory, self.relative_path)

    @property
    def annotation_path(self) -> str | None:
        """Path that its annotation should have, if the layout gives one."""
        if self.annotations is None:
            return None
        name = self.annotation or f"{os.path.splitext(os.path.basename(self.relative_path))[0]}.json"
        return os.path.join(self.annotations, name)

    @property
    def where(self) -> str:
        """Where it is listed, for errors."""
        return f"{self.index_file} row {self.row}" if self.index_file else self.image_path


@dataclass(frozen=True)
class Listing:
    """What a layout lists."""

    entries: list[Entry]
    """All images of all splits."""

    categories: tuple[str, ...]
    """The categories that the layout itself knows, in its order."""

    ignored: tuple[str, ...] = ()
    """See `Dataset.ignored`."""

    lists_annotations: bool = False
    """Whether an annotation path in an entry was written down by the author, so that its file must exist."""


def repetitions(entries: Sequence[Entry], path_of: Callable[[Entry], str | None]) -> list[tuple[Entry, Entry]]:
    """Entries that have the same path as an earlier one.

    A dictionary of millions of paths would take a gigabyte, so hashes are compared first.

    Args:
        entries: Entries.
        path_of: The path that is compared, None for an entry that has none.

    Returns:
        Pairs of the first entry with a path and a later one, in the order of the later ones.
    """
    hashes = np.fromiter((hash(path_of(entry)) for entry in entries), dtype=np.int64, count=len(entries))
    values, counts = np.unique(hashes, return_counts=True)
    first: dict[str, Entry] = {}
    found = []
    for number in np.flatnonzero(np.isin(hashes, values[counts > 1])).tolist():
        entry = entries[number]
        path = path_of(entry)
        if path is not None and first.setdefault(path, entry) is not entry:
            found.append((first[path], entry))
    return found
