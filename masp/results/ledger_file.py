"""One file of a ledger: a header that says what is evaluated, then a record per line. `ledger.py` says what for.

Where features are made live, the header's `machine` says where; a line `{"machine": {...}}` between records, that those
which follow were made on another.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from masp.errors import DataError, InputError

VERSION = 1
SUFFIX = ".jsonl"
RESUMES = "it scores only what is missing"

Record = dict[str, Any]


def ledger_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


class Contents:
    """What one ledger file holds."""

    def __init__(
        self,
        header: dict[str, Any] | None,
        records: list[Record],
        lines: list[int],
        machines: list[dict[str, Any]],
        num_valid_bytes: int,
    ):
        self.header = header  # None: the process was killed before its first line was complete.
        self.records = records
        self.lines = lines  # Where each record stands.
        self.machines = machines  # In the order in which they wrote.
        self.num_valid_bytes = num_valid_bytes


def read_ledger(path: Path) -> Contents:
    """Read a ledger as it is now.

    Raises:
        InputError: it cannot be read, or another version of MASP wrote it. DataError: a line is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read as a ledger: {error.strerror}") from None
    lines = data.split(b"\n")
    num_lines = len(lines) - 1 if lines[-1] == b"" else len(lines)
    header, records, places, machines, num_valid_bytes = None, [], [], [], 0
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
            raise damaged(path, number, "is no JSON") from None
        if number == 1:
            header = _checked_header(path, value)
            if isinstance(value.get("machine"), dict):
                machines.append(value["machine"])
        elif isinstance(value, dict) and value.keys() == {"machine"} and isinstance(value["machine"], dict):
            machines.append(value["machine"])
        else:
            problem = record_problem(value)
            if problem:
                raise damaged(path, number, problem)
            records.append(value)
            places.append(number)
        num_valid_bytes += len(line) + 1
    return Contents(header, records, places, machines, num_valid_bytes)


def _checked_header(path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("identity"), dict) or "ledger" not in value:
        raise damaged(path, 1, "is no ledger header")
    if value["ledger"] != VERSION:
        raise InputError(f"{path}: ledger format {value['ledger']!r}, this version of MASP reads {VERSION}")
    return value["identity"]


def record_problem(record: Any) -> str | None:
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


def likelihood_problem(record: Record, choices: Sequence[str]) -> str | None:
    """What is wrong with a record that compares the likelihoods of `choices`, as the end of a sentence.

    The prediction is the first of those with the largest score, as scoring has it.
    """
    for name in ("scores", "mean_scores"):
        scores = record.get(name)
        if scores is None or len(scores) != len(choices):
            return f"has {'no' if scores is None else len(scores)} {name} for {len(choices)} categories"
    best = choices[max(range(len(choices)), key=record["scores"].__getitem__)]
    if record["prediction"] != best:
        return f"predicts {record['prediction']!r}, but its largest score is that of {best!r}"
    return None


def generated_problem(record: Record) -> str | None:
    """The same of a record whose answer was written by the model: it has no scores."""
    names = [name for name in ("scores", "mean_scores") if record.get(name) is not None]
    return f"has {names[0]}, but its answer was generated" if names else None


class Tail:
    """The keys in a ledger that another process may be writing."""

    def __init__(self, path: Path):
        self.path = path
        self._start_over(inode=0)

    def _start_over(self, inode: int) -> None:
        self._inode, self._offset = inode, 0
        self._keys: set[str] = set()

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
    return None if record_problem(value) else value["sample_key"]


def damaged(path: Path, number: int, problem: str) -> DataError:
    return DataError(f"{path}, line {number}: {problem}; delete the file and run `masp evaluate` again, {RESUMES}")
