"""Answers on their way: a sealed file per aspect and shard of the cache, until an aspect has those of all shards.

`annotations/.parts/<aspect>.json` says what the answers depend on; whoever begins an aspect writes it, and all others
must agree with it. The parts are in `annotations/.parts/<aspect>-<digest of that>/<shard>.json`. They are kept: after
images were added to the cache, only the new shards have to be asked.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from masp.cache.annotations.manifest import (
    DIRECTORY,
    StoredAspect,
    answers_path,
    read_stored,
    write_stored,
)
from masp.cache.annotations.source import AnswerSource, check_source
from masp.cache.annotations.table import StoredAnswer
from masp.errors import DataError
from masp.files.atomic import write_bytes
from masp.files.fields import Sha256
from masp.files.sealed import create_sealed, digest_of, read_sealed, sealed

PARTS = ".parts"
MAX_PART_BYTES = 4 << 30
"""Size limit; a part has about 150 bytes per image."""


@dataclass(frozen=True)
class Part:
    """The answers to one aspect of the images in one shard."""

    shard: str
    wanted: Sha256
    """See `wanted_digest`."""
    source: Sha256
    """Digest of what they depend on."""
    answers: tuple[StoredAnswer, ...]


def wanted_digest(tar: str, keys: Sequence[str], given: Sequence[str | None]) -> str:
    """What a part must be about.

    Args:
        tar: SHA-256 of the shard.
        keys: Images of the shard that lack the aspect in the cache.
        given: Their answers in the dataset's own annotations, where it has some.
    """
    return digest_of([tar, list(keys), list(given)])


def agree_on_source(cache: Path, aspect: str, source: AnswerSource) -> None:
    """Write what the answers to an aspect depend on, or check that what is there is the same.

    Raises:
        InputError: Answers are there or on their way that depend on something else; names the field and both values.
        OSError: It cannot be written.
    """
    path = cache / DIRECTORY / PARTS / f"{aspect}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = read_sealed(AnswerSource, path)
    if found is None and create_sealed(path, source):
        return
    found = found or read_sealed(AnswerSource, path)
    if found is None:
        raise DataError(f"{path} appeared and went; is another process deleting this directory?")
    what = f"{cache / DIRECTORY}: aspect {aspect}"
    check_source(
        found, source, what, f"give the old value, or forget the answers with `masp annotate --forget {aspect}`"
    )


def part_path(cache: Path, aspect: str, source: AnswerSource, shard: str) -> Path:
    """The file of a part."""
    return cache / DIRECTORY / PARTS / f"{aspect}-{source.digest[:16]}" / f"{shard}.json"


def write_part(cache: Path, aspect: str, source: AnswerSource, part: Part) -> None:
    """Write a part to a temporary name, then rename it.

    Raises:
        OSError: It cannot be written.
    """
    path = part_path(cache, aspect, source, part.shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, sealed(part))


def read_part(cache: Path, aspect: str, source: AnswerSource, shard: str, wanted: str) -> Part | None:
    """A finished part; None if the shard has to be asked (again): no part, a damaged one, or one about other images."""
    try:
        part = read_sealed(Part, part_path(cache, aspect, source, shard), max_bytes=MAX_PART_BYTES)
    except DataError:
        return None
    if part is None or (part.shard, part.wanted, part.source) != (shard, wanted, source.digest):
        return None
    return part


def forget(cache: Path, aspects: Sequence[str]) -> list[str]:
    """Delete the stored answers to some aspects and what is on its way; returns those that had any.

    The caller holds the lock of the directory.

    Raises:
        OSError: Something cannot be deleted.
    """
    stored: dict[str, StoredAspect] = dict(read_stored(cache))
    found = []
    for aspect in aspects:
        parts = cache / DIRECTORY / PARTS
        begun = parts / f"{aspect}.json"
        if begun.exists() or aspect in stored:
            found.append(aspect)
        if stored.pop(aspect, None) is not None:  # first, so that nothing is listed that is gone
            write_stored(cache, stored)
        answers_path(cache, aspect).unlink(missing_ok=True)
        begun.unlink(missing_ok=True)
        for directory in parts.glob(f"{aspect}-*"):
            if len(directory.name) == len(aspect) + 17:
                shutil.rmtree(directory)
    return found
