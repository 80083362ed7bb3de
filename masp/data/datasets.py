"""Reading a dataset: which images there are, and their split, category and aspect answers."""

from __future__ import annotations

import bisect
import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from masp.config.aspects import Aspects, load_aspects
from masp.config.schema import Config, DatasetConfig
from masp.data.annotations import Answers, read_annotations
from masp.data.findings import (
    NO_ANNOTATIONS,
    Finding,
    coverage_findings,
    examples,
    holdings_of,
    ignored_findings,
    key_findings,
    vocabulary_findings,
)
from masp.data.keys import sample_key
from masp.data.named.catalog import named_rows
from masp.data.sample import (
    NO_SPLIT,
    SPLITS,
    UNDIVIDED,
    Dataset,
    Entries,
    Label,
    Listing,
    Sample,
    Samples,
    Table,
    count_answers,
    count_kinds,
    directory_prefix,
)
from masp.data.sources.category_names import category_names
from masp.data.sources.find import find_dataset
from masp.data.sources.folders import read_folders
from masp.data.sources.index_files import read_index_files
from masp.data.sources.labels import LabeledRows, read_labeled
from masp.data.sources.rows import Rows
from masp.data.splits.division import Division, Undivided, divide, read_division
from masp.errors import DataError, InputError
from masp.files.text import shown
from masp.taxonomy import CATEGORY_SETS, normalize_category

LOG = logging.getLogger(__name__)

_MAX_KNOWN = 1 << 16
"""Different answers whose labels are found without making them again."""

__all__ = ["SPLITS", "Dataset", "ListedDataset", "Sample", "dataset_of", "list_dataset", "read_dataset"]


def dataset_of(config: Config) -> Dataset:
    """The dataset of a run with all its annotations; see `list_dataset`.

    Raises:
        InputError, DataError: As `read_dataset`.
    """
    return read_dataset(config.dataset, load_aspects(config.aspect_definitions), config.cache.dir)


def read_dataset(config: DatasetConfig, aspects: Aspects, cache_dir: str | Path | None = None) -> Dataset:
    """Read a dataset with all its annotations; see `list_dataset`.

    Raises:
        InputError: The root is not a dataset, or something in it is not as its format requires; the message names it.
        DataError: An annotation is damaged or missing where others exist.
    """
    return list_dataset(config, aspects, cache_dir).whole()


def list_dataset(config: DatasetConfig, aspects: Aspects, cache_dir: str | Path | None = None) -> ListedDataset:
    """List a dataset of any format that `masp.data.sources` knows; annotation files are not read.

    - image folders: `ROOT/{train,val,test}/<emotion>/**`, or without splits `ROOT/<emotion>/**`, and where there are
      annotations `ROOT/annotation/<emotion>/<stem>.json`. Keys hold the path relative to the split's directory, or to
      the root.
    - index files: `ROOT/{train,val,test}.json`, as EmoSet's authors ship it. Keys hold the path relative to the root.
    - rows of tables, tars, parquet or arrow files, see `masp.data.sources.rows`. Keys hold the path of the image, the
      name of the member or the number of the row.

    A dataset need not have every split. Images are listed, not opened: what cannot be read is found when features are
    extracted. Categories are compared in lower case, with underscores as spaces.

    Args:
        config: Section `dataset` of the configuration.
        aspects: Aspects that are read from annotations: all that are defined, not only those in use, so that a cache
            serves other choices too.
        cache_dir: Directory of the cache, which may say how images were divided into splits; None if there is none.

    Raises:
        InputError: The root is not a dataset, or something in it is not as its format requires; the message names it.
    """
    valid, recorded = _named_categories(config), read_division(cache_dir) if config.split else None
    named = named_rows(config)
    if named is not None:
        root = Path(config.root)
        return _of_rows(config, root, read_labeled(named, config, valid, aspects), aspects, recorded, named.kind)
    found = find_dataset(config, aspects)
    if config.format == "auto" and found.format not in ("folders", "emoset"):
        count = f" ({len(found.files):,} files)" if len(found.files) > 1 else ""
        LOG.info("%s is read as the format %s%s", config.root, found.format, count)
    source = found.rows(aspects)
    if source is not None:
        return _of_rows(
            config, found.root, read_labeled(source, config, valid, aspects), aspects, recorded, source.kind
        )
    names = category_names(config, valid)
    read = read_index_files if found.format == "emoset" else read_folders
    listing, division = _divided(read(found.root, names), config, recorded)
    categories = valid or listing.categories
    entries = listing.entries
    order = np.array(sorted(range(len(entries)), key=entries.keys.__getitem__), dtype=np.int32)
    kind = "index files" if found.format == "emoset" else "image folders"
    table = _table(entries, order)
    return ListedDataset(config.name, found.root, categories, aspects, table, order, listing, division, kind)


def _divided(listing: Listing, config: DatasetConfig, recorded: Division | None) -> tuple[Listing, Division | None]:
    """A listing whose images all have a split."""
    entries = listing.entries
    if config.split is None and UNDIVIDED not in entries.bases:
        return listing, None
    names = [entries.bases[entries.split(n)] + entries.relative_path(n) for n in range(len(entries))]
    numbers = {category: number for number, category in enumerate(dict.fromkeys(entries.categories))}
    codes = {split: number for number, split in enumerate(SPLITS)} | {UNDIVIDED: NO_SPLIT}
    images = Undivided(
        names,
        np.array([codes[entries.split(n)] for n in range(len(entries))], dtype=np.uint8),
        np.array([numbers[category] for category in entries.categories], dtype=np.int32),
        entries.image_path,
    )
    split, division = divide(images, config, recorded)
    bases = dict.fromkeys(SPLITS, "") | {s: base for s, base in entries.bases.items() if s != UNDIVIDED}
    divided = Entries(entries.root, bases, first_rows=entries.first_rows, left_out=entries.left_out)
    for number in np.flatnonzero(split != NO_SPLIT).tolist():
        before, now = entries.split(number), SPLITS[split[number]]
        path = entries.moved.get(number)
        if path is None and bases[now] != entries.bases[before]:
            path = names[number]
        if path is not None:
            divided.moved[len(divided)] = path
        # files may take an image from one split's directory and its namesake from another's
        is_renamed = division is None and bases[now] != entries.bases[before] and before != UNDIVIDED
        rest = entries.keys[number].partition("/")[2]
        divided.keys.append(sample_key(now, names[number]) if is_renamed else f"{now}/{rest}")
        divided.categories.append(entries.categories[number])
        divided.annotations.append(entries.annotations[number])
    if len(divided) < len(entries):  # rows of index files are then not entries any more
        divided.first_rows, divided.left_out = {}, {}
    _check_not_empty(config, len(divided))
    findings = (*listing.findings, *_unlisted_findings(split, names.__getitem__))
    return replace(listing, entries=divided, findings=findings), division


def _check_not_empty(config: DatasetConfig, count: int) -> None:
    if not count:
        raise InputError(f"dataset.root = {config.root!r}: no image is left: none has both a label and a split")


def _unlisted_findings(split: np.ndarray, name: Callable[[int], str]) -> list[Finding]:
    """Images that the files of `dataset.split` do not list."""
    without = np.flatnonzero(split == NO_SPLIT)
    if not without.size:
        return []
    text = f"{without.size:,} of {len(split):,} images are in none of the files of dataset.split; they are not used"
    return [Finding("ignored", text, without.size, examples(map(name, without[:3].tolist())))]


def _of_rows(
    config: DatasetConfig, root: Path, labeled: LabeledRows, aspects: Aspects, recorded: Division | None, kind: str
) -> ListedDataset:
    """The dataset of a source of rows; its annotations are known."""
    rows = labeled.rows
    kept = np.flatnonzero(labeled.label >= 0)
    names = [rows.identities[row] for row in kept.tolist()]
    _check_names(names, kept, rows)
    codes = {category: number for number, category in enumerate(labeled.categories)}
    category = np.array([codes[label.category] for label in labeled.labels], dtype=np.int32)[labeled.label[kept]]
    images = Undivided(names, labeled.split[kept], category, lambda n: rows.image(int(kept[n])))
    split, division = divide(images, config, recorded)
    _check_not_empty(config, int((split != NO_SPLIT).sum()))
    findings = [*rows.findings, *labeled.findings, *_unlisted_findings(split, names.__getitem__)]
    keys = []
    for number in np.flatnonzero(split != NO_SPLIT).tolist():
        try:
            keys.append((sample_key(SPLITS[split[number]], names[number]), number))
        except ValueError as error:
            raise InputError(f"{rows.where(int(kept[number]))}: {error}") from None
    del names
    keys.sort()
    chosen = kept[[number for _, number in keys]] if keys else kept[:0]
    splits = tuple(sorted(SPLITS))
    number_of = np.array([splits.index(name) for name in SPLITS], dtype=np.uint8)
    table = Table(
        keys=[key for key, _ in keys],
        split=number_of[split[[number for _, number in keys]]] if keys else number_of[:0],
        label=labeled.label[chosen],
        labels=labeled.labels,
        directories={},
        moved={} if rows.paths is None else {key: rows.paths[row] for (key, _), row in zip(keys, chosen, strict=True)},
        splits=splits,
        places=rows.places and rows.places.part(chosen),
        blocks=rows.blocks and rows.blocks.part(chosen),
    )
    if not any(label.aspects for label in labeled.labels):
        findings.append(Finding("annotations", NO_ANNOTATIONS, len(table.keys)))
    entries = Entries(directory_prefix(root), {})
    listing = Listing(entries, labeled.categories, rows.ignored, tuple(findings))
    return ListedDataset(config.name, root, labeled.categories, aspects, table, None, listing, division, kind)


def _check_names(names: Sequence[str], kept: np.ndarray, rows: Rows) -> None:
    if len(set(names)) == len(names):
        return
    first: dict[str, int] = {}
    for number, name in enumerate(names):
        other = first.setdefault(name, number)
        if other != number:
            one, another = rows.where(int(kept[number])), rows.where(int(kept[other]))
            raise InputError(
                f"{one}: {shown(name)} is the name of the image in {another} too; every image needs a name of its own "
                "(dataset.columns.id chooses the column)"
            )


class ListedDataset:
    """A dataset whose annotations are read when they are needed: one of many tasks needs those of its own images."""

    def __init__(
        self,
        name: str,
        root: Path,
        categories: tuple[str, ...],
        aspects: Aspects,
        table: Table,
        order: np.ndarray | None,
        listing: Listing,
        division: Division | None,
        kind: str,
    ):
        """Nothing read yet of what was listed.

        Args:
            name, root, categories: See `Dataset`.
            aspects: Aspects that are read from annotations.
            table: The images, sorted by key.
            order: `[N]` number of the entry in each row of the table; None if the table already has the annotations.
            listing: What was listed.
            division: How the images were divided by fractions, if they were.
            kind: What it was listed from, in words: `parquet files`.
        """
        self.name, self.root, self.categories, self.kind = name, root, categories, kind
        self.division = division
        self.aspects = aspects
        self._listing = listing
        self._order = np.zeros(0, dtype=np.int32) if order is None else order
        self.samples = Samples(table, np.arange(len(table.keys), dtype=np.int32))
        """All images of all splits, sorted by key; their answers have to be read first."""
        self._has_files = order is not None
        self._is_read = np.full(len(table.keys), order is None, dtype=bool)
        self._is_annotated = np.zeros(len(table.keys), dtype=bool)
        self._misspelled: Counter[tuple[str, str]] = Counter()

    def read(self, samples: Samples) -> None:
        """Read the annotations of some of `samples`, unless they have been read.

        Raises:
            DataError: One is damaged. InputError: One cannot be read.
        """
        table, entries = self.samples.table, self._listing.entries
        unread = samples.rows[~self._is_read[samples.rows]]
        unread = unread[np.argsort(self._order[unread])]  # the first error is that of the first entry
        numbers = {label: number for number, label in enumerate(table.labels)}
        known: dict[tuple[int, Answers], int] = {}
        aspects: dict[tuple[str, ...], tuple[str, ...]] = {}
        start = 0
        order = self._order[unread].tolist()
        keys, annotations = [entries.keys[n] for n in order], [entries.annotations[n] for n in order]
        del order
        for chunk in read_annotations(entries.root, keys, annotations, self.aspects):
            rows = unread[start : start + len(chunk.numbers)]
            start += len(rows)
            places = np.array(chunk.numbers, dtype=np.int32)
            kinds, inverse = np.unique(table.label[rows].astype(np.int64) << 32 | places + 1, return_inverse=True)
            found = []
            for kind in kinds.tolist():
                before, answers = kind >> 32, chunk.answers[(kind & 0xFFFFFFFF) - 1] if kind & 0xFFFFFFFF else ((), ())
                number = known.get((before, answers))
                if number is None:
                    if len(known) >= _MAX_KNOWN:
                        known.clear()
                    # each chunk brings strings of its own: millions of labels share few
                    names = aspects.setdefault(answers[0], tuple(map(sys.intern, answers[0])))
                    label = replace(table.labels[before], aspects=names, texts=tuple(map(sys.intern, answers[1])))
                    number = known[before, answers] = numbers.setdefault(label, len(numbers))
                    if number == len(table.labels):
                        table.labels.append(label)
                found.append(number)
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
        found: list[Finding] = []
        if self._has_files:
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
                *coverage_findings(holdings, self.categories, self.aspects),
                *vocabulary_findings(count_answers(self.samples), self.aspects),
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
