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

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from masp.errors import DataError, InputError
from masp.files.jsonl import write_all
from masp.files.locks import try_lock
from masp.files.text import shortened
from masp.results.attention_maps import AttentionFile
from masp.results.ledger_file import (
    RESUMES,
    SUFFIX,
    VERSION,
    Header,
    Record,
    Tail,
    damaged,
    ledger_files,
    read_ledger,
)
from masp.runtime.run_lock import RunInUse

DIRECTORY = "ledger"
"""Name of the directory, in that of the evaluation, that holds its ledgers."""

_NUM_SHOWN = 10
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
# File systems without locks say so with one of these.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

T = TypeVar("T")
Problem = Callable[[Record], str | None]
"""What is wrong with a record of an expected sample, as the end of a sentence; None if it fits the evaluation."""


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
                _check_identity(path, read_ledger(path).header, _as_json(identity))
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
        with _directory_lock(self.path.parent):
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


def slice_keys(expected_keys: Sequence[str], rank: int, num_ranks: int) -> list[str]:
    """The samples that one rank scores: every `num_ranks`-th, so that slices are disjoint and differ by at most one.

    Slices are cut from all expected samples, not from the missing ones: ranks that start at different times see
    different ledgers, and only what does not depend on them is the same for all.
    """
    if not 0 <= rank < num_ranks:
        raise ValueError(f"rank {rank} of {num_ranks}")
    return list(expected_keys[rank::num_ranks])


class Ledgers:
    """All ledgers of one evaluation: which samples still lack a record, and the merge when none does.

    Args:
        directory: Directory of the ledgers, made by `begin` if it is missing.
        expected_keys: Keys of the samples that are evaluated, each once.
        identity: What is evaluated: field name to any JSON value. By convention the digests of the cache (or of VLM
            and dataset) and of the checkpoints, scoring, layout, split, categories and aspects: all that a score
            depends on, and nothing that it does not (ranks, batch size).
        problem: Asked of every record.
        discard: Removes what an earlier merge wrote. Called under the lock of the directory, where records are missing
            or the ledgers are refused as data; not where they belong to another evaluation, whose results those are.
    """

    def __init__(
        self,
        directory: str | Path,
        expected_keys: Sequence[str],
        identity: Mapping[str, Any],
        problem: Problem = lambda record: None,
        discard: Callable[[], None] = lambda: None,
    ):
        self.directory, self.expected_keys = Path(directory), expected_keys
        self.identity, self.problem, self.discard = dict(identity), problem, discard

    def open(self, name: str, machine: dict[str, Any] | None = None) -> Ledger:
        """Open the ledger that this process appends to; see `Ledger`."""
        return Ledger(self.directory, name, self.identity, machine)

    def begin(self) -> list[str]:
        """As `missing`, before a process scores: results that are not of these ledgers go, before a record comes.

        Raises:
            InputError, DataError: see `missing`.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._results_lock():
            missing = self.missing()
            if missing:
                self.discard()
        return missing

    def missing(self) -> list[str]:
        """The expected samples that no ledger has a record of, in the order of `expected_keys`.

        Raises:
            InputError: a ledger belongs to another evaluation.
            DataError: a ledger is damaged, or holds foreign or doubled records or some that do not fit.
        """
        return self._coverage()[1]

    def merge(self) -> list[Record]:
        """All records, in the order of `expected_keys`, after proving that every expected sample has exactly one.

        Raises:
            InputError: a ledger belongs to another evaluation.
            DataError: samples are missing, doubled or foreign (up to ten are named), a ledger is damaged, or a record
                does not fit.
        """
        records, missing = self._coverage()
        if missing:
            raise DataError(
                f"{self.directory}: {len(missing)} of {len(self.expected_keys)} samples have no record: "
                f"{_some(missing)}; run `masp evaluate` again, {RESUMES}"
            )
        return records

    def merge_if_complete(self, write: Callable[[list[Record]], T]) -> T | None:
        """Merge if nothing is missing; to be called by every process after it has closed its own ledger.

        The last process to finish sees all records; two that finish together may both see them, so `write` runs under
        a lock of the directory, possibly more than once with the same records, and should write to a temporary name and
        rename.

        Args:
            write: Takes the merged records and writes what is made from them.

        Returns:
            What `write` returns, or None if records are still missing.

        Raises:
            InputError, DataError: see `merge`, except that missing samples are no error here.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._results_lock():
            records, missing = self._coverage()
            if not missing:
                return write(records)
            self.discard()
            return None

    @contextlib.contextmanager
    def _results_lock(self) -> Iterator[None]:
        """The directory's lock; results do not outlive the proof that their ledgers are wrong."""
        with _directory_lock(self.directory):
            try:
                yield
            except DataError:
                self.discard()
                raise

    def _coverage(self) -> tuple[list[Record], list[str]]:
        """The records in the order of `expected_keys`, and the keys without one."""
        expected = set(self.expected_keys)
        if len(expected) != len(self.expected_keys):
            raise ValueError("an expected key occurs twice")
        identity = _as_json(self.identity)
        found: dict[str, Record] = {}
        files: dict[str, Path] = {}
        doubled: dict[str, None] = {}
        foreign: dict[str, None] = {}
        involved: dict[str, None] = {}
        for path in ledger_files(self.directory):
            contents = read_ledger(path)
            _check_identity(path, contents.header, identity)
            for record, line in zip(contents.records, contents.lines, strict=True):
                key = record.sample_key
                if key in expected and (what := self.problem(record)):
                    raise damaged(path, line, f"the record of sample {key} {what}")
                if key not in expected:
                    foreign[key] = involved[path.name] = None
                elif key in found:
                    doubled[key] = involved[path.name] = involved[files[key].name] = None
                else:
                    found[key], files[key] = record, path
        if foreign:
            raise DataError(
                f"{self.directory}: {len(foreign)} records of samples that are not evaluated: {_some(foreign)} "
                f"(in {_some(sorted(involved))}); delete that file and run `masp evaluate` again, {RESUMES}"
            )
        if doubled:
            raise DataError(
                f"{self.directory}: {len(doubled)} samples have more than one record: {_some(doubled)} "
                f"(in {_some(sorted(involved))}); delete one of these files and run `masp evaluate` again, {RESUMES}"
            )
        keys = self.expected_keys
        return [found[key] for key in keys if key in found], [key for key in keys if key not in found]


def read_records(directory: str | Path) -> list[Record]:
    """The records of all ledgers in a directory, whatever they evaluate, by sample key: for looking, not counting.

    Raises:
        InputError: a ledger cannot be read. DataError: a ledger is damaged.
    """
    records = [record for path in ledger_files(Path(directory)) for record in read_ledger(path).records]
    return sorted(records, key=lambda record: record.sample_key)


def read_machines(directory: str | Path) -> list[dict[str, Any]]:
    """The different machines that the ledgers in a directory name, in the order of the files.

    Raises:
        InputError: a ledger cannot be read. DataError: a ledger is damaged.
    """
    machines: list[dict[str, Any]] = []
    for path in ledger_files(Path(directory)):
        for machine in read_ledger(path).machines:
            if machine not in machines:
                machines.append(machine)
    return machines


def _as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity as JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(identity))


def _check_identity(path: Path, header: Header | None, ours: dict[str, Any]) -> None:
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


def _some(keys: Iterable[str]) -> str:
    keys = [shortened(key, 200) for key in keys]
    return ", ".join(keys[:_NUM_SHOWN]) + (f", … ({len(keys) - _NUM_SHOWN} more)" if len(keys) > _NUM_SHOWN else "")


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
def _directory_lock(directory: Path) -> Iterator[None]:
    file = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(file, wait=True)
        yield
    finally:
        os.close(file)
