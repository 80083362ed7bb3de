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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from masp.errors import DataError
from masp.files.text import shortened
from masp.results.ledger_file import Ledger, as_json, check_identity, directory_lock
from masp.results.ledger_format import RESUMES, Record, damaged, ledger_files, read_ledger

DIRECTORY = "ledger"
"""Name of the directory, in that of the evaluation, that holds its ledgers."""

_NUM_SHOWN = 10

T = TypeVar("T")
Problem = Callable[[Record], str | None]
"""What is wrong with a record of an expected sample, as the end of a sentence; None if it fits the evaluation."""


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
        with directory_lock(self.directory):
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
        identity = as_json(self.identity)
        found: dict[str, Record] = {}
        files: dict[str, Path] = {}
        doubled: dict[str, None] = {}
        foreign: dict[str, None] = {}
        involved: dict[str, None] = {}
        for path in ledger_files(self.directory):
            contents = read_ledger(path)
            check_identity(path, contents.header, identity)
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


def _some(keys: Iterable[str]) -> str:
    keys = [shortened(key, 200) for key in keys]
    return ", ".join(keys[:_NUM_SHOWN]) + (f", … ({len(keys) - _NUM_SHOWN} more)" if len(keys) > _NUM_SHOWN else "")
