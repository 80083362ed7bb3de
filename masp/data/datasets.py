"""Reading a dataset: which images there are, and their split, category and aspect answers."""

from __future__ import annotations

import bisect
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from masp.config.schema import DatasetConfig
from masp.data.annotations import read_annotations
from masp.data.findings import (
    NO_ANNOTATIONS,
    Finding,
    coverage_findings,
    examples,
    holdings_of,
    ignored_findings,
    key_findings,
)
from masp.data.folder_layout import meant_by_name, read_folders
from masp.data.index_layout import read_index_files
from masp.data.sample import SPLITS, Dataset, Entries, Label, Listing, Sample, Samples, Table, count_kinds
from masp.errors import DataError, InputError
from masp.files.regular import exists, is_directory, is_file
from masp.files.text import reason
from masp.taxonomy import CATEGORY_SETS, normalize_category

__all__ = ["SPLITS", "Dataset", "ListedDataset", "Sample", "list_dataset", "read_dataset"]


def read_dataset(config: DatasetConfig) -> Dataset:
    """Read a dataset in either of its two layouts, with all its annotations; see `list_dataset`.

    Raises:
        InputError: The root is not a dataset, or something in it is not as its layout requires; the message names it.
        DataError: An annotation is damaged or missing where others exist.
    """
    return list_dataset(config).whole()


def list_dataset(config: DatasetConfig) -> ListedDataset:
    """List a dataset in either of its two layouts, told apart by what the root holds; annotations are not read.

    - image folders: `ROOT/{train,val,test}/<emotion>/*`, and where there are annotations
      `ROOT/annotation/<emotion>/<stem>.json`. Keys hold the path relative to the split's directory.
    - index files: `ROOT/{train,val,test}.json`, as EmoSet's authors ship it. Keys hold the path relative to the root.

    A dataset need not have every split. Image files are listed, not opened: what cannot be read is found when features
    are extracted. Categories are compared in lower case, with underscores as spaces.

    Args:
        config: Section `dataset` of the configuration.

    Raises:
        InputError: The root is not a dataset, or something in it is not as its layout requires; the message names it.
    """
    root = Path(config.root)
    categories = _named_categories(config)
    listing = _find_layout(root)(root, categories)
    return ListedDataset(config.name, root, categories or listing.categories, listing)


class ListedDataset:
    """A dataset whose annotations are read when they are needed: one of many tasks needs those of its own images."""

    def __init__(self, name: str, root: Path, categories: tuple[str, ...], listing: Listing):
        """Nothing read yet of what was listed."""
        self.name, self.root, self.categories = name, root, categories
        self._listing = listing
        keys = listing.entries.keys
        self._order = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int32)
        """`[N]`: number of the entry in each row, whose order is that of the keys."""
        self.samples = Samples(_table(listing.entries, self._order), np.arange(len(keys), dtype=np.int32))
        """All images of all splits, sorted by key; their answers have to be read first."""
        self._is_read, self._is_annotated = np.zeros(len(keys), dtype=bool), np.zeros(len(keys), dtype=bool)
        self._misspelled: Counter[str] = Counter()

    def read(self, samples: Samples) -> None:
        """Read the annotations of some of `samples`, unless they have been read.

        Raises:
            DataError: One is damaged. InputError: One cannot be read.
        """
        table, entries = self.samples.table, self._listing.entries
        unread = samples.rows[~self._is_read[samples.rows]]
        unread = unread[np.argsort(self._order[unread])]  # the first error is that of the first entry
        numbers = {label: number for number, label in enumerate(table.labels)}
        start = 0
        paths = list(map(entries.annotation_path, self._order[unread].tolist()))
        for chunk in read_annotations(entries.root, paths):
            rows = unread[start : start + len(chunk.numbers)]
            start += len(rows)
            places = np.array(chunk.numbers, dtype=np.int32)
            kinds, inverse = np.unique(table.label[rows].astype(np.int64) << 32 | places + 1, return_inverse=True)
            found = []
            for kind in kinds.tolist():
                aspects, texts = chunk.answers[(kind & 0xFFFFFFFF) - 1] if kind & 0xFFFFFFFF else ((), ())
                label = Label(table.labels[kind >> 32].category, aspects, texts)
                found.append(numbers.setdefault(label, len(numbers)))
                if found[-1] == len(table.labels):
                    table.labels.append(label)
            table.label[rows] = np.array(found, dtype=np.int32)[inverse]
            self._is_annotated[rows] = places >= 0
            self._misspelled.update(chunk.misspelled)
        self._is_read[unread] = True

    def forget_keys(self) -> None:
        """Free most of the memory; of what was read, nothing can be asked any more but how many images of what there
        are."""
        entries = self._listing.entries
        for column in (entries.keys, entries.categories, entries.annotations, self.samples.table.keys):
            column.clear()

    def whole(self) -> Dataset:
        """The dataset with all its annotations and what they show.

        Raises:
            DataError: An annotation is damaged or missing where others exist. InputError: One cannot be read.
        """
        self.read(self.samples)
        listing = self._listing
        without = np.sort(self._order[~self._is_annotated]).tolist()
        found = [
            *_missing_annotations(listing, without),
            *key_findings(self._misspelled),
            *(_shared_images(listing.entries) if listing.entries.first_rows else ()),
        ]
        holdings = holdings_of(count_kinds(self.samples))
        used = {split: holdings.num_images(split) for split in holdings.categories}
        return Dataset(
            name=self.name,
            root=self.root,
            categories=self.categories,
            samples=self.samples,
            ignored=tuple(sorted(each.path for each in listing.ignored)),
            findings=(
                *ignored_findings(listing.ignored, used),
                *listing.findings,
                *found,
                *coverage_findings(holdings, self.categories),
            ),
        )


def _table(entries: Entries, order: np.ndarray) -> Table:
    """The images of a listing, sorted by key."""
    splits = tuple(sorted(entries.bases))
    rows = order.tolist()
    keys = [entries.keys[number] for number in rows]
    bounds = [bisect.bisect_left(keys, f"{split}/") for split in splits] + [len(keys)]
    labels = [Label(category, None, ()) for category in dict.fromkeys(entries.categories)]
    codes = {label.category: number for number, label in enumerate(labels)}
    return Table(
        keys=keys,
        split=np.repeat(np.arange(len(splits), dtype=np.uint8), np.diff(bounds)),
        label=np.array([codes[category] for category in entries.categories], dtype=np.int32)[order],
        labels=labels,
        directories={split: entries.root + base for split, base in entries.bases.items()},
        moved={entries.keys[number]: entries.root + path for number, path in entries.moved.items()},
        splits=splits,
    )


def _named_categories(config: DatasetConfig) -> tuple[str, ...] | None:
    if config.categories is not None:
        return tuple(normalize_category(category) for category in config.categories)
    return CATEGORY_SETS.get(config.name)


def _find_layout(root: Path) -> Callable[[Path, tuple[str, ...] | None], Listing]:
    if not is_directory(root, key="dataset.root"):
        what = "not a directory" if exists(root) else "no such directory"
        raise InputError(f"dataset.root = {str(root)!r}: {what}")
    folders = [f"{split}/" for split in SPLITS if is_directory(root / split, key="dataset.root")]
    indices = [f"{split}.json" for split in SPLITS if is_file(root / f"{split}.json", key="dataset.root")]
    if folders and indices:
        raise InputError(
            f"dataset.root = {str(root)!r}: holds both {', '.join(folders)} and {', '.join(indices)}, which are two "
            f"layouts of a dataset; keep one of them"
        )
    if not folders and not indices:
        try:
            names = sorted(os.listdir(root))
        except OSError as error:
            raise InputError(f"dataset.root = {str(root)!r}: cannot be listed: {reason(error)}") from None
        holds = f"holds {', '.join(names[:5])}{', …' if len(names) > 5 else ''}" if names else "is empty"
        meant = [f"{name}/ to {split}/" for name in names if (split := meant_by_name(name)) in SPLITS]
        rename = f"; if these are its splits, rename {', '.join(meant)}" if meant else ""
        raise InputError(
            f"dataset.root = {str(root)!r}: {holds}; a dataset has the image folders train/<emotion>/ and "
            f"test/<emotion>/, or index files train.json and test.json as EmoSet has them{rename}"
        )
    return read_folders if folders else read_index_files


def _missing_annotations(listing: Listing, without: Sequence[int]) -> list[Finding]:
    """Images without annotation; an error if an index file lists an annotation that is not there.

    Args:
        listing: All images.
        without: Numbers of the entries that have none.
    """
    entries = listing.entries
    if len(without) == len(entries):
        return [Finding("annotations", NO_ANNOTATIONS, len(entries))] if len(entries) else []
    listed = [number for number in without if entries.annotations[number] is not None]
    if listed and listing.lists_annotations:
        raise DataError(
            f"{entries.root}{entries.annotations[listed[0]]}: this annotation, listed in {entries.where(listed[0])}, "
            f"is missing{_and_others(listed)}; restore what is missing or take the rows out"
        )
    if not without:
        return []
    text = f"{len(without):,} of {len(entries):,} images have no annotation"
    return [Finding("annotations", text, len(without), examples(map(entries.image_path, without)))]


def _shared_images(entries: Entries) -> list[Finding]:
    """Images that are in more than one split: they spoil an evaluation, yet such datasets exist."""
    first: dict[str, int] = {}
    paths = map(entries.image_path, range(len(entries)))
    shared = [(n, other) for n, path in enumerate(paths) if (other := first.setdefault(path, n)) != n]
    if not shared:
        return []
    one, other = shared[0]
    where = f"{entries.where(one)} lists what {entries.where(other)} lists too{_and_others(shared)}"
    text = f"{where}: an image in two splits is evaluated after it was trained on"
    found = [Finding("duplicates", text, len(shared), serious=True)]
    categories = entries.categories
    if torn := [pair for pair in shared if categories[pair[0]] != categories[pair[1]]]:
        (one, other), (said, before) = torn[0], (categories[number] for number in torn[0])
        text = f"{entries.where(one)} says {said!r} where {entries.where(other)} says {before!r}{_and_others(torn)}"
        found.append(Finding("labels", f"{text}: one image has two categories", len(torn), serious=True))
    return found


def _and_others(entries: Sequence[object]) -> str:
    return f" (and {len(entries) - 1} more)" if len(entries) > 1 else ""
