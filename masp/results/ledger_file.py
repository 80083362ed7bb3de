"""The ledger file of one process: read what is there, append what is missing. `ledger.py` says what for."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from masp.errors import DataError, InputError
from masp.files.atomic import write_all
from masp.files.locks import try_lock
from masp.files.text import shortened
from masp.files.typed import decode
from masp.results.attention_maps import AttentionFile
from masp.results.ledger_format import SUFFIX, VERSION, Header, Record, ledger_files, read_ledger
from masp.runtime.run_directory import RunInUse

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
# File systems without locks say so with one of these.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Tail:
    """The keys in a ledger that another process may be writing."""

    def __init__(self, path: Path):
        self.path = path
        self._inode, self._offset = 0, 0
        self._keys: set[str] = set()

    def _start_over(self, inode: int) -> None:
        self._inode, self._offset, self._keys = inode, 0, set()

    def keys(self) -> set[str]:
        """As of now. Lines that are not valid records are left to whoever merges, who names them."""
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:  # another file, or one that was cut
                    self._start_over(status.st_ino)
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:  # deleted since the directory was listed: its samples are missing again
            self._start_over(inode=0)
            return self._keys
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._keys.update(key for line in whole.split(b"\n") if (key := _key_in(line)) is not None)
        return self._keys


def _key_in(line: bytes) -> str | None:
    """The sample that a line is the record of; None if it is not a valid record."""
    if not line.startswith(b'{"sample_key":'):
        return None
    try:
        return decode(Record, line, "", unique_keys=False, surrogates=True).sample_key
    except DataError:
        return None


class Ledger:
    """The ledger file of one process, open for appending. Use it as a context manager.

    Args:
        directory: Directory of the evaluation's ledgers, made if it is missing.
        name: Name of the file without suffix, for example `rank-3`. A name may be used again by a later call: its
            records stay, and an incomplete last line is cut off.
        identity: What is evaluated, see `Ledgers`.
        machine: What makes the features of the records that come, where they are made live: noted, never compared.

    Raises:
        InputError: the directory holds a ledger of another evaluation (the field and both values are named).
        RunInUse: another process is writing this file.
        DataError: a ledger in the directory is damaged.
    """

    def __init__(
        self, directory: str | Path, name: str, identity: dict[str, Any], machine: dict[str, Any] | None = None
    ):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a ledger name: letters, digits, '.', '_' and '-' only")
        self.path = Path(directory) / (name + SUFFIX)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: int | None = None
        self._lock: int | None = None
        self._maps: AttentionFile | None = None
        try:
            # A POSIX lock goes when this process goes, unlike flock, which its orphaned workers would keep. It also
            # goes when the process closes any handle of the file, so it is held on a file that is opened nowhere else.
            self._lock = os.open(self.path.parent / f".{name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
            if not _lock(self._lock):
                raise RunInUse(f"{self.path}: another process is writing it; wait for it or stop it first")
            for path in ledger_files(self.path.parent):
                check_identity(path, read_ledger(path).header, as_json(identity))
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            contents = read_ledger(self.path)
            os.ftruncate(self._file, contents.num_valid_bytes)
            if contents.header is None:
                self._write_line(
                    {"ledger": VERSION, "identity": identity} | ({} if machine is None else {"machine": machine})
                )
            elif machine is not None and contents.machines[-1:] != [machine]:
                self._write_line({"machine": machine})
            self._own = {record.sample_key for record in contents.records}
            self._others: dict[Path, Tail] = {}
        except BaseException:
            self.close()
            raise

    def append(self, record: Record) -> None:
        """Add one record and hand it to the operating system before returning: it survives a kill of this process.

        Raises:
            DataError: a score is not finite.
        """
        try:
            record.check_finite()
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from None
        self._write_line(record.to_json())
        self._own.add(record.sample_key)

    def append_missing(self, records: Sequence[Record], maps: Sequence[np.ndarray] = ()) -> None:
        """Append those records whose samples no ledger of the directory has, this one included.

        Ranks of another call, which cut the samples differently, may have scored the same ones meanwhile. Looking and
        writing are one step under the directory's lock, so that a sample never gets two records.

        Args:
            records: See `append`.
            maps: Attention maps of each, `[A, height, width]`; empty if none were asked for. They are written first.

        Raises:
            DataError: see `append`.
        """
        if maps:
            if self._maps is None:
                self._maps = AttentionFile(self.path.parent, self.path.name.removesuffix(SUFFIX))
            places = [self._maps.append(weights) for weights in maps]
            records = [replace(record, attention=place) for record, place in zip(records, places, strict=True)]
        with directory_lock(self.path.parent):
            taken = self.recorded()
            for record in records:
                if record.sample_key not in taken:
                    self.append(record)
            if self._others and self._file is not None:  # on a network file system, others see what is on the disk
                os.fdatasync(self._file)

    def recorded(self) -> set[str]:
        """Keys of the samples that any ledger of the directory has now; reads only what came since the last call."""
        others = [path for path in ledger_files(self.path.parent) if path != self.path]
        self._others = {path: self._others.get(path) or Tail(path) for path in others}
        return self._own.union(*(tail.keys() for tail in self._others.values()))

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

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write_line(self, value: Any) -> None:
        assert self._file is not None, "the ledger is closed"
        write_all(self._file, (json.dumps(value, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii"))


def as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity as JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(identity))


def check_identity(path: Path, header: Header | None, ours: dict[str, Any]) -> None:
    if header is None:
        return
    theirs = header.identity
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if name not in theirs or name not in ours or theirs[name] != ours[name]:
            there, here = (_shown(values[name]) if name in values else "not set" for values in (theirs, ours))
            raise InputError(
                f"{path}: the ledger of another evaluation: {name} is {there} there and {here} here; "
                f"choose another evaluate.output_dir, or delete {path.parent}"
            )


def _shown(value: Any) -> str:
    return shortened(json.dumps(value, ensure_ascii=False), 200)


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
def directory_lock(directory: Path) -> Iterator[None]:
    file = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(file, wait=True)
        yield
    finally:
        os.close(file)
