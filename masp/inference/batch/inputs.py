"""From what the command line names to a list of images: files, directories, patterns, tars, parquet, standard input.

Everything is checked here, before the VLM is loaded, but for the images themselves.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from masp.data.image_files.paths import is_url
from masp.data.sources.columns import image_column
from masp.data.sources.containers.tar_samples import all_members
from masp.data.sources.folders import is_image_name, is_litter, list_directory
from masp.errors import InputError
from masp.files.regular import exists, is_directory
from masp.files.text import reason, shown
from masp.inference.batch.image_list import CellBlock, ImageList, ImageLister, Names, TarBlock, sorted_names

if TYPE_CHECKING:  # they need pyarrow
    from masp.data.sources.containers.arrow import ArrowSource
    from masp.data.sources.containers.parquet import ParquetSource

LOG = logging.getLogger(__name__)

STDIN = "-"
_CONTAINERS = (".tar", ".parquet", ".arrow")
_PACKED = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_PATTERN = re.compile(r"[*?\[]")
_CHUNK = 1 << 20
_MAX_PATH_BYTES = 1 << 16
_NUM_TRIED = 100
"""The first paths of standard input, of which one must exist."""
_MAX_NAMED = 10
"""Inputs that an error names."""


class _Unusable(Exception):
    """What is wrong with one of the inputs; the others are looked at all the same."""


@dataclass
class _Ignored:
    """Files that are passed over in what one argument names."""

    count: int = 0
    example: str = ""

    def add(self, path: str) -> None:
        self.count += 1
        self.example = self.example or path


def list_images(
    inputs: Sequence[str], image: str | None = None, stdin: BinaryIO | None = None, null: bool = False
) -> ImageList:
    """List the images that inputs name, in their order, each once.

    Args:
        inputs: Image files; directories, which are searched with all below them, in the order of their names; patterns
            such as `photos/**/*.jpg`; tars, parquet and arrow files; `-` for paths of such files on standard input.
        image: Column of images in parquet and arrow files that have it; otherwise it is found.
        stdin: Standard input; None where it is closed.
        null: Whether paths on standard input end with a NUL byte instead of a line end.

    Raises:
        InputError: An input does not exist, holds no image, or is damaged.
    """
    lister, problems = ImageLister(), []
    for text in inputs:
        try:
            if text == STDIN:
                _add_stdin(lister, image, stdin, null)
            else:
                _add(lister, text, image)
        except _Unusable as problem:
            problems.append(f"{text} ({problem})")
    if problems:
        more = f", … ({len(problems) - _MAX_NAMED} more)" if problems[_MAX_NAMED:] else ""
        named = ", ".join(problems[:_MAX_NAMED]) + more
        raise InputError(f"{len(problems)} of {len(inputs)} inputs cannot be read: {named}")
    return lister.images()


def _add(lister: ImageLister, text: str, image: str | None) -> None:
    if is_url(text):
        raise _Unusable("a URL; download the images, or their dataset, first")
    try:
        if not text:
            raise _Unusable("empty")
        if is_directory(Path(text)):
            _add_directory(lister, text)
        elif exists(Path(text)):
            _add_file(lister, text, image)
        elif _PATTERN.search(text):
            _add_matches(lister, text, image)
        else:
            raise _Unusable("file not found")
    except OSError as error:
        raise _Unusable(reason(error)) from None


def _add_file(lister: ImageLister, path: str, image: str | None) -> None:
    """Add an image file, or the images in a larger one."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in _PACKED:
        raise _Unusable("unpack it first")
    if suffix not in _CONTAINERS:
        lister.add_path(path)
    elif lister.is_new(path):
        (_add_tar if suffix == ".tar" else _add_rows)(lister, path, image)


def _add_directory(lister: ImageLister, directory: str) -> None:
    """Add the images in a directory and in all below it: its own first, then those of each directory in it."""
    unread, been, ignored, count = [directory], set(), _Ignored(), 0
    while unread:
        here = unread.pop()
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in been:  # links may lead in a circle
            continue
        been.add((status.st_dev, status.st_ino))
        contents = list_directory(Path(here))
        names = [name for name in contents.files if is_image_name(name)]
        for name in (*contents.hidden, *(name for name in contents.files if not is_image_name(name))):
            ignored.add(os.path.join(here, name))
        lister.add_paths((os.path.join(here, name) for name in names), here)
        count += len(names)
        unread += (os.path.join(here, name) for name in reversed(contents.directories))
    if not count:
        example = f", such as {ignored.example}" if ignored.count else ""
        raise _Unusable(f"a directory without images; {ignored.count:,} other files{example}{_advice(ignored)}")
    _note(directory, ignored, "hidden, or not images by their names")


def _advice(ignored: _Ignored) -> str:
    suffix = os.path.splitext(ignored.example)[1].lower()
    return f"; name such files as '{os.path.dirname(ignored.example)}/*{suffix}'" if suffix in _CONTAINERS else ""


def _add_matches(lister: ImageLister, pattern: str, image: str | None) -> None:
    """Add the files that a pattern names, in the order of their paths; directories are not searched."""
    names, ignored, count = sorted_names(glob.iglob(pattern, recursive=True)), _Ignored(), 0
    for number in range(len(names)):
        path = names[number]
        if os.path.isdir(path):
            continue
        if is_image_name(path):
            lister.add_path(path)
        elif os.path.splitext(path)[1].lower() in _CONTAINERS:
            _add_file(lister, path, image)
        else:
            ignored.add(path)
            continue
        count += 1
    if not count:
        raise _Unusable("no image file, tar, parquet or arrow file matches this pattern")
    _note(pattern, ignored, "not images by their names")


def _add_tar(lister: ImageLister, path: str, _: str | None) -> None:
    names, offsets, sizes, ignored = Names(), array("q"), array("q"), _Ignored()
    version = _version(path)
    for member in all_members(path):
        name = member.name.rpartition("/")[2]
        if member.kind == "file" and is_image_name(name) and not is_litter(name):
            names.append(member.name)
            offsets.append(member.offset)
            sizes.append(member.size)
        elif member.kind != "directory":
            ignored.add(f"{path}: {member.name}")
    if not len(names):
        raise _Unusable(f"a tar without images; {ignored.count:,} other members")
    lister.add(TarBlock(path, version, names, offsets, sizes))
    _note(path, ignored, "hidden, or not image files by their names")


def _add_rows(lister: ImageLister, path: str, image: str | None) -> None:
    """Add the images in a column of a parquet or arrow file, or those whose paths it holds."""
    version, source = _version(path), _source(path)
    header = source.header()
    column = image_column(header, image)
    if column is None:
        there = ", ".join(header.columns) or "none"
        raise _Unusable(
            f"no column seems to hold the images; name it, as in dataset.columns.image={header.columns[0]}; there are "
            f"{there}"
            if header.columns
            else "it has no columns"
        )
    places = source.places(column)
    if places is None:
        paths = source.read([], column, None).paths
        assert paths is not None, "a column of paths"
        for each in paths:
            lister.add_path(each)
    else:
        count = len(places.row)
        lister.add(CellBlock(path, version, column, places, count))


def _source(path: str) -> ParquetSource | ArrowSource:
    """A parquet or arrow file as a source of rows."""
    if path.lower().endswith(".parquet"):
        from masp.data.sources.containers.parquet import ParquetSource

        return ParquetSource(Path(path).parent, [Path(path)])
    from masp.data.sources.containers.arrow import ArrowSource

    return ArrowSource(Path(path).parent, [Path(path)])


def _version(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _add_stdin(lister: ImageLister, image: str | None, stdin: BinaryIO | None, null: bool) -> None:
    if stdin is None:
        raise _Unusable("standard input is closed")
    first: list[str] = []
    for path in _paths_of(stdin, null):
        if os.path.splitext(path)[1].lower() in _CONTAINERS:
            _add_file(lister, path, image)
        else:
            lister.add_path(path)
        if len(first) < _NUM_TRIED:
            first.append(path)
    if not first:
        raise _Unusable("no path on standard input")
    if not any(map(os.path.lexists, first)):
        raise _Unusable(f"of its paths, none of the first {len(first)} exists, such as {shown(first[0])}")


def _paths_of(stdin: BinaryIO, null: bool) -> Iterator[str]:
    """The paths on standard input."""
    end, rest = b"\0" if null else b"\n", b""
    while True:
        try:
            chunk = stdin.read(_CHUNK)
        except (OSError, ValueError) as error:
            raise _Unusable(f"standard input cannot be read: {reason(error)}") from None
        *whole, rest = (rest + chunk).split(end)
        if not chunk:
            whole, rest = [rest], b""
        for path in whole:
            path = path if null else path.removesuffix(b"\r")
            if b"\0" in path:
                raise _Unusable("holds NUL bytes; -0 takes paths that end with one")
            if path:
                yield os.fsdecode(path)
        if len(rest) > _MAX_PATH_BYTES:
            raise _Unusable(f"holds a path of more than {_MAX_PATH_BYTES:,} bytes; paths come one per line")
        if not chunk:
            return


def _note(what: str, ignored: _Ignored, why: str) -> None:
    if ignored.count:
        files = "1 file is" if ignored.count == 1 else f"{ignored.count:,} files are"
        LOG.info("%s: %s %s: ignored, such as %s", what, files, why, ignored.example)
