"""Predictions on their way: a directory `OUTPUT.parts` beside the output, which any number of processes fill.

The images are cut into units, runs of consecutive images. A process claims a unit by a lock, which goes with it however
it ends, and appends rows to `NUMBER.open`; once all rows are there, the file is renamed to `NUMBER.rows`. Whoever comes
later goes on behind the last whole line. `header.json` says what the rows depend on; rows of anything else are never
mixed with them. When the last unit is there, whoever sees it first writes the output, and then the directory goes.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masp.cache.fingerprint import differences
from masp.errors import InputError
from masp.files.atomic import fsync_directory, write_all
from masp.files.locks import try_lock, unlock
from masp.files.regular import exists, open_descriptor
from masp.files.sealed import create_sealed, read_sealed
from masp.files.text import reason, shown_apart
from masp.files.typed import Json, as_json
from masp.inference.batch.rows import Row, read_rows

SUFFIX = ".parts"
HEADER, LOCK = "header.json", ".lock"
_ROWS, _OPEN = ".rows", ".open"
_OURS = re.compile(rf"\d+({_ROWS}|{_OPEN})|{re.escape(HEADER)}|{re.escape(LOCK)}|\.{re.escape(HEADER)}\..*\.tmp")
_MERGING = 1 << 40
"""Byte of the lock file that stands for writing the output; those below it stand for units."""
_MAX_UNIT, _FEW_UNITS, _MANY_UNITS = 256, 64, 10_000


def unit_size(num_images: int) -> int:
    """How many images a unit has: so many that there are at least 64 units, then 256, and never over 10,000 units."""
    return max(1, min(_MAX_UNIT, num_images // _FEW_UNITS), -(-num_images // _MANY_UNITS))


@dataclass(frozen=True)
class Header:
    """What the rows of a directory are about."""

    version: int
    identity: dict[str, Json]
    """All that a row depends on."""
    machine: dict[str, Json]
    """What made the features of the first rows: noted, never refused."""
    num_images: int
    replaces: tuple[int, int] | None
    """Size and modification time (ns) of the output that was there before, and is to be replaced."""


class Finished(Exception):
    """The output has been written meanwhile, by another process."""


class _Gone(Exception):
    """The directory was removed meanwhile."""


@dataclass
class _OpenUnit:
    file: int
    left: int
    """Rows that it lacks."""


class Parts:
    """The rows of one batch prediction. Use it as a context manager.

    Args:
        output: The file that all rows are for.
        identity: All that a row depends on, by the names that an error calls it.
        machine: What makes the features.
        num_images: Number of images.

    Raises:
        InputError: They are begun with another identity, or cannot be written or locked.
        DataError: The header is damaged.
        Finished: There is nothing left to do.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any], machine: Mapping[str, Any], num_images: int):
        self.output, self.directory = output, parts_of(output)
        self.num_images, self.unit_size = num_images, unit_size(num_images)
        self.num_units = -(-num_images // self.unit_size)
        self._lock: int | None = None
        self._open: dict[int, _OpenUnit] = {}
        self.machine_differences: list[tuple[str, Any, Any]] = []
        """How this machine differs from the one that made the first rows: name, theirs, ours."""
        before = state_of(output)
        try:
            with self._writing():
                self._begin(Header(1, as_json(dict(identity)), as_json(dict(machine)), num_images, before))
        except _Gone:  # another process has just removed the directory
            if state_of(output) == before:
                raise InputError(
                    f"--output {output}: {self.directory} was deleted; run the same command again"
                ) from None
            raise Finished from None

    def _begin(self, header: Header) -> None:
        """Make the directory, or join those who have."""
        self.output.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(_leaving(self.output), ignore_errors=True)
        self.directory.mkdir(exist_ok=True)
        try:
            if strange := next((name for name in sorted(os.listdir(self.directory)) if not _OURS.fullmatch(name)), ""):
                raise InputError(f"{self.directory}: holds {strange}, which no batch prediction left; move it away")
            is_new = create_sealed(self.directory / HEADER, header)
            found = header if is_new else read_sealed(Header, self.directory / HEADER)
            self._lock = open_descriptor(self.directory / LOCK, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            raise _Gone from None
        if found is None:
            self.close()
            raise _Gone
        try:
            self._check(found, header)
        except InputError:
            self.close()
            raise
        self.machine_differences = differences(found.machine, header.machine)
        self.replaces = found.replaces
        if self.is_finished():  # between the caller's look at the output and now
            is_done = is_new or self.num_done() == self.num_images
            if is_done:
                self._remove()
            self.close()
            if not is_done:
                raise InputError(
                    f"--output {self.output}: has appeared since {self.directory} was begun; delete one of them"
                )
            raise Finished

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Bring all rows to the disk, and leave the units to others. Closing twice is fine."""
        for unit in self._open.values():
            os.close(unit.file)
        self._open.clear()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def is_finished(self) -> bool:
        """Whether the output has been written since these parts were begun."""
        now = state_of(self.output)
        return now is not None and now != self.replaces

    def numbers(self, unit: int) -> range:
        """The images of a unit."""
        return range(unit * self.unit_size, min((unit + 1) * self.unit_size, self.num_images))

    def claim(self, unit: int) -> range:
        """Take a unit; returns those of its images that lack rows: none if others have it, or it is done.

        Raises:
            Finished: The output is there.
            InputError: The file system has no locks.
            DataError: Rows of the unit are damaged.
        """
        if unit in self._open or self._path(unit, _ROWS).exists() or not self._locked(unit):
            return range(0)
        with self._writing():
            if self._path(unit, _ROWS).exists():
                self._unlock(unit)
                return range(0)
            if self.is_finished():
                raise Finished
            path, numbers = self._path(unit, _OPEN), self.numbers(unit)
            rows, num_bytes = read_rows(path, numbers, is_whole=False)
            file = open_descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.ftruncate(file, num_bytes)  # what a kill has cut off
            self._open[unit] = _OpenUnit(file, len(numbers) - len(rows))
            if not self._open[unit].left:  # killed before it was renamed
                self._finish(unit)
            return numbers[len(rows) :]

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows of claimed units, those of each unit in their order, and hand them to the operating system."""
        of_unit: dict[int, list[Row]] = {}
        for row in rows:
            of_unit.setdefault(row.number // self.unit_size, []).append(row)
        for number, found in of_unit.items():
            unit = self._open[number]
            with self._writing():
                write_all(unit.file, b"".join(row.line() for row in found))
                unit.left -= len(found)
                if not unit.left:
                    self._finish(number)

    def _finish(self, number: int) -> None:
        unit = self._open.pop(number)
        try:
            os.fsync(unit.file)
        finally:
            os.close(unit.file)
        os.replace(self._path(number, _OPEN), self._path(number, _ROWS))
        fsync_directory(self.directory)
        self._unlock(number)

    def num_done(self) -> int:
        """Images whose units are done."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:  # others have written the output
            return self.num_images
        done = [int(name.removesuffix(_ROWS)) for name in names if name.endswith(_ROWS)]
        return sum(len(self.numbers(unit)) for unit in done if unit < self.num_units)

    @contextlib.contextmanager
    def merging(self) -> Iterator[Iterator[list[Row]] | None]:
        """While entered, no other process writes the output; afterwards the parts go if it has been written.

        Yields:
            The rows of one unit after another, in the order of the images; None where units are still missing.

        Raises:
            Finished: Another process was faster.
            DataError: Rows are damaged.
        """
        self._locked(_MERGING, wait=True)
        if self.is_finished():
            raise Finished
        if self.num_done() < self.num_images:
            self._unlock(_MERGING)
            yield None
            return
        yield (read_rows(self._path(unit, _ROWS), self.numbers(unit), True)[0] for unit in range(self.num_units))
        if self.is_finished():
            self._remove()

    def _path(self, unit: int, suffix: str) -> Path:
        return self.directory / f"{unit:06d}{suffix}"

    def _check(self, found: Header, ours: Header) -> None:
        """Refuse rows of another identity."""
        theirs, here = ({"number of images": each.num_images, **each.identity} for each in (found, ours))
        if found.version != ours.version:
            raise InputError(f"{self.directory}: written by another version of MASP; delete it")
        if differing := differences(theirs, here):
            name, old, new = differing[0]
            there, now = shown_apart(repr(old), repr(new), 200)
            raise InputError(
                f"--output {self.output}: {self.directory} was begun with {name} = {there}, and here it is {now}; "
                "run the command that began it, choose another output, or delete that directory"
            )

    def _locked(self, byte: int, wait: bool = False) -> bool:
        assert self._lock is not None, "the parts are closed"
        try:
            return try_lock(self._lock, byte, 1, wait=wait)
        except OSError as error:
            raise InputError(
                f"--output {self.output}: {self.directory / LOCK} cannot be locked: {reason(error)}; choose an output "
                "on a file system with locks"
            ) from None

    def _unlock(self, byte: int) -> None:
        assert self._lock is not None, "the parts are closed"
        unlock(self._lock, byte, 1)

    def _remove(self) -> None:
        """Remove the directory, whole or not at all as others see it."""
        leaving = _leaving(self.output)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(leaving, ignore_errors=True)
            os.replace(self.directory, leaving)
        shutil.rmtree(leaving, ignore_errors=True)

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return plain_write_errors(self.output)


def parts_of(output: Path) -> Path:
    """The directory of the rows that are for an output."""
    return output.with_name(output.name + SUFFIX)


def _leaving(output: Path) -> Path:
    """What the directory is called while it is removed."""
    return output.with_name(f".{output.name}{SUFFIX}.done")


def state_of(output: Path) -> tuple[int, int] | None:
    """Size and modification time (ns) of a file; None if it is not there."""
    try:
        status = os.stat(output)
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns


def is_complete(output: Path) -> bool:
    """Whether an output is there, and no parts that are to replace it. What a kill has left of its own parts goes.

    Raises:
        DataError: The header of parts is damaged.
    """
    _remove_leftovers(output)
    return state_of(output) is not None and not exists(parts_of(output) / HEADER)


def _remove_leftovers(output: Path) -> None:
    """Remove the parts of an output that was written and whose process was killed before it removed them."""
    shutil.rmtree(_leaving(output), ignore_errors=True)
    directory = parts_of(output)
    if not exists(directory / HEADER):
        return
    header = read_sealed(Header, directory / HEADER)
    if header is None or state_of(output) in (None, header.replaces):
        return
    num_done = sum(name.endswith(_ROWS) for name in os.listdir(directory))
    if num_done * unit_size(header.num_images) >= header.num_images:
        with contextlib.suppress(FileNotFoundError):
            os.replace(directory, _leaving(output))
        shutil.rmtree(_leaving(output), ignore_errors=True)


@contextlib.contextmanager
def plain_write_errors(output: Path) -> Iterator[None]:
    """Turn what the file system refuses into one line."""
    try:
        yield
    except OSError as error:
        where = f": {error.filename2 or error.filename}" if error.filename else ""
        raise InputError(
            f"--output {output}{where} cannot be written: {reason(error)}; what is predicted is kept, the same command "
            "goes on"
        ) from None
