"""Reading a dataset: which images there are, and their split, category and aspect answers."""

import operator
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from masp.config.schema import DatasetConfig
from masp.data.answers import read_annotation
from masp.data.folder_layout import read_folders
from masp.data.index_layout import read_index_files
from masp.data.keys import sample_key
from masp.data.sample import SPLITS, Dataset, Entry, Listing, Sample, repetitions
from masp.errors import DataError, InputError
from masp.files.regular import exists, is_directory, is_file
from masp.files.text import reason
from masp.taxonomy import CATEGORY_SETS, normalize_category

__all__ = ["SPLITS", "Dataset", "Sample", "read_dataset"]

# Annotations are small files, often on a network disk: threads wait for many at a time.
_NUM_THREADS = 8
_CHUNK = 256
_CHUNKS_AT_ONCE = 64


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
    samples, notes = _read_samples(listing)
    return Dataset(
        name=config.name,
        root=root,
        categories=categories or listing.categories,
        samples=samples,
        ignored=tuple(sorted(listing.ignored)),
        notes=notes,
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
        raise InputError(
            f"dataset.root = {str(root)!r}: {holds}; a dataset has the image folders train/<emotion>/ and "
            f"test/<emotion>/, or index files train.json and test.json as EmoSet has them"
        )
    return read_folders if folders else read_index_files


def _read_samples(listing: Listing) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """The samples of all entries, sorted by key, and what to tell the user about them."""
    entries, num_images = listing.entries, len(listing.entries)
    shared = _shared_images(entries)
    samples: list[Sample] = []
    without: list[Entry] = []
    progress = tqdm(total=num_images, desc="annotations", unit="image", delay=1.0, leave=False, disable=None)
    with ThreadPoolExecutor(_NUM_THREADS) as pool, progress:
        try:
            # a bounded number at a time: a dictionary is several times as large as the sample that it becomes
            while entries:
                several = entries[: _CHUNK * _CHUNKS_AT_ONCE]
                del entries[: _CHUNK * _CHUNKS_AT_ONCE]  # millions are not kept beside their samples
                chunks = [several[start : start + _CHUNK] for start in range(0, len(several), _CHUNK)]
                for chunk, answers in zip(chunks, pool.map(_read_chunk, chunks), strict=True):
                    samples += map(_make_sample, chunk, answers)
                    without += [entry for entry, answer in zip(chunk, answers, strict=True) if answer is None]
                    progress.update(len(chunk))
        except BaseException:
            # Without this, one broken file is reported only after all others have been read.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    notes = (*_missing_annotations(listing, without, num_images), *shared)
    samples.sort(key=operator.attrgetter("key"))
    return tuple(samples), notes


def _make_sample(entry: Entry, answers: dict[str, str] | None) -> Sample:
    try:
        key = sample_key(entry.split, entry.relative_path)
    except ValueError as error:
        raise InputError(f"{entry.where}: {error}") from None
    return Sample(key, entry.split, entry.image_path, entry.category, answers or {})


def _read_chunk(entries: list[Entry]) -> list[dict[str, str] | None]:
    return [_read_one(entry) for entry in entries]


def _read_one(entry: Entry) -> dict[str, str] | None:
    if entry.annotation_path is None:
        return None
    try:
        return read_annotation(entry.annotation_path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{entry.annotation_path}: cannot be read: {reason(error)}") from None


def _missing_annotations(listing: Listing, without: list[Entry], num_images: int) -> list[str]:
    """Notes on images without annotation; an error if an index file lists one that is not there."""
    if len(without) == num_images:
        return ["no image has an annotation: stage 1 has nothing to learn from"]
    listed = [entry for entry in without if entry.annotation_path is not None]
    if listed and listing.lists_annotations:
        raise DataError(
            f"{listed[0].annotation_path}: this annotation, listed in {listed[0].where}, is missing"
            f"{_and_others(listed)}; restore what is missing or take the rows out"
        )
    if without:
        return [f"{len(without)} of {num_images} images have no annotation, the first is {without[0].image_path}"]
    return []


def _shared_images(entries: list[Entry]) -> list[str]:
    """A note on images that are in more than one split: they spoil an evaluation, yet such datasets exist."""
    shared = repetitions(entries, lambda entry: entry.image_path)
    if not shared:
        return []
    first, second = shared[0]
    where = f"{second.where} lists what {first.where} lists too{_and_others([entry for _, entry in shared])}"
    return [f"{where}: an image in two splits is evaluated after it was trained on"]


def _and_others(entries: list[Entry]) -> str:
    return f" (and {len(entries) - 1} more)" if len(entries) > 1 else ""
