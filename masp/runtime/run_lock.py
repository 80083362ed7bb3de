"""One run at a time in a folder: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from masp.errors import FilesInUse, InputError
from masp.files.locks import try_lock
from masp.files.text import reason

FILE = ".lock"


class RunInUse(FilesInUse):
    """Another live run works in this folder; its files, the status included, are left alone."""


class RunLock:
    """The right to write into a run's folder, held by the lead rank for all of them. Use as a context manager.

    A lock of `masp.files.locks`: what a killed run leaves blocks nobody. The file says who holds it, for the message.

    Args:
        folder: of the run; one that does not exist is nobody's.
    """

    def __init__(self, folder: Path):
        self.path = folder / FILE
        self._descriptor: int | None = None

    def take(self) -> None:
        """Take the lock if the folder is there; nothing happens if it is held already.

        Raises:
            RunInUse: another live process holds it. InputError: the folder cannot be written.
        """
        if self._descriptor is not None or not self.path.parent.is_dir():
            return
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(f"output_dir: {self.path.parent} cannot be written: {reason(error)}") from None
        try:
            free = try_lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise InputError(
                f"output_dir: {self.path} cannot be locked ({reason(error)}), so two runs could write here at once; "
                "give an output_dir on a file system with locks"
            ) from None
        if not free:
            holder = os.read(descriptor, 4096)
            os.close(descriptor)
            raise RunInUse(
                f"output_dir: {self.path.parent} is in use by {_name(holder)}; wait until it ends or stop it, or "
                "give another output_dir"
            )
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
        self._descriptor = descriptor  # any close of this file by this process would give the lock back

    def release(self) -> None:
        """Give the lock back. The file stays: removing it would let two others hold one each."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> RunLock:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _name(holder: bytes) -> str:
    """What a lock's file says about its holder, in words."""
    try:
        found = json.loads(holder)
        return f"another run, process {found['pid']} on {found['host']}"
    except (ValueError, KeyError, TypeError):
        return "another run"  # it has only just taken it
