"""Samples, datasets, and how a layout lists them."""

from __future__ import annotations

import bisect
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, get_args, overload

import numpy as np

from masp.data.findings import DatasetRecord, Finding, Holdings, Ignored, holdings_of
from masp.data.image_files.stored import Location, StoredImage
from masp.data.keys import path_of
from masp.taxonomy import Split

SPLITS: tuple[Split, ...] = get_args(Split)
UNDIVIDED = "undivided"
"""In keys of images that have no split yet."""
NO_SPLIT = 255
"""Where numbers mean splits: of an image that has none."""


class Sample:
    """One image of a dataset."""

    __slots__ = ("_aspects", "_texts", "category", "distribution", "image", "key", "split")

    key: str
    """Sample key, its name in caches and ledgers; see `masp.data.keys`."""

    split: str
    """`train`, `val` or `test`."""

    category: str
    """The emotion that it evokes, or another target of a run; empty where that has no label for it."""

    image: Location
    """Where the image is: the path of its file or its place in a larger one, which has not been opened yet."""

    distribution: tuple[float, ...] | None
    """See `Label.distribution`."""

    def __init__(
        self,
        key: str,
        split: str,
        image: Location,
        category: str,
        answers: Mapping[str, str],
        distribution: tuple[float, ...] | None = None,
    ):
        """Describe an image; the arguments are its attributes."""
        self.key, self.split, self.category, self.distribution = key, split, category, distribution
        self.image = image if isinstance(image, StoredImage) else os.fspath(image)
        self._aspects: tuple[str, ...] | None = tuple(answers)
        self._texts = tuple(answers.values())

    @property
    def answers(self) -> dict[str, str]:
        """Aspect -> answer text, of every aspect that is annotated, for example `{"brightness": "very low"}`."""
        assert self._aspects is not None, f"the annotation of {self.key} has not been read"
        return dict(zip(self._aspects, self._texts, strict=True))

    def annotated_with(self, answers: Mapping[str, str]) -> Sample:
        """The same image with other answers."""
        return Sample(self.key, self.split, self.image, self.category, answers, self.distribution)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sample) and self._fields == other._fields

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"Sample{self._fields}"

    @property
    def _fields(self) -> tuple[object, ...]:
        return self.key, self.split, self.image, self.category, self.answers, self.distribution


@dataclass(frozen=True)
class Label:
    """What a dataset says of an image; many images share one."""

    category: str
    aspects: tuple[str, ...] | None
    """Annotated aspects; None if the annotation has not been read."""
    texts: tuple[str, ...]
    """Their answers."""
    distribution: tuple[float, ...] | None = None
    """The probability of each of the dataset's categories, in their order, from votes of raters or the like; `category`
    is the one with the largest. None where the dataset has only labels."""

    def items(self) -> Iterator[tuple[str, str]]:
        """Annotated aspects with their answers; none if the annotation has not been read."""
        return zip(self.aspects or (), self.texts, strict=True)


class Places(Protocol):
    """Where images inside larger files are, in columns."""

    def __getitem__(self, row: int, /) -> StoredImage: ...

    def part(self, rows: np.ndarray) -> Places:
        """Those of some rows."""
        ...


@dataclass(frozen=True)
class Blocks:
    """Which images a reader can only read together, such as the rows of a row group."""

    names: list[str]
    """Names of the blocks, which depend on nothing but the files that hold them."""

    numbers: np.ndarray
    """`[N]` int32: the block of each image, into `names`."""

    def part(self, rows: np.ndarray) -> Blocks:
        """Those of some rows."""
        return Blocks(self.names, self.numbers[rows])


@dataclass(frozen=True)
class Table:
    """Images in columns, sorted by key: as objects, millions of them would take gigabytes."""

    keys: list[str]
    split: np.ndarray
    """`[N]` uint8, into `splits`."""
    label: np.ndarray
    """`[N]` int32, into `labels`; changes when annotations are read."""
    labels: list[Label]
    directories: dict[str, str]
    """Split -> directory that the paths in its keys start from, with a slash at its end."""
    moved: Mapping[str, Location]
    """Key -> where the image is, where the key does not give the path of its file."""
    splits: tuple[str, ...] = tuple(sorted(SPLITS))
    places: Places | None = None
    """Where images are, if inside larger files."""
    blocks: Blocks | None = None
    """Which are read together, if any."""

    def image(self, row: int) -> Location:
        """Where an image is."""
        if self.places is not None:
            return self.places[row]
        key = self.keys[row]
        return self.moved.get(key) or self.directories[self.splits[self.split[row]]] + path_of(key)

    def images(self, rows: np.ndarray) -> list[Location]:
        """Where some images are; takes less time than one after another."""
        if self.moved or self.places is not None:
            return [self.image(row) for row in rows.tolist()]
        bases = [self.directories.get(split, "") for split in self.splits]
        places = zip(self.split[rows].tolist(), rows.tolist(), strict=True)
        return [bases[split] + path_of(self.keys[row]) for split, row in places]

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle labels as tuples: thousands of parts are sent to other processes, each with labels of its own."""
        labels = [(label.category, label.aspects, label.texts, label.distribution) for label in self.labels]
        return _unpickled, ({**vars(self), "labels": labels},)

    def part(self, rows: np.ndarray) -> Table:
        """A copy of some rows."""
        used, label = np.unique(self.label[rows], return_inverse=True)
        keys = [self.keys[row] for row in rows.tolist()]
        moved = {key: self.moved[key] for key in keys if key in self.moved} if self.moved else {}
        labels = [self.labels[number] for number in used.tolist()]
        places = self.places and self.places.part(rows)
        blocks = self.blocks and self.blocks.part(rows)
        return Table(
            keys, self.split[rows], label.astype(np.int32), labels, self.directories, moved, self.splits, places, blocks
        )


def _unpickled(columns: dict[str, Any]) -> Table:
    return Table(**{**columns, "labels": [Label(*each) for each in columns["labels"]]})


class Samples(Sequence[Sample]):
    """The images of a dataset or some of them: rows of a table, of which a `Sample` is made when it is asked for."""

    __slots__ = ("rows", "table")

    def __init__(self, table: Table, rows: np.ndarray):
        """Rows `[N]` of a table, in any order."""
        self.table, self.rows = table, rows

    @staticmethod
    def of(samples: Iterable[Sample]) -> Samples:
        """The same samples, in the same order."""
        if isinstance(samples, Samples):
            return samples
        found = list(samples)
        numbers: dict[Label, int] = {}
        labels = [Label(s.category, s._aspects, s._texts, s.distribution) for s in found]
        label = [numbers.setdefault(each, len(numbers)) for each in labels]
        splits = tuple(sorted({sample.split for sample in found}))
        table = Table(
            [sample.key for sample in found],
            np.array([splits.index(sample.split) for sample in found], dtype=np.uint8),
            np.array(label, dtype=np.int32),
            list(numbers),
            {},
            {sample.key: sample.image for sample in found},
            splits,
        )
        return Samples(table, np.arange(len(found)))

    @staticmethod
    def join(parts: Sequence[Samples]) -> Samples:
        """Samples of one table, at least one part, one after another."""
        return Samples(parts[0].table, np.concatenate([part.rows for part in parts]))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice | np.ndarray) -> Samples: ...
    def __getitem__(self, place: int | slice | np.ndarray) -> Sample | Samples:
        """A sample; with a slice, a mask or an array of places, some of them."""
        if isinstance(place, (slice, np.ndarray)):
            return Samples(self.table, self.rows[place])
        return self._sample(int(self.rows[place]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (Samples, tuple, list)):
            return NotImplemented
        return len(self) == len(other) and all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Sample]:
        return map(self._sample, self.rows.tolist())

    def _sample(self, row: int) -> Sample:
        table = self.table
        label = table.labels[table.label[row]]
        split = table.splits[table.split[row]]
        sample = Sample(table.keys[row], split, table.image(row), label.category, {}, label.distribution)
        sample._aspects, sample._texts = label.aspects, label.texts
        return sample

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle these rows only."""
        return Samples, (self.table.part(self.rows), np.arange(len(self.rows)))

    @property
    def keys(self) -> list[str]:
        """Their keys."""
        keys = self.table.keys
        return [keys[row] for row in self.rows.tolist()]

    @property
    def images(self) -> Images:
        """Where their images are."""
        return Images(self)

    @property
    def split(self) -> np.ndarray:
        """`[N]` uint8: the split of each, into `table.splits`."""
        return self.table.split[self.rows]

    def is_in(self, split: str) -> np.ndarray:
        """Which are in a split, bool `[N]`."""
        number = self.table.splits.index(split) if split in self.table.splits else -1
        return self.split == number

    def in_split(self, split: str) -> Samples:
        """Those of one split."""
        return self[self.is_in(split)]

    def kinds(self) -> dict[tuple[str, Label], int]:
        """How many there are of each split and label, in the order of the splits."""
        num_labels = len(self.table.labels)
        codes = self.split.astype(np.int64) * num_labels + self.table.label[self.rows]
        return {
            (self.table.splits[code // num_labels], self.table.labels[code % num_labels]): count
            for code, count in zip(*(found.tolist() for found in np.unique(codes, return_counts=True)), strict=True)
        }


class Images(Sequence[Location]):
    """Where the images of some samples are, each made when it is asked for."""

    def __init__(self, samples: Samples):
        """Those of these samples, in their order."""
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, place: int) -> Location: ...
    @overload
    def __getitem__(self, place: slice) -> list[Location]: ...
    def __getitem__(self, place: int | slice) -> Location | list[Location]:
        table, rows = self._samples.table, self._samples.rows
        if isinstance(place, slice):
            return table.images(rows[place])
        return table.image(int(rows[place]))


def count_kinds(samples: Iterable[Sample]) -> Counter[tuple[str, str, tuple[str, ...]]]:
    """How many samples there are of each split, category and annotated aspects."""
    counts: Counter[tuple[str, str, tuple[str, ...]]] = Counter()
    for (split, label), count in Samples.of(samples).kinds().items():
        counts[split, label.category, label.aspects or ()] += count
    return counts


def count_answers(samples: Iterable[Sample]) -> Counter[tuple[str, str]]:
    """How many samples there are with each aspect and answer."""
    counts: Counter[tuple[str, str]] = Counter()
    for (_, label), count in Samples.of(samples).kinds().items():
        for each in label.items():
            counts[each] += count
    return counts


@dataclass(frozen=True)
class Dataset:
    """A dataset that has been read: what there is, in an order that depends on nothing but the files' names."""

    name: str
    """`dataset.name` of the configuration."""

    root: Path
    """Directory of the dataset."""

    categories: tuple[str, ...]
    """All categories, in the order in which questions list them."""

    samples: Samples
    """All images of all splits, sorted by key."""

    ignored: tuple[str, ...] = ()
    """Files and directories that are not part of the dataset, relative to the root, sorted."""

    findings: tuple[Finding, ...] = ()
    """What the user should know about it."""

    @cached_property
    def holdings(self) -> Holdings:
        """How many images of what there are."""
        return holdings_of(count_kinds(self.samples))

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


def split_name(name: str) -> tuple[str, str]:
    """Stem and extension of a file's name, as `os.path.splitext` has them, in a quarter of the time."""
    stem, dot, suffix = name.rpartition(".")
    if not stem or stem[0] == ".":  # a dot in front starts no extension
        return os.path.splitext(name)
    return stem, dot + suffix


def split_names(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Stems and extensions of files in one directory, as `split_name` has them; of many, in a third of the time."""
    text = "\n".join(names) + "\n"
    suffix = split_name(names[0])[1] if names else ""
    is_same = suffix and text.count(f"{suffix}\n") == text.count("\n") == len(names)
    if is_same and not text.startswith(".") and "\n." not in text:
        return text[:-1].removesuffix(suffix).replace(f"{suffix}\n", "\n").split("\n"), [suffix] * len(names)
    parts = [split_name(name) for name in names]
    return [stem for stem, _ in parts], [suffix for _, suffix in parts]


def directory_prefix(root: Path) -> str:
    """What to put before a relative path to get one below a directory, as `str(root / path)` does."""
    return str(root / "_")[:-1]


def annotation_path(key: str, annotation: str | None) -> str | None:
    """Path of an image's annotation relative to the root, from what `Entries` holds: its key and its annotation."""
    if annotation is None or not annotation.endswith("/"):
        return annotation
    return f"{annotation}{split_name(path_of(key).rpartition('/')[2])[0]}.json"


@dataclass
class Entries:
    """The images that a layout lists, in columns and in its order, before any annotation is read."""

    root: str
    """Directory of the dataset with a slash at its end, or nothing for the current one."""

    bases: dict[str, str]
    """Split -> directory that the paths in its keys start from: empty, or relative to the root with a slash."""

    keys: list[str] = field(default_factory=list)
    """Sample keys."""

    categories: list[str] = field(default_factory=list)
    """Labels of the dataset, normalized."""

    annotations: list[str | None] = field(default_factory=list)
    """Path that the annotation should have, relative to the root; None if the layout gives none. Of most image folders
    only the directory with a slash at its end, for a file with the stem of the image."""

    moved: dict[int, str] = field(default_factory=dict)
    """Number of an entry -> path of its image relative to the root, where it is another than the key says."""

    first_rows: dict[str, int] = field(default_factory=dict)
    """Split -> number of its first entry, if it is listed in an index file, one entry in a row."""

    left_out: dict[str, list[int]] = field(default_factory=dict)
    """Split -> for each row of its index file that is left out, how many entries there were before."""

    def __len__(self) -> int:
        return len(self.keys)

    def split(self, number: int) -> str:
        """Split of an entry."""
        return self.keys[number].partition("/")[0]

    def relative_path(self, number: int) -> str:
        """Path of an entry as it entered the key."""
        return path_of(self.keys[number])

    def image_path(self, number: int) -> str:
        """Path of the image file of an entry."""
        moved = self.moved.get(number)
        return self.root + (moved or self.bases[self.split(number)] + self.relative_path(number))

    def annotation_path(self, number: int) -> str | None:
        """Path that the annotation of an entry should have, relative to the root."""
        return annotation_path(self.keys[number], self.annotations[number])

    def where(self, number: int) -> str:
        """Where an entry is listed, for errors."""
        if not self.first_rows:
            return self.image_path(number)
        split, first = max((e for e in self.first_rows.items() if e[1] <= number), key=lambda e: e[1])
        before = bisect.bisect_right(self.left_out.get(split, []), number)
        return f"{self.root}{split}.json row {number - first + before + 1}"


@dataclass(frozen=True)
class Listing:
    """What a layout lists."""

    entries: Entries
    """All images of all splits."""

    categories: tuple[str, ...]
    """The categories that the layout itself knows, in its order."""

    ignored: tuple[Ignored, ...] = ()
    """What is not part of the dataset."""

    findings: tuple[Finding, ...] = ()
    """What the layout itself shows."""

    lists_annotations: bool = False
    """Whether an annotation path in an entry was written down by the author, so that its file must exist."""
