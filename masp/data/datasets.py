"""Reading a dataset: which images there are, and their split, category and aspect answers."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from masp.config.schema import DatasetConfig
from masp.data.answers import Annotation, read_annotation
from masp.data.findings import (
    NO_ANNOTATIONS,
    Finding,
    close_to,
    coverage_findings,
    examples,
    holdings_of,
    ignored_findings,
    key_findings,
)
from masp.data.folder_layout import meant_by_name, read_folders
from masp.data.index_layout import read_index_files
from masp.data.keys import sample_key
from masp.data.sample import SPLITS, Dataset, Entry, Listing, Sample
from masp.errors import DataError, InputError
from masp.files.regular import exists, is_directory, is_file
from masp.files.text import reason
from masp.taxonomy import ASPECTS, CATEGORY_SETS, normalize_category

__all__ = ["SPLITS", "Dataset", "Sample", "read_dataset"]

# Annotations are small files, often on a network disk: threads wait for many at a time.
_NUM_THREADS = 8
_CHUNK = 256


def read_dataset(config: DatasetConfig) -> Dataset:
    """Read a dataset in either of its two layouts, told apart by what the root holds.

    - image folders: `ROOT/{train,val,test}/<emotion>/*`, and where there are annotations
      `ROOT/annotation/<emotion>/<stem>.json`. Keys hold the path relative to the split's directory.
    - index files: `ROOT/{train,val,test}.json`, as EmoSet's authors ship it. Keys hold the path relative to the root.

    A dataset need not have every split. Image files are listed, not opened: what cannot be read is found when features
    are extracted. Categories are compared in lower case, with underscores as spaces.

    Args:
        config: Section `dataset` of the configuration.

    Returns:
        The dataset.

    Raises:
        InputError: The root is not a dataset, or something in it is not as its layout requires; the message names it.
        DataError: An annotation is damaged or missing where others exist.
    """
    root = Path(config.root)
    categories = _named_categories(config)
    listing = _find_layout(root)(root, categories)
    samples, findings = _read_samples(listing)
    valid, holdings = categories or listing.categories, holdings_of(samples)
    used = {split: holdings.num_images(split) for split in holdings.categories}
    return Dataset(
        name=config.name,
        root=root,
        categories=valid,
        samples=samples,
        ignored=tuple(sorted(each.path for each in listing.ignored)),
        findings=(
            *ignored_findings(listing.ignored, used),
            *listing.findings,
            *findings,
            *coverage_findings(holdings, valid),
        ),
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


def _read_samples(listing: Listing) -> tuple[tuple[Sample, ...], list[Finding]]:
    """The samples of all entries, sorted by key, and what their annotations and paths show."""
    annotations = _read_annotations(listing)
    samples: dict[str, Sample] = {}
    keys: Counter[str] = Counter()
    for entry, annotation in zip(listing.entries, annotations, strict=True):
        try:
            key = sample_key(entry.split, entry.relative_path)
        except ValueError as error:
            raise InputError(f"{entry.where}: {error}") from None
        answers = annotation.answers if annotation else {}
        samples[key] = Sample(key, entry.split, entry.image_path, entry.category, answers)
        for name in annotation.other_keys if annotation else ():
            if (aspect := close_to(name, ASPECTS)) and aspect not in answers:
                keys[name] += 1
    findings = [*_missing_annotations(listing, annotations), *key_findings(keys), *_shared_images(listing.entries)]
    return tuple(samples[key] for key in sorted(samples)), findings


def _read_annotations(listing: Listing) -> list[Annotation | None]:
    """The annotation of every entry, in the same order; None where there is none."""
    entries = listing.entries
    chunks = [entries[start : start + _CHUNK] for start in range(0, len(entries), _CHUNK)]
    annotations: list[Annotation | None] = []
    progress = tqdm(total=len(entries), desc="annotations", unit="image", delay=1.0, leave=False, disable=None)
    with ThreadPoolExecutor(_NUM_THREADS) as pool, progress:
        try:
            for chunk in pool.map(_read_chunk, chunks):
                annotations += chunk
                progress.update(len(chunk))
        except BaseException:
            # Without this, one broken file is reported only after all others have been read.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return annotations


def _read_chunk(entries: list[Entry]) -> list[Annotation | None]:
    return [_read_one(entry) for entry in entries]


def _read_one(entry: Entry) -> Annotation | None:
    if entry.annotation_path is None:
        return None
    try:
        return read_annotation(entry.annotation_path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{entry.annotation_path}: cannot be read: {reason(error)}") from None


def _missing_annotations(listing: Listing, annotations: Sequence[Annotation | None]) -> list[Finding]:
    """Images without annotation; an error if an index file lists an annotation that is not there."""
    entries = listing.entries
    without = [entry for entry, annotation in zip(entries, annotations, strict=True) if annotation is None]
    if len(without) == len(entries):
        return [Finding("annotations", NO_ANNOTATIONS, len(entries))] if entries else []
    listed = [entry for entry in without if entry.annotation_path is not None]
    if listed and listing.lists_annotations:
        raise DataError(
            f"{listed[0].annotation_path}: this annotation, listed in {listed[0].where}, is missing"
            f"{_and_others(listed)}; restore what is missing or take the rows out"
        )
    if not without:
        return []
    text = f"{len(without):,} of {len(entries):,} images have no annotation"
    return [Finding("annotations", text, len(without), examples(str(entry.image_path) for entry in without))]


def _shared_images(entries: Sequence[Entry]) -> list[Finding]:
    """Images that are in more than one split: they spoil an evaluation, yet such datasets exist."""
    first: dict[Path, Entry] = {}
    shared = [entry for entry in entries if first.setdefault(entry.image_path, entry) is not entry]
    if not shared:
        return []
    where = f"{shared[0].where} lists what {first[shared[0].image_path].where} lists too{_and_others(shared)}"
    text = f"{where}: an image in two splits is evaluated after it was trained on"
    found = [Finding("duplicates", text, len(shared), serious=True)]
    if torn := [entry for entry in shared if entry.category != first[entry.image_path].category]:
        one, other = torn[0], first[torn[0].image_path]
        text = f"{one.where} says {one.category!r} where {other.where} says {other.category!r}{_and_others(torn)}"
        found.append(Finding("labels", f"{text}: one image has two categories", len(torn), serious=True))
    return found


def _and_others(entries: Sequence[Entry]) -> str:
    return f" (and {len(entries) - 1} more)" if len(entries) > 1 else ""
