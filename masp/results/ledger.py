"""The ledgers: what has been scored so far, one file per process, so that a stopped evaluation loses nothing.

A ledger file is JSON lines: a header that says what is being evaluated, then one record per sample. Each process
writes a file of its own and flushes every batch, so killing it at any time costs at most the batch it was writing.
Nothing here waits for another process: whoever sees that every sample has its record merges, under a lock.

Nothing that takes time in proportion to all samples is done per process or per batch:
- A process scores a slice. It says so in a log before it begins, so that whoever comes later leaves those images to it
  as long as it runs. Batches are appended without looking at what others do.
- What is there of a slice is in its own ledger, and in those of earlier calls that cut the samples differently. The
  first process that needs one of the latter keeps what it has found in an index for the others.
- Whether everything is done is asked of the log. The merge proves it from the records.

What counts as what:
- A damaged line was complete once, so something went wrong: an error, never a guess. (What a kill leaves at the end of
  a file is dropped, see `masp.results.ledgers.reader`.)
- A sample with two records is an error even if both agree: files were copied together, and nobody can tell which are
  right.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from masp.errors import DataError
from masp.files.sealed import canonical_json
from masp.files.text import shortened
from masp.files.typed import as_json
from masp.results.ledger_file import Ledger, Problem, directory_lock, is_being_written
from masp.results.ledger_format import RESUMES, SUFFIX, Record, damaged, ledger_files
from masp.results.ledgers.index import LedgerIndex, index_path
from masp.results.ledgers.reader import LedgerReader, check_identity, read_header
from masp.results.ledgers.slices import Slice, SliceLog
from masp.results.ledgers.table import RecordTable

DIRECTORY = "ledger"
"""Name of the directory, in that of the evaluation, that holds its ledgers."""

_NUM_SHOWN = 10
_INDEX_LOCK = ".index.lock"

T = TypeVar("T")


def itself(image: str) -> Sequence[str]:
    """The record of an image that needs one: it has the key of the image."""
    return (image,)


class Ledgers:
    """All ledgers of one evaluation: which samples still lack a record, and the merge when none does.

    Args:
        directory: Directory of the ledgers, made by `begin` if it is missing.
        images: Keys of the images that are evaluated, each once.
        identity: What is evaluated: field name to any JSON value. By convention the digests of the cache (or of VLM
            and dataset) and of the checkpoints, scoring, layout, split, categories and aspects: all that a score
            depends on, and nothing that it does not (ranks, batch size).
        problem: Asked of every record, when it is appended and when it is read.
        discard: Removes what an earlier merge wrote. Called under the lock of the directory, where records are missing
            or the ledgers are refused as data; not where they belong to another evaluation, whose results those are.
        keys_of: Keys of the records that an image needs; by default one, with its own key.
    """

    def __init__(
        self,
        directory: str | Path,
        images: Sequence[str],
        identity: Mapping[str, Any],
        problem: Problem = lambda record: None,
        discard: Callable[[], None] = lambda: None,
        keys_of: Callable[[str], Sequence[str]] = itself,
    ):
        self.directory, self.images, self.keys_of = Path(directory), images, keys_of
        self.identity, self.problem, self.discard = dict(identity), problem, discard
        self._identity = as_json(self.identity)

    @cached_property
    def keys(self) -> Sequence[str]:
        """Keys of all records, in the order of the images."""
        return self.images if self.keys_of is itself else [k for image in self.images for k in self.keys_of(image)]

    @cached_property
    def _positions(self) -> dict[str, int]:
        """Number of each record among all."""
        found = {key: number for number, key in enumerate(self.keys)}
        if len(found) != len(self.keys):
            raise ValueError("an expected key occurs twice")
        return found

    def begin(self, slice_: Slice = Slice(), machine: dict[str, Any] | None = None) -> Scoring:  # noqa: B008 - frozen
        """Take a slice: no other process can begin with its images as long as the result is not closed.

        Results of an earlier merge go if a record is missing.

        Args:
            slice_: The images. Those of them that a live process of another division scores are left to it.
            machine: See `Ledger`.

        Raises:
            InputError: a ledger belongs to another evaluation, or (`RunInUse`) another process has the same slice.
            DataError: a ledger is damaged, or holds records of other samples or some that do not fit.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(self.directory, slice_.name, self.identity, machine)
        try:
            with directory_lock(self.directory):
                log = self._open_log()
                if ledger.path.exists() and slice_.name not in log.begun:
                    log.append("found", slice_)
                # slices of one size have nothing in common, so the same name is not asked, which is this process
                theirs = [*log.live(self._is_live, lambda s: s.name != slice_.name and s.meets(slice_))]
                log.append("begun", slice_)
            # From here on nobody else begins with these images, so what is recorded of them is recorded already.
            with self._results_are_wrong_if_damaged(), _without_collection():
                missing = self._missing_in(slice_, ledger, log, theirs)
            if missing:
                with directory_lock(self.directory):
                    self.discard()
                ledger.__enter__()
        except BaseException:
            ledger.close()
            raise
        num_records = sum(len(self.keys_of(image)) for image in slice_.of(self.images))
        return Scoring(slice_, ledger, missing, num_records, not theirs, self.problem)

    def merge(self) -> RecordTable:
        """All records, in the order of the images, after proving that every expected sample has exactly one.

        Raises:
            InputError: a ledger belongs to another evaluation.
            DataError: samples are missing, doubled or foreign (up to ten are named), a ledger is damaged, or a record
                does not fit.
        """
        merge = _Merge(self)
        with _without_collection():
            for path in ledger_files(self.directory):
                merge.read(path)
        return merge.table()

    def merge_if_complete(self, write: Callable[[RecordTable], T], done: Scoring | None = None) -> T | None:
        """Merge if nothing is missing; to be called by every process after it has closed its own ledger.

        Of processes that end one after another the last one merges. `write` runs under a lock of the directory, perhaps
        again in a later call with the same records, and should write to a temporary name and rename.

        Args:
            write: Takes the merged records and writes what is made from them.
            done: What this process has scored.

        Returns:
            What `write` returns, or None if records are still missing.

        Raises:
            InputError, DataError: see `merge`, except that missing samples are no error here.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with directory_lock(self.directory), self._results_are_wrong_if_damaged(locked=True):
            log = self._open_log()
            if done is not None and done.is_done:
                log.append("done", done.slice)
            if self._seems_complete(log):
                try:
                    return write(self.merge())
                except MissingRecords:  # the log or an index said otherwise: a ledger was removed or changed
                    log.remove()
                    for path in ledger_files(self.directory):
                        index_path(path).unlink(missing_ok=True)
            self.discard()
            return None

    @contextlib.contextmanager
    def _results_are_wrong_if_damaged(self, locked: bool = False) -> Iterator[None]:
        """Results do not outlive the proof that their ledgers are wrong."""
        try:
            yield
        except DataError:
            with contextlib.nullcontext() if locked else directory_lock(self.directory):
                self.discard()
            raise

    def _open_log(self) -> SliceLog:
        """The log of this evaluation; a new one unless ledgers say that the directory is that of another evaluation."""
        log = SliceLog(self.directory, self._identity)
        if not log.is_there:
            with self._results_are_wrong_if_damaged(locked=True):
                for path in ledger_files(self.directory):
                    check_identity(path, read_header(path), self._identity)
            log.create()
        return log

    def _is_live(self, name: str) -> bool:
        return is_being_written(self.directory / (name + SUFFIX))

    def _missing_in(
        self, slice_: Slice, ledger: Ledger, log: SliceLog, theirs: Sequence[Slice]
    ) -> dict[str, list[str]]:
        """The images of a slice that lack records -> keys of these records, but for those that others score."""
        own = [self._checked_position(ledger.path, number, record) for number, record in ledger.records()]
        others = [path for path in self._ledgers_of(log, slice_) if path != ledger.path]
        recorded = self._recorded(others, own) if own or others else None
        numbers = range(slice_.rank, len(self.images), slice_.size)
        missing = {}
        for number, image in zip(numbers, slice_.of(self.images), strict=True):
            keys = [k for k in self.keys_of(image) if recorded is None or not recorded[self._positions[k]]]
            if keys and not any(other.holds(number) for other in theirs):
                missing[image] = keys
        return missing

    def _ledgers_of(self, log: SliceLog, slice_: Slice) -> list[Path]:
        """The ledgers that may hold records of a slice: where the log says nothing of one, it may hold any."""
        return [
            path
            for path in ledger_files(self.directory)
            if path.stem not in log.begun or any(begun.meets(slice_) for begun in log.begun[path.stem])
        ]

    def _recorded(self, paths: Sequence[Path], own: Sequence[int] = ()) -> np.ndarray:
        """Which records some ledgers hold, bool, one per key. One process reads them, the others its index.

        Args:
            paths: The ledgers.
            own: Positions of the records of another one.
        """
        digest = hashlib.sha256(canonical_json(self._identity)).digest()
        found = np.zeros(len(self.keys), dtype=bool)
        found[np.array(own, dtype=np.int64)] = True
        num_found = len(own)
        for path in paths:
            index = LedgerIndex(path, self._identity, digest, self._checked_position)
            waits = contextlib.nullcontext() if index.is_current() else directory_lock(self.directory, _INDEX_LOCK)
            with waits:
                positions = index.positions()
            if len(positions) and positions.max() >= len(found):
                raise DataError(f"{index_path(path)} is damaged: delete it and run `masp evaluate` again")
            found[positions] = True
            num_found += len(positions)
        if np.count_nonzero(found) < num_found:
            with contextlib.suppress(MissingRecords):
                self.merge()  # which says what is doubled
        return found

    def _checked_position(self, path: Path, number: int, record: Record) -> int:
        self._check(path, number, record)
        return self._positions[record.sample_key]

    def _check(self, path: Path, number: int, record: Record) -> None:
        """Refuse a record that is not of this evaluation or does not fit it."""
        if record.sample_key not in self._positions:
            raise _foreign(self.directory, [record.sample_key], 1, [path.name])
        if what := self.problem(record):
            raise damaged(path, number, f"the record of sample {shortened(record.sample_key, 200)} {what}")

    def _seems_complete(self, log: SliceLog) -> bool:
        """Whether all records seem to be there, without reading them where that can be avoided."""
        left = log.not_done(len(self.images))
        if not left.any():
            return True
        if any(True for _ in log.live(self._is_live, lambda s: bool(left[s.rank :: s.size].any()))):
            return False
        # Nobody is scoring these. Earlier calls may have all the same.
        paths = [
            path
            for path in ledger_files(self.directory)
            if any(left[s.rank :: s.size].any() for s in log.begun.get(path.stem, [Slice()]))
        ]
        if not paths:
            return False
        recorded = self._recorded(paths)
        if self.keys_of is itself:
            return bool(recorded[left].all())
        positions = self._positions
        wanted = (key for number in np.flatnonzero(left).tolist() for key in self.keys_of(self.images[number]))
        return all(recorded[positions[key]] for key in wanted)


class Scoring:
    """A slice of which this process scores what is missing. Use it as a context manager.

    Args:
        slice_: The slice.
        ledger: Its ledger; open for appending if records are missing.
        missing: Image -> keys of the records that it lacks.
        num_records: Records of the slice.
        is_whole: Whether no image of the slice was left to another process.
        problem: See `Ledgers`.
    """

    def __init__(
        self,
        slice_: Slice,
        ledger: Ledger,
        missing: Mapping[str, list[str]],
        num_records: int,
        is_whole: bool,
        problem: Problem,
    ):
        self.slice, self.missing, self.num_records = slice_, missing, num_records
        self._ledger, self._is_whole, self._problem = ledger, is_whole, problem
        self.num_missing = sum(map(len, missing.values()))
        """Records that were missing in the beginning."""
        self._left = self.num_missing

    @property
    def is_done(self) -> bool:
        """Whether all records of the slice are there."""
        return self._is_whole and self._left == 0

    def append(self, records: Sequence[Record], maps: Sequence[np.ndarray | None] = ()) -> None:
        """Append records that are missing; arguments as `Ledger.append`.

        Raises:
            DataError: a record cannot be right; nothing is written.
        """
        for record in records:
            if record.sample_key not in self.missing.get(record.image_key, ()):
                raise ValueError(f"{record.sample_key} is not missing")
        self._ledger.append(*records, maps=maps, problem=self._problem)
        self._left -= len(records)

    def close(self) -> None:
        """Bring all records to the disk, and leave the slice to others. Closing twice is fine."""
        self._ledger.close()

    def __enter__(self) -> Scoring:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Do not look for cycles, of which records have none: among millions of objects it takes a quarter of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class MissingRecords(DataError):
    """Samples have no record."""


class _Merge:
    """Reads ledgers into a table, one after another, and keeps count of what is whose."""

    def __init__(self, ledgers: Ledgers):
        self.ledgers, self.positions = ledgers, ledgers._positions
        self._table = RecordTable(ledgers.keys)
        self.files: list[str] = []
        self.file_of = np.zeros(len(ledgers.keys), dtype=np.int32)
        """Number of the file that a record is in, from 1; 0 if there is none yet."""
        self.doubled: dict[str, None] = {}
        self.foreign: dict[str, None] = {}
        self.involved: dict[str, None] = {}

    def read(self, path: Path) -> None:
        self.files.append(path.name)
        reader = LedgerReader(path)
        for chunk in reader.chunks():
            check_identity(path, reader.header, self.ledgers._identity)
            self._take(path, chunk)
        self._table.machines += [machine for machine in reader.machines if machine not in self._table.machines]

    def _take(self, path: Path, chunk: Sequence[tuple[int, Record]]) -> None:
        get, problem = self.positions.get, self.ledgers.problem
        rows = np.fromiter((get(record.sample_key, -1) for _, record in chunk), dtype=np.int64, count=len(chunk))
        for row, (number, record) in zip(rows.tolist(), chunk, strict=True):
            if row >= 0 and (what := problem(record)):
                raise damaged(path, number, f"the record of sample {shortened(record.sample_key, 200)} {what}")
        if (rows < 0).any() or self.file_of[rows].any() or len(np.unique(rows)) < len(rows):
            self._take_note(path, rows, chunk)
            return
        self.file_of[rows] = len(self.files)
        self._table.put(rows, [record for _, record in chunk])

    def _take_note(self, path: Path, rows: np.ndarray, chunk: Sequence[tuple[int, Record]]) -> None:
        """Of records some of which are foreign or doubled; the table is worthless then."""
        for row, (_, record) in zip(rows.tolist(), chunk, strict=True):
            if row < 0:
                self.foreign[record.sample_key] = self.involved[path.name] = None
            elif self.file_of[row]:
                self.doubled[record.sample_key] = self.involved[path.name] = None
                self.involved[self.files[self.file_of[row] - 1]] = None
            else:
                self.file_of[row] = len(self.files)

    def table(self) -> RecordTable:
        directory, keys = self.ledgers.directory, self.ledgers.keys
        if self.foreign:
            raise _foreign(directory, list(self.foreign), len(self.foreign), sorted(self.involved))
        if self.doubled:
            raise DataError(
                f"{directory}: {len(self.doubled)} samples have more than one record: {_some(self.doubled)} "
                f"(in {_some(sorted(self.involved))}); delete one of these files and run `masp evaluate` again, "
                f"{RESUMES}"
            )
        missing = np.flatnonzero(self.file_of == 0)
        if len(missing):
            raise MissingRecords(
                f"{directory}: {len(missing)} of {len(keys)} samples have no record: "
                f"{_some([keys[row] for row in missing.tolist()])}; run `masp evaluate` again, {RESUMES}"
            )
        self._table.close()
        return self._table


def _foreign(directory: Path, keys: Iterable[str], count: int, files: Iterable[str]) -> DataError:
    return DataError(
        f"{directory}: {count} records of samples that are not evaluated: {_some(keys)} (in {_some(files)}); delete "
        f"that file and run `masp evaluate` again, {RESUMES}"
    )


def read_records(directory: str | Path) -> list[Record]:
    """The records of all ledgers in a directory, whatever they evaluate, by sample key: for looking, not counting.

    Raises:
        InputError: a ledger cannot be read. DataError: a ledger is damaged.
    """
    records = [record for path in ledger_files(Path(directory)) for record in LedgerReader(path).records()]
    return sorted(records, key=lambda record: record.sample_key)


def _some(keys: Iterable[str]) -> str:
    keys = [shortened(key, 200) for key in keys]
    return ", ".join(keys[:_NUM_SHOWN]) + (f", … ({len(keys) - _NUM_SHOWN} more)" if len(keys) > _NUM_SHOWN else "")
