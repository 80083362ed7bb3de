"""One run at a time in a run directory: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from masp.errors import DataError, FilesInUse, InputError, one_line
from masp.files.jsonl import write_all
from masp.files.locks import try_lock
from masp.files.regular import is_directory
from masp.files.text import reason, shortened
from masp.files.typed import decode

FILE = ".lock"


class RunInUse(FilesInUse):
    """Another live run uses this directory; its files, the status included, are left alone."""


@dataclass(frozen=True)
class _Holder:
    """Content of the lock file: the process that holds the lock."""

    host: str
    pid: int


class RunLock:
    """The right to write into a run directory, held by rank 0 for all ranks. Use as a context manager.

    The lock is one of `masp.files.locks`, so a killed run leaves nothing locked. The file names the holder, for the
    error message.

    Args:
        directory: Run directory; as long as it does not exist, `take` does nothing.
    """

    def __init__(self, directory: Path):
        self.path = directory / FILE
        self._descriptor: int | None = None

    def take(self) -> None:
        """Take the lock if the directory exists; nothing happens if it is held already.

        Raises:
            RunInUse: Another live process holds it.
            InputError: The lock file cannot be written or locked.
        """
        if self._descriptor is not None or not is_directory(self.path.parent, key="output_dir"):
            return
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._not_written(error) from None
        try:
            self._lock(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor  # if this process closed any other descriptor of the file, the lock would end

    def _lock(self, descriptor: int) -> None:
        try:
            free = try_lock(descriptor)
        except OSError as error:
            raise InputError(
                f"output_dir: {self.path} cannot be locked ({reason(error)}), so two runs could write here at once; "
                "give an output_dir on a file system with locks"
            ) from None
        if not free:
            raise RunInUse(
                f"output_dir: {self.path.parent} is in use by {self._described(os.read(descriptor, 4096))}; wait until "
                "it ends or stop it, or give another output_dir"
            )
        holder = _Holder(socket.gethostname(), os.getpid())
        try:
            os.ftruncate(descriptor, 0)
            write_all(descriptor, json.dumps(dataclasses.asdict(holder)).encode())
        except OSError as error:
            raise self._not_written(error) from None

    def _not_written(self, error: OSError) -> InputError:
        return InputError(f"output_dir: {self.path} cannot be written: {reason(error)}")

    def _described(self, content: bytes) -> str:
        """Who holds the lock, according to its file."""
        try:
            holder = decode(_Holder, content, str(self.path))
        except DataError:  # its holder has only just taken it, or a person wrote into it; it is locked all the same
            return "another run"
        return f"another run, process {holder.pid} on {one_line(shortened(holder.host))}"

    def release(self) -> None:
        """Release the lock. The file stays: if it were removed, two other runs could each lock a file of that name."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> RunLock:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
