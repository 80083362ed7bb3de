"""The ledger file of one process: read what is there, append what is missing. `ledger.py` says what for."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from masp.errors import DataError
from masp.files.atomic import write_all
from masp.files.locks import try_lock
from masp.files.regular import open_binary, open_descriptor
from masp.files.text import shown
from masp.files.typed import as_json
from masp.results.attention_maps import AttentionFile
from masp.results.ledger_format import SUFFIX, VERSION, Record, encode_line, scores_problem
from masp.results.ledgers.reader import LedgerReader, check_identity
from masp.runtime.run_directory import RunInUse

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
# File systems without locks say so with one of these.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


Problem = Callable[[Record], str | None]
"""What is wrong with a record of an expected sample, as the end of a sentence; None if it fits the evaluation."""


class Ledger:
    """The ledger file of one process, which no other process can open meanwhile.

    Entering it as a context manager opens it for appending: an incomplete last line is cut off, and an empty file gets
    its header. A name may be used again by a later call: its records stay.

    Args:
        directory: Directory of the evaluation's ledgers, made if it is missing.
        name: Name of the file without suffix, for example `rank-3`.
        identity: What is evaluated, see `Ledgers`.
        machine: What makes the features of the records that come, where they are made live: noted, never compared.

    Raises:
        RunInUse: another process has this file.
    """

    def __init__(
        self, directory: str | Path, name: str, identity: dict[str, Any], machine: dict[str, Any] | None = None
    ):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a ledger name: letters, digits, '.', '_' and '-' only")
        self.path = Path(directory) / (name + SUFFIX)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.identity, self.machine = identity, machine
        self._reader: LedgerReader | None = None
        self._file: int | None = None
        self._maps: AttentionFile | None = None
        # A POSIX lock goes when this process goes, unlike flock, which its orphaned workers would keep. It also goes
        # when the process closes any handle of the file, so it is held on a file that is opened nowhere else.
        self._lock: int | None = open_descriptor(_lock_path(self.path), os.O_RDWR | os.O_CREAT)
        if not _lock(self._lock):
            self.close()
            raise RunInUse(f"{self.path}: another process is writing it; wait for it or stop it first")

    def records(self) -> Iterator[tuple[int, Record]]:
        """What is there already, with the numbers of the lines; to be read to the end.

        Raises:
            InputError: it is the ledger of another evaluation (the field and both values are named).
            DataError: it is damaged.
        """
        reader = LedgerReader(self.path)
        for chunk in reader.chunks():
            check_identity(self.path, reader.header, as_json(self.identity))
            yield from chunk
        self._reader = reader

    def __enter__(self) -> Ledger:
        try:
            if self._reader is None:
                for _ in self.records():
                    pass
            assert self._reader is not None
            self._file = open_descriptor(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            os.ftruncate(self._file, self._reader.num_valid_bytes)
            if self._reader.header is None:
                header = {"ledger": VERSION, "identity": self.identity}
                self._write(encode_line(header | ({} if self.machine is None else {"machine": self.machine})))
            elif self.machine is not None and self._reader.machines[-1:] != [self.machine]:
                self._write(encode_line({"machine": self.machine}))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def append(
        self, *records: Record, maps: Sequence[np.ndarray | None] = (), problem: Problem = scores_problem
    ) -> None:
        """Add records and hand them to the operating system before returning: they survive a kill of this process.

        Args:
            records: Of samples that no ledger has a record of.
            maps: Attention maps of each, `[A, height, width]`, or None; empty if none were asked for. They are written
                first.
            problem: What is wrong with a record, beside numbers that cannot be those of a model.

        Raises:
            DataError: a number is not finite, or a log-likelihood above 0, or there is a `problem`. No record is
                written.
        """
        _refuse(records, scores_problem)
        if maps:
            if self._maps is None:
                self._maps = AttentionFile(self.path.parent, self.path.name.removesuffix(SUFFIX))
            places = [None if weights is None else self._maps.append(weights) for weights in maps]
            records = tuple(replace(record, attention=place) for record, place in zip(records, places, strict=True))
        _refuse(records, problem)
        self._write(b"".join(encode_line(record.to_json()) for record in records))

    def close(self) -> None:
        """Write everything to the disk and let go of the files. Closing twice is fine."""
        if self._maps is not None:
            self._maps.close()
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
        if self._lock is not None:
            os.close(self._lock)
        self._file = self._lock = self._maps = None

    def _write(self, data: bytes) -> None:
        assert self._file is not None, "the ledger is not open"
        write_all(self._file, data)


def _refuse(records: Sequence[Record], problem: Problem) -> None:
    for record in records:
        if (what := problem(record)) is not None:
            raise DataError(f"sample {shown(record.sample_key)}: its record {what}; it is not written")


def is_being_written(ledger: Path) -> bool:
    """Whether another process has a ledger open; not to be asked of one that this process has open.

    Raises:
        OSError: the lock cannot be examined; a file system without locks says no.
    """
    try:
        with open_binary(_lock_path(ledger)) as file:
            return not try_lock(file.fileno(), shared=True)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False


def _lock_path(ledger: Path) -> Path:
    return ledger.with_name(f".{ledger.stem}.lock")


def _lock(file: int, wait: bool = False) -> bool:
    """Take a lock; False if another process has it."""
    try:
        return try_lock(file, wait=wait)
    except OSError as error:
        # Without locks at all the evaluation is still right: files have one writer, and a merge ends in a rename.
        if error.errno not in _NO_LOCKS:
            raise
    return True


@contextlib.contextmanager
def directory_lock(directory: Path, name: str = ".lock") -> Iterator[None]:
    """Hold a lock of the directory; other processes wait."""
    file = open_descriptor(directory / name, os.O_RDWR | os.O_CREAT)
    try:
        _lock(file, wait=True)
        yield
    finally:
        os.close(file)
