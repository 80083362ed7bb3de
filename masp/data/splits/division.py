"""Dividing images that a dataset does not divide itself into training, validation and test images."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from masp.config.schema import DatasetConfig
from masp.data.image_files.stored import Location, digest_image, open_image
from masp.data.sample import NO_SPLIT, SPLITS
from masp.errors import InputError
from masp.files.atomic import write_bytes
from masp.files.fields import SplitOf
from masp.files.regular import UnsuitableFile, open_binary
from masp.files.sealed import create_sealed, read_sealed, sealed
from masp.files.text import nfc, reason, shown

FILE = "splits.json"
"""Its name in the directory of a cache."""
_NUMBERS: Mapping[str, int] = {split: number for number, split in enumerate(SPLITS)}
_MAX_LIST_BYTES = 1 << 30
_MAX_BYTES = 4 << 30
"""Size limit of the record: the names of all images."""
_NUM_THREADS = 8
_SAMPLE_BYTES = 4096


class UndividedError(InputError):
    """Nothing says of which split the images are, and `dataset.split` is not given."""


@dataclass(frozen=True)
class Division:
    """How images were divided, as `splits.json` keeps it: with a cache, they are never divided again in another way."""

    fractions: dict[SplitOf, float]
    seed: int
    names: dict[SplitOf, tuple[str, ...]]
    """Split -> names of its images, sorted."""


@dataclass(frozen=True)
class Undivided:
    """The images of a dataset as its source gives them."""

    names: Sequence[str]
    """A name per image, the same wherever the dataset is."""
    split: np.ndarray
    """`[N]` uint8: the split that the source gives, into `SPLITS`, or `NO_SPLIT`."""
    category: np.ndarray
    """`[N]` integers: the category of each."""
    image: Callable[[int], Location]
    """Where an image is."""


def divide(images: Undivided, config: DatasetConfig, recorded: Division | None) -> tuple[np.ndarray, Division | None]:
    """Decide the split of every image that has none.

    Without `dataset.split` every image must have a split already. With fractions, images without a split are divided,
    or if there are none, those of `train`: in each category, images are taken in the order of a hash of seed and name
    and cut where the fractions say; what rounding leaves over goes to the next category, so that the totals are right
    too. Images with equal bytes count as one, by the first of their names. With files, each lists the names of the
    images of its split.

    Args:
        images: The images.
        config: Section `dataset` of the configuration.
        recorded: How the cache says that they were divided before; what it names stays where it is.

    Returns:
        `[N]` uint8, into `SPLITS`, `NO_SPLIT` for an image that no file lists; and the division by fractions, if any.

    Raises:
        InputError: `dataset.split` is missing or does not fit the dataset, or another one than was recorded.
    """
    if recorded is not None:
        _check_same(config, recorded)
    if config.split is None:
        if (undecided := np.flatnonzero(images.split == NO_SPLIT)).size:
            raise UndividedError(
                f"dataset.split must be given: nothing in {config.root} says whether {images.names[undecided[0]]} "
                f"{'is an image' if undecided.size == 1 else f'and {undecided.size - 1:,} more are images'} of train, "
                f"val or test; for example dataset.split={{train: 0.8, val: 0.1, test: 0.1}}"
            )
        return images.split, None
    files = {split: value for split, value in config.split.items() if isinstance(value, str)}
    if files:
        return _by_files(images, {SPLITS.index(split): Path(path) for split, path in files.items()}, config), None
    return _by_fractions(
        images, {str(s): v for s, v in config.split.items() if not isinstance(v, str)}, config, recorded
    )


def read_division(directory: str | Path | None) -> Division | None:
    """How the images of a cache were divided; None if it was not by fractions.

    Raises:
        DataError: Damaged. InputError: It may not be read.
    """
    return None if directory is None else read_sealed(Division, Path(directory) / FILE, max_bytes=_MAX_BYTES)


def record_division(directory: Path, division: Division | None, *, grown: bool = False) -> None:
    """Keep with a cache how its images are divided, unless it does so already.

    Args:
        directory: Directory of the cache.
        division: The division, which contains what was recorded before; None if there is none.
        grown: Also record images that were added.

    Raises:
        OSError: The directory cannot be written.
    """
    if division is not None and not create_sealed(directory / FILE, division) and grown:
        write_bytes(directory / FILE, sealed(division))


def _check_same(config: DatasetConfig, recorded: Division) -> None:
    fractions = {str(k): v for k, v in (config.split or {}).items() if not isinstance(v, str)}
    for key, old, new in (
        ("split", recorded.fractions, fractions or config.split),
        ("split_seed", recorded.seed, config.split_seed),
    ):
        if old != new:
            raise InputError(
                f"dataset.{key} = {shown(new)}: the images of this cache were divided with {shown(old)}; use that, or "
                "another cache.dir"
            )


def _by_fractions(
    images: Undivided, fractions: Mapping[str, float], config: DatasetConfig, recorded: Division | None
) -> tuple[np.ndarray, Division]:
    split = images.split.copy()
    train = _NUMBERS["train"]
    free = np.flatnonzero(split == NO_SPLIT)
    given = set(np.unique(split[split != NO_SPLIT]).tolist())
    if not free.size:
        free = np.flatnonzero(split == train)
        given -= {train}
    for name, fraction in fractions.items():
        if fraction and _NUMBERS[name] in given:
            count = int((split == _NUMBERS[name]).sum())
            raise InputError(
                f"dataset.split = {shown(dict(fractions))}: the dataset has a split {name} of its own with {count:,} "
                f"images; leave {name} out, only images {'of train' if train not in given else 'without a split'} are "
                "divided"
            )
    if not free.size:
        words = " and ".join(sorted(SPLITS[number] for number in given))
        raise InputError(
            f"dataset.split = {shown(dict(fractions))}: there is nothing to divide: {config.root} says itself that its "
            f"images are of {words}, and only images of train or without a split are divided; leave dataset.split out"
        )
    numbers = [_NUMBERS[name] for name in fractions]
    before = {name: _NUMBERS[s] for s, names in (recorded.names if recorded else {}).items() for name in names}
    split[free] = [before.get(images.names[row], NO_SPLIT) for row in free.tolist()]
    first = _copies(images, free)
    _follow_recorded(split, free, first)
    free = free[split[free] == NO_SPLIT]
    carry = np.zeros(len(numbers))
    shares = np.array(list(fractions.values()))
    copies: dict[int, list[int]] = defaultdict(list)
    for row in free.tolist():
        copies[first.get(row, row)].append(row)
    by_category: dict[int, dict[int, list[int]]] = defaultdict(dict)
    for row, rows in copies.items():
        by_category[int(images.category[row])][row] = rows
    for _, groups in sorted(by_category.items()):
        ordered = sorted(groups, key=lambda row: _hash(config.split_seed, images.names[row]))
        size = sum(map(len, groups.values()))
        wanted = shares * size + carry
        counts = _rounded(wanted, size)
        ends = np.cumsum(counts)
        place = 0
        for row in ordered:
            number = int(np.searchsorted(ends, place, side="right"))
            split[groups[row]] = numbers[min(number, len(numbers) - 1)]
            place += len(groups[row])
        carry = wanted - counts
    names = {}
    for name in fractions:
        here = {images.names[row] for row in np.flatnonzero(split == _NUMBERS[name]).tolist()}
        names[name] = tuple(sorted(here.union(recorded.names.get(name, ()) if recorded else ())))
    return split, Division(dict(fractions), config.split_seed, names)


def _follow_recorded(split: np.ndarray, rows: np.ndarray, first: Mapping[int, int]) -> None:
    """Put new copies of images that were divided before where these are."""
    known: dict[int, int] = {}
    for row in rows.tolist():
        if split[row] != NO_SPLIT:
            known.setdefault(first.get(row, row), int(split[row]))
    for row in rows.tolist():
        if split[row] == NO_SPLIT:
            split[row] = known.get(first.get(row, row), NO_SPLIT)


def _rounded(wanted: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers that add up to `total`, nearest to what is wanted: by the largest remainders."""
    counts = np.maximum(np.floor(wanted + 1e-9), 0)
    while counts.sum() < total:
        counts[np.argmax(wanted - counts)] += 1
    while counts.sum() > total:
        counts[np.argmin(np.where(counts > 0, wanted - counts, np.inf))] -= 1
    return counts


def _hash(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogateescape")).digest()


def _copies(images: Undivided, rows: np.ndarray) -> dict[int, int]:
    """Row -> the first row, in the order of names, with the same bytes, where there is another one.

    Only images of equal size whose middles are equal are read whole. One that cannot be read is like no other.
    """
    ordered = sorted(rows.tolist(), key=images.names.__getitem__)
    places = [images.image(row) for row in ordered]
    alike: dict[object, list[int]] = defaultdict(list)
    with tqdm(total=len(places), desc="copies", unit="image", delay=1.0, leave=False, disable=None) as bar:
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            for number, key in enumerate(pool.map(_glance, places)):
                if key is not None:
                    alike[key].append(number)
                bar.update()
    first: dict[int, int] = {}
    for numbers in alike.values():
        if len(numbers) > 1:
            seen: dict[str, int] = {}
            for number in numbers:
                if (digest := _digest(places[number])) is not None:
                    row = seen.setdefault(digest, ordered[number])
                    if row != ordered[number]:
                        first[ordered[number]] = row
    return first


def _glance(image: Location) -> tuple[int, bytes] | None:
    """What equal images have in common and most others not: the size and some bytes of the middle."""
    try:
        with open_image(image) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size // 2 - _SAMPLE_BYTES // 2))
            return size, hashlib.blake2b(file.read(_SAMPLE_BYTES), digest_size=16).digest()
    except OSError:
        return None


def _digest(image: Location) -> str | None:
    try:
        return digest_image(image)
    except OSError:
        return None


def _by_files(images: Undivided, files: Mapping[int, Path], config: DatasetConfig) -> np.ndarray:
    """Splits as files list the images; an image may be named without directories that all have in common."""
    places = _by_name(images.names)
    split = np.full(len(images.names), NO_SPLIT, dtype=np.uint8)
    for number, path in files.items():
        for line, name in _listed(path):
            where = f"{path} line {line}"
            row = places.get(name)
            if row is None:
                raise InputError(
                    f"{where}: {shown(name)}: {config.root} has no such image; an example of one is "
                    f"{shown(images.names[0])}"
                )
            if row < 0:
                raise InputError(
                    f"{where}: {shown(name)}: {config.root} has several images of this name; list the "
                    f"whole path, for example {shown(images.names[~row])}"
                )
            if split[row] not in (NO_SPLIT, number):
                raise InputError(f"{where}: {shown(name)} is listed for {SPLITS[split[row]]} too")
            split[row] = number
    return split


def _by_name(names: Sequence[str]) -> dict[str, int]:
    """Row of each image by its whole name and by every end of it; the complement of a row where several have it."""
    found: dict[str, int] = {}
    for row, name in enumerate(names):
        parts = nfc(name).split("/")
        for start in range(1, len(parts)):
            end = "/".join(parts[start:])
            found[end] = ~row if end in found else row
    return found | {nfc(name): row for row, name in enumerate(names)}


def _listed(path: Path) -> Sequence[tuple[int, str]]:
    try:
        with open_binary(path, max_bytes=_MAX_LIST_BYTES) as file:
            lines = file.read().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"dataset.split: {path}: not text in UTF-8") from None
    except (UnsuitableFile, OSError) as error:
        raise InputError(f"dataset.split: {path}: cannot be read: {reason(error)}") from None
    found = [
        (n, nfc(line.strip().replace("\\", "/").removeprefix("./").lstrip("/"))) for n, line in enumerate(lines, 1)
    ]
    listed = [(number, name) for number, name in found if name]
    if not listed:
        raise InputError(f"dataset.split: {path}: lists no image; must have the path of an image in each line")
    return listed
