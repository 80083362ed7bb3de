"""What the lines of a ledger file are: a header that says what is evaluated, then a record per sample.

Where features are made live, the header's `machine` says where; a line `{"machine": {...}}` between records, that those
which follow were made on another. Every line ends in its own checksum, `"crc32": "0a1b2c3d"}`, of all bytes before it.
Ledgers of format 1 have none; their lines are read unverified.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masp.errors import DataError
from masp.files.text import shown
from masp.files.typed import Json

VERSION = 2
READABLE = (1, VERSION)
SUFFIX = ".jsonl"
RESUMES = "it scores only what is missing"

ROUNDING = 1e-3
"""How far above 0 a log-likelihood, and relative below its sum a mean, may be; in fp32 it is less by far."""

_REMEDY = f"delete the file and run `masp evaluate` again, {RESUMES}"
_MARK = b', "crc32": "'
_LENGTH = len(_MARK) + 10


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
        if not 0 <= self.offset < 1 << 63 or not all(0 < side < 1 << 31 for side in self.shape):
            raise ValueError("must have an offset of 0 or more and a shape of positive numbers")
        if not 0 <= self.crc32 < 1 << 32:
            raise ValueError("must have a checksum of 32 bits")
        if Path(self.file).name != self.file:
            raise ValueError("must name a file in the directory of the ledgers")


@dataclass(frozen=True)
class Record:
    """What an evaluation found for one sample."""

    sample_key: str
    """Key of the image; in stage 1 followed by `#` and the aspect, in explanations by `#` and what was asked."""
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
        """The aspect of a record of stage 1, or what was asked for an explanation; empty in stage 2."""
        return self.sample_key.rpartition("#")[2] if "#" in self.sample_key else ""

    def to_json(self) -> dict[str, Any]:
        """The record as its line spells it: `source` and `attention` only where there are any."""
        fields = {name: getattr(self, name) for name in _ALWAYS}
        if self.source is not None:
            fields["source"] = self.source
        if self.attention is not None:
            fields["attention"] = vars(self.attention)
        return fields


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


def ledger_files(directory: Path) -> list[Path]:
    """The ledger files in a directory, in the order of their names."""
    return sorted(directory.glob(f"*{SUFFIX}"))


def encode_line(value: dict[str, Any]) -> bytes:
    """A line with its checksum and its end.

    Raises:
        ValueError: a number is not finite.
    """
    body = json.dumps(value, ensure_ascii=True, allow_nan=False).encode("ascii")[:-1]
    return body + _checksum(body) + b"\n"


def unsealed_line(line: bytes) -> tuple[bytes, bool]:
    """The JSON of a line without its checksum, and whether it has one.

    Raises:
        ValueError: the checksum is not that of the line.
    """
    if not line[-_LENGTH:].startswith(_MARK):
        return line, False
    body = line[:-_LENGTH]
    if line[-_LENGTH:] != _checksum(body):
        raise ValueError("its checksum is not that of its content")
    return body + b"}", True


def _checksum(body: bytes) -> bytes:
    return _MARK + b'%08x"}' % zlib.crc32(body)


def damaged(path: Path, number: int, problem: str) -> DataError:
    """The error about a line of a ledger."""
    return DataError(f"{path}, line {number}: {problem}; {_REMEDY}")


def scores_problem(record: Record) -> str | None:
    """What is wrong with the numbers of a record, whatever was asked, as the end of a sentence."""
    scores, means = record.scores, record.mean_scores
    if record.source is not None and not (0 <= record.source[0] < 1 << 63 and abs(record.source[1]) < 1 << 63):
        return f"has {shown(list(record.source))} as source; must be bytes and nanoseconds"
    for name, values in (("scores", scores), ("mean_scores", means)):
        if values is not None and not all(map(math.isfinite, values)):
            return f"has a number in {name!r} that is not finite"
        if values and max(values) > ROUNDING:
            return f"has a log-likelihood of {max(values):g} in {name!r}; must be at most 0"
    if means is None:
        return None
    if scores is None:
        return "has mean_scores without scores"
    if len(scores) != len(means):
        return f"has {len(means)} mean_scores for {len(scores)} scores"
    for total, mean in zip(scores, means, strict=True):
        if mean < total - ROUNDING * (1 - total):
            return f"has a mean_score of {mean:g}, below its sum of {total:g}"
    return None


def likelihood_problem(record: Record, choices: Sequence[str]) -> str | None:
    """What is wrong with a record that compares the likelihoods of `choices`, as the end of a sentence.

    The prediction is the first of those with the largest score, as scoring has it.
    """
    for name, scores in (("scores", record.scores), ("mean_scores", record.mean_scores)):
        if scores is None or len(scores) != len(choices):
            return f"has {'no' if scores is None else len(scores)} {name} for {len(choices)} categories"
    scores = record.scores or ()
    best = choices[scores.index(max(scores))]
    if record.prediction != best:
        return f"predicts {shown(record.prediction)}, but its largest score is that of {best!r}"
    return None


def generated_problem(record: Record) -> str | None:
    """The same of a record whose answer was written by the model: it has no scores."""
    if record.scores is not None or record.mean_scores is not None:
        return f"has {'mean_scores' if record.scores is None else 'scores'}, but its answer was generated"
    return None
