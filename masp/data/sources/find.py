"""What kind of dataset there is: named by the configuration, or found by looking."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import braceexpand

from masp.config.schema import DatasetConfig, DatasetFormat
from masp.data.image_files.paths import is_url
from masp.data.sample import SPLITS
from masp.data.sources.folders import has_image, list_directory, meant_by_name
from masp.data.sources.hub import SCHEME, download, is_metadata
from masp.data.sources.rows import RowSource
from masp.data.sources.split_words import SPLIT_WORDS
from masp.data.sources.table import EXTENSIONS, IMAGE_DIRECTORIES, TableSource, lists_images, why_no_table
from masp.errors import InputError
from masp.files.regular import exists, is_directory, is_file
from masp.files.text import shown

_PATTERN = re.compile(r"[*?\[{]")
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
_SUFFIXES: dict[str, DatasetFormat] = {
    ".tar": "webdataset",
    ".parquet": "parquet",
    ".arrow": "arrow",
    **dict.fromkeys(EXTENSIONS, "table"),
}
"""Kind of a dataset by the names of its files."""
_ADVICE = {
    **dict.fromkeys((".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"), "unpack it first"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save it as a .csv table"),
    ".json": "a table in JSON must be a .jsonl file, with an object per line",
}
"""Extension -> what to do with a file that is not read."""
_MAX_FILES = 200_000


@dataclass(frozen=True)
class Found:
    """A dataset as it lies on the disk."""

    format: DatasetFormat
    root: Path
    """Its directory."""
    files: tuple[Path, ...] = ()
    """Its files, sorted; none where the directory says it all."""

    def rows(self, aspects: Collection[str]) -> RowSource | None:
        """Its rows; None if it is directories or index files. `aspects` are the names of those that they may hold."""
        match self.format:
            case "table":
                return TableSource(self.root, self.files, aspects)
            case "webdataset":
                from masp.data.sources.containers.tars import TarSource

                return TarSource(self.root, self.files)
            case "parquet":
                from masp.data.sources.containers.parquet import ParquetSource

                return ParquetSource(self.root, self.files)
            case "arrow":
                from masp.data.sources.containers.arrow import ArrowSource

                return ArrowSource(self.root, self.files)
        return None


def is_there(root: str) -> bool:
    """Whether `dataset.root` may name a dataset: a pattern and a name of the Hub may, anything else must exist."""
    return root.startswith(SCHEME) or bool(_PATTERN.search(root)) or exists(Path(root), key="dataset.root")


def find_dataset(config: DatasetConfig, aspects: Collection[str]) -> Found:
    """Find the dataset that `dataset.root` names.

    Args:
        config: Section `dataset` of the configuration.
        aspects: Names of the aspects that are defined, by which a table is told from others.

    Raises:
        InputError: There is none, there are two, or not one of `dataset.format`; the message says what is there.
    """
    root = config.root
    if root.startswith(SCHEME):
        root = str(download(root))
    if is_url(root):
        raise InputError(
            f"dataset.root = {shown(root)}: a URL, of which only hf://owner/name is read; download the data"
        )
    if _PATTERN.search(root) and not exists(Path(root), key="dataset.root"):
        place, pattern = _divided_pattern(root)
        files = _matching(root, place, pattern)
        return _of_files(config, _place_of(place), files)
    path = Path(root)
    if is_file(path, key="dataset.root"):
        return _of_files(config, _place_of(path.parent), (path,))
    if not is_directory(path, key="dataset.root"):
        what = "neither a file nor a directory" if exists(path) else "no such directory"
        raise InputError(f"dataset.root = {root!r}: {what}")
    return _of_directory(config, path, aspects)


def _place_of(directory: Path) -> Path:
    """The directory of a dataset with files in a directory whose name may be the only word for the split."""
    return directory.parent if directory.name.lower() in SPLIT_WORDS else directory


def _divided_pattern(root: str) -> tuple[Path, str]:
    """The directory that everything a pattern names is in, whose own name may contain brackets; and the rest."""
    parts = Path(root).parts
    count = 0
    while count < len(parts) - 1 and is_directory(Path(*parts[: count + 1]), key="dataset.root"):
        count += 1
    return Path(*parts[:count]), str(Path(*parts[count:]))


def _matching(root: str, place: Path, pattern: str) -> tuple[Path, ...]:
    """The files in a directory that a pattern names, sorted."""
    found: set[str] = set()
    prefix = glob.escape(str(place)) if str(place) != "." else ""
    for part in _expanded(root, pattern):
        matches = glob.glob(os.path.join(prefix, part), recursive=True) if glob.has_magic(part) else []
        plain = place / part
        if not matches and exists(plain, key="dataset.root"):
            matches = [str(plain)]
        if not matches:
            raise InputError(f"dataset.root = {root!r}: no such file: {plain}")
        found.update(matches)
        if len(found) > _MAX_FILES:
            raise InputError(f"dataset.root = {root!r}: names more than {_MAX_FILES:,} files")
    return tuple(sorted(Path(name) for name in found))


def _expanded(root: str, pattern: str) -> Iterator[str]:
    """The patterns that one with braces stands for."""
    for first, last in _RANGE.findall(pattern):
        if len(first) > 12 or len(last) > 12 or abs(int(last) - int(first)) >= _MAX_FILES:
            raise InputError(f"dataset.root = {root!r}: {{{first}..{last}}} names more than {_MAX_FILES:,} files")
    try:
        yield from itertools.islice(braceexpand.braceexpand(pattern, escape=False), _MAX_FILES + 1)
    except ValueError:
        raise InputError(f"dataset.root = {root!r}: a brace is not closed; a range is {{00000..00009}}") from None


def _of_files(config: DatasetConfig, root: Path, files: tuple[Path, ...]) -> Found:
    kinds = {_SUFFIXES.get(file.suffix.lower()) for file in files}
    if len(kinds) != 1 or None in kinds:
        odd = next((file for file in files if file.suffix.lower() not in _SUFFIXES), files[0])
        raise InputError(
            f"dataset.root = {config.root!r}: {odd}: a dataset of files has only one kind of them, which may be "
            f"{', '.join(_SUFFIXES)}{_advice(odd.name)}"
        )
    (kind,) = kinds
    assert kind is not None
    if config.format not in ("auto", kind):
        raise InputError(f"dataset.format = {config.format}: {files[0]} is of the format {kind}")
    return Found(kind, root, files)


def _of_directory(config: DatasetConfig, root: Path, aspects: Collection[str]) -> Found:
    found = _formats(root, config, aspects)
    if config.format != "auto":
        if config.format not in found:
            if config.format == "folders":  # its reader says what is missing
                return Found("folders", root)
            others = f"; but {' and '.join(found)}" if found else ""
            raise InputError(f"dataset.root = {str(root)!r}: holds nothing of the format {config.format}{others}")
        return Found(config.format, root, found[config.format])
    if not found:
        raise InputError(_nothing(root, config, aspects))
    if len(found) > 1:
        each = ", ".join(f"{kind} ({_example(files, root)})" for kind, files in found.items())
        raise InputError(
            f"dataset.root = {str(root)!r}: holds datasets of several formats, {each}; dataset.format chooses one"
        )
    ((kind, files),) = found.items()
    return Found(kind, root, files)


def _example(files: Sequence[Path], root: Path) -> str:
    return str(files[0].relative_to(root)) if files else "images in directories"


def _formats(root: Path, config: DatasetConfig, aspects: Collection[str]) -> dict[DatasetFormat, tuple[Path, ...]]:
    """Every kind of dataset that a directory holds, with its files."""
    contents = list_directory(root)
    names = sorted([*contents.directories, *contents.files])
    found: dict[DatasetFormat, tuple[Path, ...]] = {}
    if indices := [root / f"{split}.json" for split in SPLITS if is_file(root / f"{split}.json", key="dataset.root")]:
        found["emoset"] = tuple(indices)
    if "dataset_dict.json" in names or ("state.json" in names and any(_kind(name) == "arrow" for name in names)):
        return {"arrow": ()}
    directories = [root / name for name in contents.directories]
    here = [root / name for name in contents.files if _kind(name) and is_file(root / name, key="dataset.root")]
    below = sorted(file for directory in directories for file in _files_in(directory))
    for kind in dict.fromkeys(_SUFFIXES.values()):
        files = [file for file in here if _kind(file.name) == kind]
        if kind == "table":
            files = [file for file in files if lists_images(file, config, aspects)] or _metadata(below, config, aspects)
        files = files or [file for file in below if kind != "table" and _kind(file.name) == kind]
        if files:
            found[kind] = tuple(files)
    if "webdataset" in found:  # img2dataset leaves a parquet file beside each tar
        stems = {file.with_suffix("") for file in found["webdataset"]}
        if all(file.with_suffix("") in stems for file in found.get("parquet", ())):
            found.pop("parquet", None)
    if not any(map(is_metadata, itertools.chain(*found.values()))) and _has_folders(directories, below, bool(found)):
        found["folders"] = ()
    if (
        (not found or config.format == "table")
        and "table" not in found
        and (tables := _split_tables(below, config, aspects))
    ):
        found["table"] = tables
    return found


def _kind(name: str) -> DatasetFormat | None:
    """Kind of a dataset that a file may be of, by its name."""
    return _SUFFIXES.get(os.path.splitext(name)[1].lower())


def _metadata(files: Sequence[Path], config: DatasetConfig, aspects: Collection[str]) -> list[Path]:
    """The Hub's tables among files; all of them where one lists images, so that what is wrong with another is said."""
    found = [file for file in files if is_metadata(file) and _kind(file.name) == "table"]
    return found if any(lists_images(file, config, aspects) for file in found) else []


def _split_tables(files: Iterable[Path], config: DatasetConfig, aspects: Collection[str]) -> tuple[Path, ...]:
    """Tables of images of any name, each in the directory of a split."""
    tables = [file for file in files if _kind(file.name) == "table" and _is_for_images(file)]
    return tuple(file for file in tables if lists_images(file, config, aspects))


def _is_for_images(table: Path) -> bool:
    """Whether a table in a directory is probably about the images beside it."""
    return is_metadata(table) or table.parent.name.lower() in SPLIT_WORDS


def _has_folders(directories: Sequence[Path], below: Sequence[Path], is_other: bool) -> bool:
    """Whether there are image folders.

    Args:
        directories: Those of the dataset.
        below: Files in them that may be those of a dataset.
        is_other: Whether there is a dataset of another format: what it lists may be in directories, but directories of
            splits are a dataset of their own.
    """
    tabled = {file.parent for file in below if _kind(file.name) == "table"}
    for path in directories:
        if (is_other and path.name in SPLITS) or (path in tabled and path.name.lower() in SPLIT_WORDS):
            names = list_directory(path).directories
            if path in tabled:
                names = [name for name in names if f"{name.lower()}/" not in IMAGE_DIRECTORIES]
            if any(has_image(path / name) for name in names):
                return True
        elif not is_other and (path.name in SPLITS or has_image(path)):  # their reader says what is missing
            return True
    return False


def _files_in(directory: Path, depth: int = 2) -> list[Path]:
    """Files that may be those of a dataset, in a directory such as `train/` or `data/`, or in directories of that."""
    contents = list_directory(directory, _SUFFIXES)
    found = [path for name in contents.files if is_file(path := directory / name, key="dataset.root")]
    if depth > 1:
        for name in contents.directories:
            found += _files_in(directory / name, depth - 1)
    return found


def _nothing(root: Path, config: DatasetConfig, aspects: Collection[str]) -> str:
    """What to say of a directory in which no dataset is found."""
    contents = list_directory(root)
    directories = [root / name for name in contents.directories]
    tables = [root / name for name in contents.files if _kind(name) == "table" and is_file(root / name)]
    below = [file for directory in directories for file in _files_in(directory)]
    tables += [file for file in below if _kind(file.name) == "table" and _is_for_images(file)]
    if tables and (why := why_no_table(tables[0], config, aspects)):
        return f"dataset.root = {str(root)!r}: {why}"
    names = sorted([*contents.directories, *contents.files])
    holds = f"holds {', '.join(names[:5])}{', …' if len(names) > 5 else ''}" if names else "is empty"
    meant = [f"{name}/ to {split}/" for name in contents.directories if (split := meant_by_name(name)) in SPLITS]
    rename = f"; if these are its splits, rename {', '.join(meant)}" if meant else ""
    advice = next((advice for name in contents.files if (advice := _advice(name))), "")
    return (
        f"dataset.root = {str(root)!r}: {holds}; a dataset has image folders such as train/<emotion>/ and "
        "test/<emotion>/ or <emotion>/, index files train.json and test.json as EmoSet has them, a .csv, .tsv or "
        f".jsonl table, .tar, .parquet or .arrow files{rename}{advice}"
    )


def _advice(name: str) -> str:
    """What to do with a file that may hold a dataset in a form that is not read."""
    suffix = os.path.splitext(name)[1].lower()
    return f"; {shown(name)}: {_ADVICE[suffix]}" if suffix in _ADVICE else ""
