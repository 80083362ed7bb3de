"""A directory that a cache is sent to or fetched from; and how a file that arrives is written."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from masp.cache.layout import LOCK, SHARDS, plain_write_errors
from masp.cache.remote.place import Advance, ArrivedDamaged, CacheFile, Place, damaged_source, source_chunks
from masp.errors import FilesInUse, InputError
from masp.files.atomic import replacing
from masp.files.locks import locked
from masp.files.regular import is_directory, open_binary
from masp.files.sealed import CHUNK, digest_file
from masp.files.text import reason


class DirectoryPlace(Place):
    """A directory."""

    def __init__(self, directory: Path, key: str):
        """Nothing is read yet.

        Args:
            directory: Directory of a cache, or of one to be.
            key: Argument of the command that names it, for messages.
        """
        self.directory, self.key, self.address, self.sizes = directory, key, str(directory), {}

    def look(self) -> None:
        """List the files of the cache's directory and of its shards."""
        if not is_directory(self.directory, key=self.key):
            if os.path.lexists(self.directory):
                raise InputError(f"{self.key}: {self.directory} is not a directory")
            self.absent, self.sizes = "does not exist", {}
            return
        self.sizes = {**_sizes(self.directory, ""), **_sizes(self.directory / SHARDS, f"{SHARDS}/")}

    def prepare(self) -> None:
        """Make the directories."""
        with plain_write_errors(self.directory, self.key):
            (self.directory / SHARDS).mkdir(parents=True, exist_ok=True)

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of a regular file."""
        try:
            with open_binary(self.directory / name) as stream:
                while chunk := stream.read(CHUNK):
                    yield chunk
        except OSError as error:
            raise InputError(f"{self.where(name)} cannot be read: {reason(error)}") from None

    def holds(self, file: CacheFile) -> bool:
        """Whether the file is there: its digest is computed anew."""
        path = self.directory / file.name
        try:
            return file.fits(path.stat().st_size) and digest_file(path) == file.sha256
        except FileNotFoundError:
            return False
        except OSError as error:
            raise InputError(f"{self.key}: {path} cannot be read: {reason(error)}") from None

    def send(self, files: Sequence[CacheFile], advance: Advance) -> None:
        """Copy files; a name is given only to a file that is whole."""
        for file in files:
            try:
                store_file(self.directory, self.key, file, source_chunks(file), advance)
            except ArrivedDamaged:
                raise damaged_source(file, "is damaged: its digest is not the one that it was written with") from None

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with plain_write_errors(self.directory, self.key):
            (self.directory / name).unlink(missing_ok=True)

    def settle(self, last: bool = False) -> None:
        """Nothing to do: a file that has its name is on the disk."""

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock that extraction holds, too.

        Raises:
            FilesInUse: Another process writes this cache.
        """
        with locked(self.directory / LOCK, [(0, 0)], key=self.key) as is_free:
            if not is_free:
                raise FilesInUse(f"{self.key}: another process is writing {self.directory}; wait until it has ended")
            yield


def store_file(directory: Path, key: str, file: CacheFile, chunks: Iterable[bytes], advance: Advance) -> None:
    """Write a file that arrives in pieces, under its name only when it is whole.

    Args:
        directory: Directory of the cache.
        key: Argument of the command that names it, for messages.
        file: What must arrive.
        chunks: Its content.
        advance: Told the bytes of each piece.

    Raises:
        ArrivedDamaged: Size or digest are not the file's; nothing has been changed.
        InputError: It cannot be written.
    """
    digest, size = hashlib.sha256(), 0
    with plain_write_errors(directory, key), replacing(directory / file.name) as temporary:
        with open(temporary, "wb") as out:
            for chunk in chunks:
                size += len(chunk)
                if size > file.max_bytes:
                    raise ArrivedDamaged(f"{file.name} arrived with more than its {file.max_bytes:,} bytes")
                digest.update(chunk)
                out.write(chunk)
                advance(len(chunk))
        if not file.fits(size):
            raise ArrivedDamaged(f"{file.name} arrived with {size:,} bytes instead of {file.num_bytes:,}")
        if digest.hexdigest() != file.sha256:
            raise ArrivedDamaged(f"{file.name} arrived damaged: its digest is not the manifest's")


def _sizes(directory: Path, prefix: str) -> dict[str, int]:
    """Names and sizes of the regular files in a directory; empty if there is none."""
    try:
        with os.scandir(directory) as entries:
            return {f"{prefix}{entry.name}": entry.stat().st_size for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise InputError(f"{directory} cannot be listed: {reason(error)}") from None
