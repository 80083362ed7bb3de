"""A place that a cache can be sent to and fetched from, and a file of a cache as it travels."""

from __future__ import annotations

import contextlib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from masp.errors import DataError, InputError
from masp.files.regular import open_binary
from masp.files.sealed import CHUNK, digest_file
from masp.files.text import reason

Advance: TypeAlias = Callable[[int], object]
"""Told the bytes that have moved since it was last called; raises `StoppedEarly` if the command is to stop."""


class Unreachable(InputError):
    """The other side failed at something that it may do when it is asked again."""


class ArrivedDamaged(DataError):
    """A file is not the one that the manifest names; it may be when it is fetched again."""


@dataclass(frozen=True)
class CacheFile:
    """A file of a cache."""

    name: str
    """Relative to the cache, such as `shards/train-00000.tar`; made from the manifest, never from a listing."""
    sha256: str
    max_bytes: int
    """Nothing larger is read or written."""
    num_bytes: int | None = None
    """Its size; None where the manifest does not say, as of sidecars."""
    source: Path | bytes | None = None
    """What is sent; None for a file that is fetched."""
    receipt: CacheFile | None = None
    """Of a tar its sidecar, which is sent after it and so says that all of it has arrived."""

    def fits(self, num_bytes: int) -> bool:
        """Whether a file of this size can be this one."""
        return num_bytes <= self.max_bytes if self.num_bytes is None else num_bytes == self.num_bytes


class Place(ABC):
    """One side of a transfer. Methods that take a file may be called from several threads.

    Whatever fails is an `InputError` that names the place, and an `Unreachable` if another try may succeed.
    """

    address: str
    """As the user gave it."""
    sizes: dict[str, int]
    """Name -> bytes of the files that were there when `look` was called; may hold files that are no cache's."""
    absent: str = ""
    """Why nothing is there, where `look` found nothing at all."""

    @abstractmethod
    def look(self) -> None:
        """Find out what is there."""

    @abstractmethod
    def prepare(self) -> None:
        """Make the place, so that files can be sent to it."""

    @abstractmethod
    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of a file, in pieces of a few MB."""

    @abstractmethod
    def holds(self, file: CacheFile) -> bool:
        """Whether the file is there already, with its size and digest."""

    @abstractmethod
    def send(self, files: Sequence[CacheFile], advance: Advance) -> None:
        """Send files that have a source, in this order.

        Raises:
            DataError: A source is damaged; nothing of it is left at the place.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file."""

    @abstractmethod
    def settle(self, last: bool = False) -> None:
        """Make what was sent permanent, now or when enough of it has come together; called by one thread."""

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """Keep other processes from writing there, where the place can."""
        return contextlib.nullcontext()

    def where(self, name: str) -> str:
        """A file's name in messages."""
        return f"{self.address.rstrip('/')}/{name}"

    def read_small(self, name: str, max_bytes: int) -> bytes | None:
        """A whole file; None if it was not there when `look` was called.

        Raises:
            DataError: It is larger than `max_bytes`.
        """
        if name not in self.sizes:
            return None
        parts, size = [], self.sizes[name]
        if size <= max_bytes:
            size = 0
            for chunk in self.chunks(name):
                size += len(chunk)
                if size > max_bytes:
                    break
                parts.append(chunk)
        if size > max_bytes:
            raise DataError(f"{self.where(name)} has more than {max_bytes:,} bytes")
        return b"".join(parts)

    def digest(self, name: str, max_bytes: int) -> str | None:
        """SHA-256 of a file's content; None if it is larger than `max_bytes`."""
        digest, size = hashlib.sha256(), 0
        for chunk in self.chunks(name):
            size += len(chunk)
            if size > max_bytes:
                return None
            digest.update(chunk)
        return digest.hexdigest()


def check_source(file: CacheFile) -> Path | bytes:
    """The source of a file, whose digest is compared before it is sent.

    Raises:
        DataError: The source is missing or damaged.
    """
    assert file.source is not None
    if isinstance(file.source, Path):
        try:
            digest = digest_file(file.source)
        except OSError as error:
            raise damaged_source(file, f"cannot be read ({reason(error)})") from None
        if digest != file.sha256:
            raise damaged_source(file, "is damaged: its digest is not the one that it was written with")
    return file.source


def damaged_source(file: CacheFile, what: str) -> DataError:
    """The error for a file that cannot be sent."""
    name = file.source if isinstance(file.source, Path) else file.name
    return DataError(f"{name} {what}; `masp cache verify` says what else is damaged and how to repair it")


def source_chunks(file: CacheFile) -> Iterator[bytes]:
    """The content of a file that is sent.

    Raises:
        DataError: The source cannot be read.
    """
    if not isinstance(file.source, Path):
        assert file.source is not None
        yield file.source
        return
    try:
        with open_binary(file.source) as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    except OSError as error:
        raise damaged_source(file, f"cannot be read ({reason(error)})") from None
