"""`annotations/_manifest.json`: which aspects have stored answers, in which files, and what these depend on.

Names in the directory that begin with `_` or `.` are not data: pyarrow and pandas read the directory as one table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from masp.cache.annotations.source import AnswerSource
from masp.errors import DataError
from masp.files.atomic import write_bytes
from masp.files.fields import Count, Sha256, Size
from masp.files.sealed import read_sealed, sealed

DIRECTORY = "annotations"
"""Directory in that of the cache."""
MANIFEST = "_manifest.json"
LOCK = ".lock"
FORMAT_VERSION: Literal[1] = 1

Origin = Literal["vlm", "pixels", "dataset"]
"""Who gave a stored answer: the VLM, the image's pixels, or people, in the dataset's own annotations."""
ORIGINS: tuple[Origin, ...] = get_args(Origin)


@dataclass(frozen=True)
class StoredAspect:
    """The stored answers to an aspect."""

    index: Sha256
    """Digest of the index of the cache that they were given for."""
    wanted: Sha256
    """Digest over what every shard of it wanted, see `wanted_digest`."""
    bytes: Size
    """Of the parquet file."""
    sha256: Sha256
    num_answers: dict[Origin, Count]
    """Answers by who gave them."""
    num_absent: Count
    """Images of which the VLM said that they do not have the aspect, or gave no usable answer."""
    source: AnswerSource


@dataclass(frozen=True)
class StoredAnswers:
    """Everything that is stored."""

    format_version: Literal[1]
    aspects: dict[str, StoredAspect]


def annotations_directory(cache: Path) -> Path:
    """The directory of stored answers of a cache."""
    return cache / DIRECTORY


def answers_path(cache: Path, aspect: str) -> Path:
    """The file of the stored answers to an aspect."""
    return cache / DIRECTORY / f"{aspect}.parquet"


def again(aspect: str) -> str:
    """What to do about stored answers that are damaged."""
    return f"`masp annotate --forget {aspect}` and then `masp annotate` make them again"


def read_stored(cache: Path) -> Mapping[str, StoredAspect]:
    """Aspect -> its stored answers; none where nothing is stored.

    Raises:
        DataError: Damaged, or of another version.
    """
    path = cache / DIRECTORY / MANIFEST
    try:
        found = read_sealed(StoredAnswers, path)
    except DataError as error:
        raise DataError(
            f"{error}; delete {cache / DIRECTORY} and run `masp annotate` again: answers are not used unverified"
        ) from None
    return {} if found is None else found.aspects


def write_stored(cache: Path, aspects: Mapping[str, StoredAspect]) -> None:
    """Replace the manifest, in one step.

    Raises:
        OSError: It cannot be written.
    """
    ordered = {name: aspects[name] for name in sorted(aspects)}
    write_bytes(cache / DIRECTORY / MANIFEST, sealed(StoredAnswers(FORMAT_VERSION, ordered)))
