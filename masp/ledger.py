"""The ledger: what has been scored so far, one file per process, so that a stopped evaluation loses nothing.

A ledger file is JSON lines: a header that says what is being evaluated, then one record per sample. Each process
writes a file of its own and flushes every record, so killing it at any time costs at most the line it was writing.
Nothing here waits for another process: whoever sees that every sample has its record merges, under a lock.

What counts as what:
- A last line that is not complete is what a kill leaves behind. It is dropped, and its sample is scored again.
- A damaged line anywhere else was complete once, so something else went wrong: an error, never a guess.
- A sample with two records is an error even if both agree: whoever appends looks first, under a lock, whether another
  ledger has the sample, so two records mean that files were copied together, and their numbers cannot be told apart.
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from masp.errors import DataError, InputError
from masp.run_lock import RunInUse

FOLDER = "ledger"
"""The sub-folder of an evaluation's directory that holds its ledgers."""

_VERSION = 1
_SUFFIX = ".jsonl"
_RESUMES = "it scores only what is missing"
_NUM_SHOWN = 10
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
# File systems without locks say so with one of these.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

T = TypeVar("T")
Record = dict[str, Any]


class Ledger:
    """The ledger file of one process, open for appending. Use it as a context manager.

    Args:
        folder: the folder of the evaluation's ledgers, made if it is missing.
        name: the file's name without suffix, for example `rank-3`. A name may be used again by a later call: its
            records stay, and an incomplete last line is cut off.
        identity: what is evaluated: field name to any JSON value. By convention the digests of the cache (or of VLM
            and dataset) and of the checkpoints, scoring, layout, split, categories and aspects: all that a score
            depends on, and nothing that it does not (ranks, batch size).

    Raises:
        InputError: the folder holds a ledger of another evaluation (the field and both values are named).
        RunInUse: another process is writing this file.
        DataError: a ledger in the folder is damaged.
    """

    def __init__(self, folder: str | Path, name: str, identity: dict[str, Any]):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no ledger name: letters, digits, '.', '_' and '-' only")
        self.path = Path(folder) / (name + _SUFFIX)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._lock = None
        try:
            # A POSIX lock goes when this process goes, unlike flock, which its orphaned workers would keep. It also
            # goes when the process closes any handle of the file, so it is held on a file that is opened nowhere else.
            self._lock = os.open(self.path.parent / f".{name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
            if not _lock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                raise RunInUse(f"{self.path}: another process is writing it; wait for it or stop it first")
            for path in _ledger_files(self.path.parent):
                _check_identity(path, _read(path).header, identity)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            contents = _read(self.path)
            os.ftruncate(self._file, contents.num_valid_bytes)
            if contents.header is None:
                self._write_line({"ledger": _VERSION, "identity": identity})
            self._own = {record["sample_key"] for record in contents.records}
            self._others: dict[Path, _Tail] = {}
        except BaseException:
            self.close()
            raise

    def append(self, record: Record) -> None:
        """Add one record and hand it to the operating system before returning: it survives a kill of this process.

        Args:
            record: at least `sample_key`, `label`, `scores` (one finite number per category, or None), `prediction`.

        Raises:
            DataError: a field is missing or has the wrong type, or a score is not finite.
        """
        problem = _record_problem(record)
        if problem:
            raise DataError(f"{self.path}: the record of sample {record.get('sample_key')!r} {problem}")
        self._write_line(record)
        self._own.add(record["sample_key"])

    def append_missing(self, records: Sequence[Record]) -> None:
        """Append those records whose samples no ledger of the folder has, this one included.

        Ranks of another call, which cut the samples differently, may have scored the same ones meanwhile. Looking and
        writing are one step under the folder's lock, so that a sample never gets two records.

        Args:
            records: see `append`.

        Raises:
            DataError: see `append`.
        """
        with _folder_lock(self.path.parent):
            taken = self.recorded()
            for record in records:
                if record["sample_key"] not in taken:
                    self.append(record)
            if self._others:  # on a network file system, other machines see what is on the disk
                os.fdatasync(self._file)

    def recorded(self) -> set[str]:
        """Keys of the samples that any ledger of the folder has now; reads only what came since the last call."""
        others = [path for path in _ledger_files(self.path.parent) if path != self.path]
        self._others = {path: self._others.get(path) or _Tail(path) for path in others}
        return self._own.union(*(tail.keys() for tail in self._others.values()))

    def close(self) -> None:
        """Write everything to the disk and let go of the file. Closing twice is fine."""
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
        if self._lock is not None:
            os.close(self._lock)
        self._file = self._lock = None

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write_line(self, value: Any) -> None:
        line = (json.dumps(value, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")
        while line:  # A nearly full disk takes part of a line; the rest raises ENOSPC at the next try.
            line = line[os.write(self._file, line) :]


class _Tail:
    """The keys in a ledger that another process may be writing."""

    def __init__(self, path: Path):
        self.path = path
        self._start_over(inode=0)

    def _start_over(self, inode: int) -> None:
        self._inode, self._offset, self._keys = inode, 0, set()

    def keys(self) -> set[str]:
        """As of now. Lines that are no records are left to whoever merges, who names them."""
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:  # another file, or one that was cut
                    self._start_over(status.st_ino)
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:  # deleted since the folder was listed: its samples are missing again
            self._start_over(inode=0)
            return self._keys
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._keys.update(key for line in whole.split(b"\n") if (key := _key_in(line)) is not None)
        return self._keys


def _key_in(line: bytes) -> str | None:
    """The sample that a line is the record of; None if it is no record."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return None if _record_problem(value) else value["sample_key"]


def slice_keys(expected_keys: Sequence[str], rank: int, num_ranks: int) -> list[str]:
    """The samples that one rank scores: every `num_ranks`-th, so that slices are disjoint and differ by at most one.

    Slices are cut from all expected samples, not from the missing ones: ranks that start at different times see
    different ledgers, and only what does not depend on them is the same for all.
    """
    if not 0 <= rank < num_ranks:
        raise ValueError(f"rank {rank} of {num_ranks}")
    return list(expected_keys[rank::num_ranks])


def missing_keys(folder: str | Path, expected_keys: Sequence[str], identity: dict[str, Any]) -> list[str]:
    """The expected samples that no ledger in `folder` has a record of, in the order of `expected_keys`.

    Raises:
        InputError: a ledger belongs to another evaluation.
        DataError: a ledger is damaged, or holds foreign or doubled records.
    """
    return _coverage(Path(folder), expected_keys, identity)[1]


def merge(folder: str | Path, expected_keys: Sequence[str], identity: dict[str, Any]) -> list[Record]:
    """All records, in the order of `expected_keys`, after proving that every expected sample has exactly one.

    Raises:
        InputError: a ledger belongs to another evaluation.
        DataError: samples are missing, doubled or foreign (up to ten are named), or a ledger is damaged.
    """
    records, missing = _coverage(Path(folder), expected_keys, identity)
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {len(expected_keys)} samples have no record: {_some(missing)}; "
            f"run `masp evaluate` again, {_RESUMES}"
        )
    return records


def begin(
    folder: str | Path, expected_keys: Sequence[str], identity: dict[str, Any], discard: Callable[[], None]
) -> list[str]:
    """As `missing_keys`, before a process scores: results that are not of these ledgers go, before a record comes.

    Args:
        folder, expected_keys, identity: as for `merge`; the folder is made if it is missing.
        discard: removes what an earlier merge wrote. Called under the lock of the folder, where records are missing or
            the ledgers are refused as data; not where they belong to another evaluation, whose results those are.

    Raises:
        As `missing_keys`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _results_lock(folder, discard):
        missing = missing_keys(folder, expected_keys, identity)
        if missing:
            discard()
    return missing


def merge_if_complete(
    folder: str | Path,
    expected_keys: Sequence[str],
    identity: dict[str, Any],
    write: Callable[[list[Record]], T],
    discard: Callable[[], None] = lambda: None,
) -> T | None:
    """Merge if nothing is missing; to be called by every process after it has closed its own ledger.

    The last process to finish sees all records; two that finish together may both see them, so `write` runs under a
    lock of the folder, possibly more than once with the same records, and should write to a temporary name and rename.

    Args:
        folder, expected_keys, identity: as for `merge`.
        write: takes the merged records and writes what is made from them.
        discard: as for `begin`.

    Returns:
        What `write` returns, or None if records are still missing.

    Raises:
        As `merge`, except that missing samples are no error here.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _results_lock(folder, discard):
        records, missing = _coverage(folder, expected_keys, identity)
        if not missing:
            return write(records)
        discard()
        return None


def read_records(folder: str | Path) -> list[Record]:
    """The records of all ledgers in `folder`, whatever they evaluate, sorted by sample key: for looking, not counting.

    Raises:
        DataError: a ledger is damaged.
    """
    records = [record for path in _ledger_files(Path(folder)) for record in _read(path).records]
    return sorted(records, key=lambda record: record["sample_key"])


class _Contents:
    """What one ledger file holds."""

    def __init__(self, header: dict[str, Any] | None, records: list[Record], num_valid_bytes: int):
        self.header = header  # None: the process was killed before its first line was complete.
        self.records = records
        self.num_valid_bytes = num_valid_bytes


def _read(path: Path) -> _Contents:
    data = path.read_bytes()
    lines = data.split(b"\n")
    num_lines = len(lines) - 1 if lines[-1] == b"" else len(lines)
    header, records, num_valid_bytes = None, [], 0
    for number, line in enumerate(lines[:num_lines], start=1):
        is_last = number == num_lines
        # Complete means ended: a number cut short (`0.12` of `0.125}`) would otherwise have to look damaged to be seen.
        if is_last and num_lines == len(lines):
            break
        try:
            value = json.loads(line)
        except ValueError:  # Includes bytes that are no UTF-8.
            if is_last:
                break
            raise _damaged(path, number, "is no JSON") from None
        if number == 1:
            header = _checked_header(path, value)
        else:
            problem = _record_problem(value)
            if problem:
                raise _damaged(path, number, problem)
            records.append(value)
        num_valid_bytes += len(line) + 1
    return _Contents(header, records, num_valid_bytes)


def _checked_header(path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("identity"), dict) or "ledger" not in value:
        raise _damaged(path, 1, "is no ledger header")
    if value["ledger"] != _VERSION:
        raise InputError(f"{path}: ledger format {value['ledger']!r}, this version of MASP reads {_VERSION}")
    return value["identity"]


def _record_problem(record: Any) -> str | None:
    """What is wrong with a record, as the end of a sentence; None if nothing is."""
    if not isinstance(record, dict):
        return "is no JSON object"
    for name in ("sample_key", "label"):
        if not isinstance(record.get(name), str):
            return f"has no text as its {name!r}"
    if "prediction" not in record or not isinstance(record["prediction"], str | None):
        return "has no text or null as its 'prediction'"
    for name in ("scores", "mean_scores"):
        scores = record.get(name)
        if scores is None:
            continue
        if not isinstance(scores, list) or not all(type(score) in (int, float) for score in scores):
            return f"has no list of numbers or null as its {name!r}"
        if not all(math.isfinite(score) for score in scores):
            return f"has a number in {name!r} that is not finite"
    return None


def _coverage(folder: Path, expected_keys: Sequence[str], identity: dict[str, Any]) -> tuple[list[Record], list[str]]:
    """The records in the order of `expected_keys`, and the keys without one."""
    expected = set(expected_keys)
    if len(expected) != len(expected_keys):
        raise ValueError("an expected key occurs twice")
    found: dict[str, Record] = {}
    files: dict[str, Path] = {}
    doubled: dict[str, None] = {}
    foreign: dict[str, None] = {}
    involved: dict[str, None] = {}
    for path in _ledger_files(folder):
        contents = _read(path)
        _check_identity(path, contents.header, identity)
        for record in contents.records:
            key = record["sample_key"]
            if key not in expected:
                foreign[key] = involved[path.name] = None
            elif key in found:
                doubled[key] = involved[path.name] = involved[files[key].name] = None
            else:
                found[key], files[key] = record, path
    if foreign:
        raise DataError(
            f"{folder}: {len(foreign)} records of samples that are not evaluated: {_some(foreign)} "
            f"(in {_some(sorted(involved))}); delete that file and run `masp evaluate` again, {_RESUMES}"
        )
    if doubled:
        raise DataError(
            f"{folder}: {len(doubled)} samples have more than one record: {_some(doubled)} "
            f"(in {_some(sorted(involved))}); delete one of these files and run `masp evaluate` again, {_RESUMES}"
        )
    return [found[key] for key in expected_keys if key in found], [key for key in expected_keys if key not in found]


def _check_identity(path: Path, theirs: dict[str, Any] | None, ours: dict[str, Any]) -> None:
    if theirs is None:
        return
    ours = json.loads(json.dumps(ours))  # As JSON gives it back: tuples are lists.
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if name not in theirs or name not in ours or theirs[name] != ours[name]:
            there, here = (_shown(values[name]) if name in values else "not set" for values in (theirs, ours))
            raise InputError(
                f"{path}: the ledger of another evaluation: {name} is {there} there and {here} here; "
                f"choose another evaluate.output_dir, or delete {path.parent}"
            )


def _ledger_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{_SUFFIX}"))


def _damaged(path: Path, number: int, problem: str) -> DataError:
    return DataError(f"{path}, line {number}: {problem}; delete the file and run `masp evaluate` again, {_RESUMES}")


def _some(keys: Iterable[str]) -> str:
    keys = list(keys)
    return ", ".join(keys[:_NUM_SHOWN]) + (f", … ({len(keys) - _NUM_SHOWN} more)" if len(keys) > _NUM_SHOWN else "")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:199] + "…"


def _lock(file: int, operation: int) -> bool:
    """Take a lock that also reaches other machines on NFS; False if another process has it."""
    try:
        fcntl.lockf(file, operation)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        # Without locks at all the evaluation is still right: files have one writer, and a merge ends in a rename.
        if error.errno not in _NO_LOCKS:
            raise
    return True


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


@contextlib.contextmanager
def _results_lock(folder: Path, discard: Callable[[], None]) -> Iterator[None]:
    """The folder's lock; results do not outlive the proof that their ledgers are wrong."""
    with _folder_lock(folder):
        try:
            yield
        except DataError:
            discard()
            raise
