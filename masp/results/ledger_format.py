"""What the lines of a ledger file are: a header that says what is evaluated, then a record per sample.

Where features are made live, the header's `machine` says where; a line `{"machine": {...}}` between records, that those
which follow were made on another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from masp.errors import DataError, InputError
from masp.files.jsonl import parse_object
from masp.files.regular import read_bytes
from masp.files.text import shown
from masp.files.typed import Json, decode

VERSION = 1
SUFFIX = ".jsonl"
RESUMES = "it scores only what is missing"

_REMEDY = f"delete the file and run `masp evaluate` again, {RESUMES}"
# 3.3 million records of a hundred categories
_MAX_BYTES = 16 << 30


@dataclass(frozen=True)
class MapPlace:
    """Where the attention maps of a sample are, see `masp.results.attention_maps`."""

    file: str
    """Name of the ledger that they belong to."""
    offset: int
    """First byte."""
    shape: tuple[int, int, int]
    """Number of aspects, height, width."""
    crc32: int

    def __post_init__(self) -> None:
        if self.offset < 0 or min(self.shape) < 1:
            raise ValueError("must have an offset of 0 or more and a shape of positive numbers")
        if Path(self.file).name != self.file:
            raise ValueError("must name a file in the directory of the ledgers")


@dataclass(frozen=True)
class Record:
    """What an evaluation found for one sample."""

    sample_key: str
    """Key of the image; in stage 1 followed by `#` and the aspect."""
    label: str
    """The right category or answer."""
    prediction: str | None
    """A category or an answer; None: the generated line names no category."""
    scores: tuple[float, ...] | None = None
    """Log-likelihood of each choice, nats; None where the answer was generated."""
    mean_scores: tuple[float, ...] | None = None
    """The same per token."""
    text: str | None = None
    """The generated text."""
    source: tuple[int, int] | None = None
    """Bytes and modification time (ns) of the image file, where it was read live."""
    attention: MapPlace | None = None
    """Where the attention maps are, if they were asked for."""

    @property
    def image_key(self) -> str:
        """Sample key of the image."""
        return self.sample_key.rpartition("#")[0] if "#" in self.sample_key else self.sample_key

    @property
    def aspect(self) -> str:
        """The aspect of a record of stage 1; empty in stage 2."""
        return self.sample_key.rpartition("#")[2] if "#" in self.sample_key else ""

    def to_json(self) -> dict[str, Any]:
        """The record as its line spells it: `source` and `attention` only where there are any."""
        fields = {name: getattr(self, name) for name in _ALWAYS}
        if self.source is not None:
            fields["source"] = self.source
        if self.attention is not None:
            fields["attention"] = vars(self.attention)
        return fields

    def check_finite(self) -> None:
        """Refuse scores that are not finite.

        Raises:
            DataError: names the sample and the field.
        """
        for name in ("scores", "mean_scores"):
            if not all(map(math.isfinite, getattr(self, name) or ())):
                raise DataError(
                    f"the record of sample {shown(self.sample_key)} has a number in {name!r} that is not finite"
                )


_ALWAYS = ("sample_key", "label", "prediction", "scores", "mean_scores", "text")


@dataclass(frozen=True)
class Header:
    """The first line of a ledger file."""

    ledger: int
    """Version of the format."""
    identity: dict[str, Json]
    """What is evaluated, see `masp.results.ledger.Ledgers`."""
    machine: dict[str, Json] | None = None
    """What makes the features of the records that follow, where they are made live."""


@dataclass(frozen=True)
class MachineLine:
    """A line between records: those that follow were made on another machine."""

    machine: dict[str, Json]


@dataclass
class Contents:
    """What one ledger file holds."""

    header: Header | None = None
    """None: the process was killed before its first line was complete."""
    records: list[Record] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    """Number of the line of each record."""
    machines: list[dict[str, Any]] = field(default_factory=list)
    """In the order in which they wrote."""
    num_valid_bytes: int = 0


def ledger_files(directory: Path) -> list[Path]:
    """The ledger files in a directory, in the order of their names."""
    return sorted(directory.glob(f"*{SUFFIX}"))


def read_ledger(path: Path) -> Contents:
    """Read a ledger as it is now.

    Raises:
        InputError: it cannot be read, or another version of MASP wrote it. DataError: a line is damaged.
    """
    data = read_bytes(path, max_bytes=_MAX_BYTES)
    contents = Contents()
    # Complete means ended: a number cut short (`0.12` of `0.125}`) would otherwise have to look damaged to be seen.
    *lines, rest = (data or b"").split(b"\n")
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not rest and _is_cut(line):
            break
        name = f"{path}, line {number}"
        try:
            if number == 1:
                contents.header = _header(line, name)
                machine = contents.header.machine
            elif line.startswith(b'{"machine":'):
                machine = decode(MachineLine, line, name, unique_keys=False, surrogates=True).machine
            else:
                contents.records.append(decode(Record, line, name, unique_keys=False, surrogates=True))
                contents.lines.append(number)
                machine = None
        except DataError as error:
            raise DataError(f"{error}; {_REMEDY}") from None
        if machine is not None:
            contents.machines.append(machine)
        contents.num_valid_bytes += len(line) + 1
    return contents


def _is_cut(line: bytes) -> bool:
    """Whether a last line that is ended is not JSON all the same: two kills, the second of which wrote the end."""
    try:
        json.loads(line)
    except RecursionError:
        return False
    except ValueError:  # includes bytes that are not UTF-8
        return True
    return False


def _header(line: bytes, name: str) -> Header:
    try:
        header = decode(Header, line, f"{name}: not a valid ledger header", unique_keys=False, surrogates=True)
    except DataError:
        if (version := _version(line)) in (None, VERSION):
            raise
    else:
        version = header.ledger
        if version == VERSION:
            return header
    raise InputError(f"{name}: ledger format {shown(version)}, this version of MASP reads {VERSION}")


def _version(line: bytes) -> object:
    """The version of a header that has other keys than ours; None if it says none."""
    value = parse_object(line)
    return None if value is None else value.get("ledger")


def damaged(path: Path, number: int, problem: str) -> DataError:
    """The error about a line of a ledger."""
    return DataError(f"{path}, line {number}: {problem}; {_REMEDY}")


def likelihood_problem(record: Record, choices: Sequence[str]) -> str | None:
    """What is wrong with a record that compares the likelihoods of `choices`, as the end of a sentence.

    The prediction is the first of those with the largest score, as scoring has it.
    """
    for name, scores in (("scores", record.scores), ("mean_scores", record.mean_scores)):
        if scores is None or len(scores) != len(choices):
            return f"has {'no' if scores is None else len(scores)} {name} for {len(choices)} categories"
    best = choices[max(range(len(choices)), key=(record.scores or ()).__getitem__)]
    if record.prediction != best:
        return f"predicts {shown(record.prediction)}, but its largest score is that of {best!r}"
    return None


def generated_problem(record: Record) -> str | None:
    """The same of a record whose answer was written by the model: it has no scores."""
    if record.scores is not None or record.mean_scores is not None:
        return f"has {'mean_scores' if record.scores is None else 'scores'}, but its answer was generated"
    return None
