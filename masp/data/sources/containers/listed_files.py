"""The files that a source of rows consists of: their names below the dataset's directory, opening them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from masp.data.findings import Finding, examples
from masp.data.sample import directory_prefix
from masp.data.sources.rows import Column
from masp.data.sources.split_words import split_word
from masp.errors import InputError
from masp.files.regular import open_binary
from masp.files.text import reason, shown

MAX_TEXT_BYTES = 1 << 20
"""Size limit of a value that says something of an image."""

_NUMBERED = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<total>\d{5})")
_POINTER = b"version https://git-lfs"
_COMPRESSED = {b"\x1f\x8b": "gzip -d", b"\x28\xb5\x2f\xfd": "zstd -d", b"BZh": "bzip2 -d", b"\xfd7zXZ\x00": "xz -d"}


@dataclass(frozen=True)
class ListedFile:
    """A file of a source."""

    path: str
    """As it is opened."""

    name: str
    """Path relative to the root, without the extension: what the names of its images start with."""


def listed_files(root: Path, files: Sequence[Path], extension: str) -> list[ListedFile]:
    """The files of a source, in their order.

    Args:
        root: Directory of the dataset.
        files: Paths of files in it or below it.
        extension: Extension that their names have, such as `.parquet`, in any case.

    Raises:
        InputError: There is none, one is not below the root, or two have the same name but for the extension's case.
    """
    if not files:
        raise InputError(f"{root}: holds no file NAME{extension}")
    prefix = directory_prefix(root)
    found: dict[str, ListedFile] = {}
    for path in map(str, files):
        if not path.startswith(prefix) or ".." in path[len(prefix) :].split(os.sep):
            raise InputError(f"{path}: must be a file below {root}, the dataset's directory")
        name = path[len(prefix) :]
        if name.lower().endswith(extension):
            name = name[: -len(extension)]
        if other := found.get(name):
            raise InputError(f"{path}: its images would be called like those of {other.path}; rename one of the files")
        found[name] = ListedFile(path, name)
    return list(found.values())


def missing_files(files: Sequence[ListedFile]) -> tuple[Finding, ...]:
    """What is said of files whose names count more of them than there are: `train-00000-of-00005` alone."""
    numbers: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if found := _NUMBERED.fullmatch(file.name):
            numbers.setdefault((found["name"], int(found["total"])), set()).add(int(found["number"]))
    missing = [
        f"{name}-{number:05d}-of-{total:05d}"
        for (name, total), present in numbers.items()
        for number in sorted(set(range(total)) - present)
    ]
    if not missing:
        return ()
    count = len(missing)
    text = f"by the names of the files, {count:,} more should be there; the images in them are not used"
    return (Finding("missing", text, count, examples(missing[:3]), serious=True),)


def open_listed(path: str | Path) -> BinaryIO:
    """Open a file of a source.

    Raises:
        InputError: It does not exist, is not a regular file, is empty, or cannot be read.
    """
    try:
        file = open_binary(path)
    except IsADirectoryError:
        raise InputError(f"{path}: cannot be read: not a regular file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None
    if not os.fstat(file.fileno()).st_size:
        file.close()
        raise InputError(f"{path}: is empty")
    return file


def not_of_this_kind(file: BinaryIO, path: str | Path, what: str) -> InputError:
    """What to say of a file that does not start as it should.

    Args:
        file: The open file.
        path: Its path.
        what: What it should be, such as `a parquet file`.
    """
    start = os.pread(file.fileno(), len(_POINTER), 0)
    if start == _POINTER:
        return InputError(f"{path}: is the pointer of Git LFS to a file, not the file; fetch it with `git lfs pull`")
    for magic, command in _COMPRESSED.items():
        if start.startswith(magic):
            return InputError(f"{path}: is compressed; decompress it with `{command}`, so that images are found in it")
    return InputError(f"{path}: is not {what} (it starts with {shown(start[:8])})")


def split_names(words: Sequence[str | None], num_rows: Sequence[int]) -> Column | None:
    """What is said of the split of each file, for each of its rows, as `Rows.split_names` has it.

    Args:
        words: Per file its word, or None.
        num_rows: Per file the number of its rows.

    Returns:
        The column of all rows of all files, in order; None if nothing is said of any file.
    """
    of_files = Column.of(words)
    if not of_files.values:
        return None
    return Column(np.repeat(of_files.codes, np.asarray(num_rows, dtype=np.int64)), of_files.values)


def named_splits(files: Sequence[ListedFile], num_rows: Sequence[int]) -> Column | None:
    """What the names of files and their directories say of the split of each row; None if they say nothing."""
    return split_names([split_word(file.name) for file in files], num_rows)
