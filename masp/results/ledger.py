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
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from masp.errors import DataError, InputError
from masp.files.jsonl import write_all
from masp.files.locks import try_lock
from masp.results.ledger_file import (
    RESUMES,
    SUFFIX,
    VERSION,
    Record,
    Tail,
    damaged,
    ledger_files,
    read_ledger,
    record_problem,
)
from masp.runtime.run_lock import RunInUse

FOLDER = "ledger"
"""The sub-folder of an evaluation's directory that holds its ledgers."""

_NUM_SHOWN = 10
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
# File systems without locks say so with one of these.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

T = TypeVar("T")
Problem = Callable[[Record], str | None]
"""What is wrong with a record of an expected sample, as the end of a sentence; None if it fits the evaluation."""


def _fits(record: Record) -> str | None:
    return None


class Ledger:
    """The ledger file of one process, open for appending. Use it as a context manager.

    Args:
        folder: the folder of the evaluation's ledgers, made if it is missing.
        name: the file's name without suffix, for example `rank-3`. A name may be used again by a later call: its
            records stay, and an incomplete last line is cut off.
        identity: what is evaluated: field name to any JSON value. By convention the digests of the cache (or of VLM
            and dataset) and of the checkpoints, scoring, layout, split, categories and aspects: all that a score
            depends on, and nothing that it does not (ranks, batch size).
        machine: what makes the features of the records that come, where they are made live: noted, never compared.

    Raises:
        InputError: the folder holds a ledger of another evaluation (the field and both values are named).
        RunInUse: another process is writing this file.
        DataError: a ledger in the folder is damaged.
    """

    def __init__(self, folder: str | Path, name: str, identity: dict[str, Any], machine: dict[str, Any] | None = None):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no ledger name: letters, digits, '.', '_' and '-' only")
        self.path = Path(folder) / (name + SUFFIX)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._lock = None
        try:
            # A POSIX lock goes when this process goes, unlike flock, which its orphaned workers would keep. It also
            # goes when the process closes any handle of the file, so it is held on a file that is opened nowhere else.
            self._lock = os.open(self.path.parent / f".{name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
            if not _lock(self._lock):
                raise RunInUse(f"{self.path}: another process is writing it; wait for it or stop it first")
            for path in ledger_files(self.path.parent):
                _check_identity(path, read_ledger(path).header, identity)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            contents = read_ledger(self.path)
            os.ftruncate(self._file, contents.num_valid_bytes)
            if contents.header is None:
                self._write_line(
                    {"ledger": VERSION, "identity": identity} | ({} if machine is None else {"machine": machine})
                )
            elif machine is not None and contents.machines[-1:] != [machine]:
                self._write_line({"machine": machine})
            self._own = {record["sample_key"] for record in contents.records}
            self._others: dict[Path, Tail] = {}
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
        problem = record_problem(record)
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
                assert self._file is not None, "the ledger is closed"
                os.fdatasync(self._file)

    def recorded(self) -> set[str]:
        """Keys of the samples that any ledger of the folder has now; reads only what came since the last call."""
        others = [path for path in ledger_files(self.path.parent) if path != self.path]
        self._others = {path: self._others.get(path) or Tail(path) for path in others}
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
        assert self._file is not None, "the ledger is closed"
        write_all(self._file, (json.dumps(value, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii"))


def slice_keys(expected_keys: Sequence[str], rank: int, num_ranks: int) -> list[str]:
    """The samples that one rank scores: every `num_ranks`-th, so that slices are disjoint and differ by at most one.

    Slices are cut from all expected samples, not from the missing ones: ranks that start at different times see
    different ledgers, and only what does not depend on them is the same for all.
    """
    if not 0 <= rank < num_ranks:
        raise ValueError(f"rank {rank} of {num_ranks}")
    return list(expected_keys[rank::num_ranks])


def missing_keys(
    folder: str | Path, expected_keys: Sequence[str], identity: dict[str, Any], problem: Problem = _fits
) -> list[str]:
    """The expected samples that no ledger in `folder` has a record of, in the order of `expected_keys`.

    Args:
        folder, expected_keys, identity, problem: as for `merge`.

    Raises:
        InputError: a ledger belongs to another evaluation.
        DataError: a ledger is damaged, or holds foreign or doubled records or some that do not fit.
    """
    return _coverage(Path(folder), expected_keys, identity, problem)[1]


def merge(
    folder: str | Path, expected_keys: Sequence[str], identity: dict[str, Any], problem: Problem = _fits
) -> list[Record]:
    """All records, in the order of `expected_keys`, after proving that every expected sample has exactly one.

    Args:
        folder: of the ledgers.
        expected_keys: the samples that are evaluated.
        identity: what is evaluated, see `Ledger`.
        problem: asked of every record.

    Raises:
        InputError: a ledger belongs to another evaluation.
        DataError: samples are missing, doubled or foreign (up to ten are named), a ledger is damaged, or a record does
            not fit.
    """
    records, missing = _coverage(Path(folder), expected_keys, identity, problem)
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {len(expected_keys)} samples have no record: {_some(missing)}; "
            f"run `masp evaluate` again, {RESUMES}"
        )
    return records


def begin(
    folder: str | Path,
    expected_keys: Sequence[str],
    identity: dict[str, Any],
    discard: Callable[[], None],
    problem: Problem = _fits,
) -> list[str]:
    """As `missing_keys`, before a process scores: results that are not of these ledgers go, before a record comes.

    Args:
        folder, expected_keys, identity: as for `merge`; the folder is made if it is missing.
        discard: removes what an earlier merge wrote. Called under the lock of the folder, where records are missing or
            the ledgers are refused as data; not where they belong to another evaluation, whose results those are.
        problem: as for `merge`.

    Raises:
        As `missing_keys`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _results_lock(folder, discard):
        missing = missing_keys(folder, expected_keys, identity, problem)
        if missing:
            discard()
    return missing


def merge_if_complete(
    folder: str | Path,
    expected_keys: Sequence[str],
    identity: dict[str, Any],
    write: Callable[[list[Record]], T],
    discard: Callable[[], None] = lambda: None,
    problem: Problem = _fits,
) -> T | None:
    """Merge if nothing is missing; to be called by every process after it has closed its own ledger.

    The last process to finish sees all records; two that finish together may both see them, so `write` runs under a
    lock of the folder, possibly more than once with the same records, and should write to a temporary name and rename.

    Args:
        folder, expected_keys, identity: as for `merge`.
        write: takes the merged records and writes what is made from them.
        discard: as for `begin`.
        problem: as for `merge`.

    Returns:
        What `write` returns, or None if records are still missing.

    Raises:
        As `merge`, except that missing samples are no error here.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _results_lock(folder, discard):
        records, missing = _coverage(folder, expected_keys, identity, problem)
        if not missing:
            return write(records)
        discard()
        return None


def read_records(folder: str | Path) -> list[Record]:
    """The records of all ledgers in `folder`, whatever they evaluate, sorted by sample key: for looking, not counting.

    Raises:
        DataError: a ledger is damaged.
    """
    records = [record for path in ledger_files(Path(folder)) for record in read_ledger(path).records]
    return sorted(records, key=lambda record: record["sample_key"])


def read_machines(folder: str | Path) -> list[dict[str, Any]]:
    """The different machines that the ledgers of `folder` name, in the order of the files.

    Raises:
        DataError: a ledger is damaged.
    """
    machines: list[dict[str, Any]] = []
    for path in ledger_files(Path(folder)):
        for machine in read_ledger(path).machines:
            if machine not in machines:
                machines.append(machine)
    return machines


def _coverage(
    folder: Path, expected_keys: Sequence[str], identity: dict[str, Any], problem: Problem
) -> tuple[list[Record], list[str]]:
    """The records in the order of `expected_keys`, and the keys without one."""
    expected = set(expected_keys)
    if len(expected) != len(expected_keys):
        raise ValueError("an expected key occurs twice")
    found: dict[str, Record] = {}
    files: dict[str, Path] = {}
    doubled: dict[str, None] = {}
    foreign: dict[str, None] = {}
    involved: dict[str, None] = {}
    for path in ledger_files(folder):
        contents = read_ledger(path)
        _check_identity(path, contents.header, identity)
        for record, line in zip(contents.records, contents.lines, strict=True):
            key = record["sample_key"]
            if key in expected and (what := problem(record)):
                raise damaged(path, line, f"the record of sample {key} {what}")
            if key not in expected:
                foreign[key] = involved[path.name] = None
            elif key in found:
                doubled[key] = involved[path.name] = involved[files[key].name] = None
            else:
                found[key], files[key] = record, path
    if foreign:
        raise DataError(
            f"{folder}: {len(foreign)} records of samples that are not evaluated: {_some(foreign)} "
            f"(in {_some(sorted(involved))}); delete that file and run `masp evaluate` again, {RESUMES}"
        )
    if doubled:
        raise DataError(
            f"{folder}: {len(doubled)} samples have more than one record: {_some(doubled)} "
            f"(in {_some(sorted(involved))}); delete one of these files and run `masp evaluate` again, {RESUMES}"
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


def _some(keys: Iterable[str]) -> str:
    keys = list(keys)
    return ", ".join(keys[:_NUM_SHOWN]) + (f", … ({len(keys) - _NUM_SHOWN} more)" if len(keys) > _NUM_SHOWN else "")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:199] + "…"


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
def _folder_lock(folder: Path) -> Iterator[None]:
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(file, wait=True)
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
