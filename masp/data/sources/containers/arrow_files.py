"""What parquet and arrow files have in common: columns that are the same in all files, and a column of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masp.data.findings import Finding
from masp.data.image_files.paths import INSIDE, path_inside, why_not_inside
from masp.data.sources.containers.arrow_columns import READABLE, label_names
from masp.data.sources.containers.listed_files import ListedFile
from masp.data.sources.index_files import FilesOnDisk, missing_images
from masp.data.sources.rows import Column, Header
from masp.errors import InputError
from masp.files.json_text import parse_json
from masp.files.text import all_lines, shown

HUGGING_FACE_KEY = b"huggingface"
"""Where files that `datasets` writes keep what it knows of their columns."""
_MAX_METADATA = 64 << 20
_LISTS = "lists of "


@dataclass(frozen=True)
class FileColumns:
    """What a file says of its columns."""

    listed: ListedFile
    kinds: dict[str, str]
    """Column -> kind of its values, see `arrow_columns.kind_of`."""
    labels: dict[str, tuple[str, ...]]
    """Column -> names of the numbers in it."""


def labels_in(metadata: dict[bytes, bytes] | None, path: str) -> dict[str, tuple[str, ...]]:
    """The names of labels in the metadata of a file's schema.

    Raises:
        InputError: They are damaged.
    """
    text = (metadata or {}).get(HUGGING_FACE_KEY)
    if text is None:
        return {}
    try:
        if len(text) > _MAX_METADATA:
            raise ValueError(f"{len(text):,} bytes")
        found = parse_json(text)
    except ValueError as error:
        raise InputError(f"{path}: its metadata of the key 'huggingface' are damaged: {all_lines(error)}") from None
    info = found.get("info") if isinstance(found, dict) else None
    return label_names(info.get("features") if isinstance(info, dict) else None, path)


def common_columns(files: Sequence[FileColumns]) -> Header:
    """The columns that all files have.

    Args:
        files: At least one.

    Raises:
        InputError: They do not have the same columns, kinds of values or names of labels.
    """
    first = files[0]
    kinds = dict(first.kinds)
    for file in files[1:]:
        path = file.listed.path
        for name in {**kinds, **file.kinds}:
            if name not in file.kinds or name not in kinds:
                has, lacks = (path, first.listed.path) if name in file.kinds else (first.listed.path, path)
                raise InputError(
                    f"{lacks}: lacks the column {shown(name)}, which {has} has; all files must have the same"
                )
            if kinds[name] == "nothing":
                kinds[name] = file.kinds[name]
            elif file.kinds[name] not in (kinds[name], "nothing"):
                raise InputError(
                    f"{path}: column {shown(name)} has {file.kinds[name]}, in {first.listed.path} and others "
                    f"{kinds[name]}; all files must have the same"
                )
            if file.labels.get(name) != first.labels.get(name):
                raise InputError(
                    f"{path}: the names of the numbers in column {shown(name)} are {shown(file.labels.get(name))}, in "
                    f"{first.listed.path} {shown(first.labels.get(name))}; all files must have the same"
                )
    images = tuple(name for name, kind in kinds.items() if kind in ("images", "bytes"))
    return Header(tuple(kinds), images, label_names=first.labels)


def has_paths(files: Sequence[FileColumns], image: str | None) -> bool:
    """Whether a column of images holds paths rather than bytes.

    Raises:
        InputError: It holds neither.
    """
    found = [file.kinds[image] for file in files] if image is not None else []
    kind = next((kind for kind in found if kind != "nothing"), "text")
    if image is None or kind not in ("text", "images", "bytes"):
        what = f"column {shown(image)} has {kind}" if image is not None else "no column is named"
        raise InputError(
            f"{files[0].listed.path}: {what}: the column of the images must have bytes, structs of bytes and path, or "
            "paths as text"
        )
    return kind == "text"


def check_readable(files: Sequence[FileColumns], columns: Iterable[str]) -> None:
    """Check that columns have values that `arrow_columns.column_of` reads.

    Raises:
        InputError: One has not; the message names it.
    """
    for file in files:
        for name in columns:
            kind = file.kinds[name]
            while kind.startswith(_LISTS):
                kind = kind.removeprefix(_LISTS)
            if kind not in READABLE:
                raise InputError(
                    f"{file.listed.path}: column {shown(name)} has {file.kinds[name]}; must have text, numbers, "
                    "booleans or lists of them"
                )


def image_paths(column: Column, name: str, where: Callable[[int], str], place: str = "") -> list[str]:
    """The paths that a column names, relative to the root.

    Args:
        column: Paths.
        name: Name of the column, for errors.
        where: Names a row in errors.
        place: Directory that the paths are relative to, itself relative to the root, with a slash at its end.

    Raises:
        InputError: A row has none, or one that leaves the directory.
    """
    texts = [path_inside(value, place=place) if isinstance(value, str) else None for value in column.values]
    is_bad = np.array([text is None for text in texts] + [True])  # the last one is that of code -1
    if (bad := np.flatnonzero(is_bad[column.codes])).size:
        row = int(bad[0])
        value = column[row]
        why = why_not_inside(value) if isinstance(value, str) else INSIDE
        raise InputError(f"{where(row)}: column {shown(name)} = {shown(value)}: {why}")
    return [text for code in column.codes.tolist() if (text := texts[code]) is not None]


def images_on_disk(root: str, paths: Sequence[str]) -> tuple[list[str], tuple[Finding, ...]]:
    """The files that paths name, whose names on disk may be in another Unicode form, and which do not exist.

    Args:
        root: Directory of the dataset, with a slash at its end.
        paths: Paths relative to it.
    """
    on_disk = FilesOnDisk(Path(root))
    found = [on_disk.find(path) for path in paths]
    missing = [path for path, there in zip(paths, found, strict=True) if there is None]
    files = [f"{root}{there or path}" for path, there in zip(paths, found, strict=True)]
    return files, missing_images(missing, len(paths))


class RowNames:
    """Names the rows of several files for errors: `a.parquet row 17`, where the first row is row 0."""

    def __init__(self, paths: Sequence[str], counts: Sequence[int]):
        """Files and the numbers of their rows."""
        self.paths, self.starts = paths, np.cumsum([0, *counts])

    def __call__(self, row: int) -> str:
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"{self.paths[number]} row {row - int(self.starts[number])}"


def shifted(where: Callable[[int], str], first: int) -> Callable[[int], str]:
    """What names the rows from `first` on, as from 0 on."""
    return lambda row: where(row + first)
