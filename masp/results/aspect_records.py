"""The `records.h5` of an evaluation of stage 1: a record for each annotated aspect of an image.

The datasets are described in `masp.results.records`, whose format and digest this is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from masp.errors import InputError
from masp.files.hdf5 import Column, Hdf5File
from masp.files.text import shown
from masp.results.ledger_format import Record
from masp.results.ledgers.table import RecordTable
from masp.results.records import (
    OUTCOMES,
    STRINGS,
    ContentDigest,
    RecordsWriter,
    check_digest,
    read_column,
    reading_records,
    words_of,
)

DIRECTORY = "evaluate-stage1"
"""Name of the directory, in that of a run, of an evaluation of stage 1."""


@dataclass(frozen=True)
class ComparedAnswers:
    """An aspect whose answers were compared by likelihood."""

    rows: np.ndarray
    """`[M]` places of its records among all, ascending."""
    answers: tuple[str, ...]
    """The `C` answers, in the order of the scores."""
    scores: np.ndarray
    """`[M, C]` fp32, nats: summed over an answer's tokens."""
    mean_scores: np.ndarray
    """`[M, C]` the same per token."""


@dataclass(frozen=True)
class AspectRecords:
    """An evaluation of stage 1, read from `records.h5`."""

    columns: Mapping[str, np.ndarray]
    """`sample_key`, `aspect`, `label`, `prediction` and `text`: `[N]` bytes each."""
    compared: Mapping[str, ComparedAnswers]
    """Aspect -> its answers and their scores. The answers of other aspects were written."""
    digest: str
    """Of the whole content."""

    def __len__(self) -> int:
        return len(self.columns["sample_key"])

    @cached_property
    def keys(self) -> list[str]:
        """Sample keys; an image has one record for each of its annotated aspects."""
        return words_of(self.columns["sample_key"])

    @cached_property
    def aspects(self) -> list[str]:
        """The aspect that each record is about."""
        return words_of(self.columns["aspect"])

    @cached_property
    def labels(self) -> list[str]:
        """The annotated answers."""
        return words_of(self.columns["label"])

    @cached_property
    def predictions(self) -> list[str]:
        """The likeliest answers, or the written ones, in the form in which answers are compared."""
        return words_of(self.columns["prediction"])

    @cached_property
    def texts(self) -> list[str]:
        """The written texts; empty where likelihoods were compared."""
        return words_of(self.columns["text"])


def write_aspect_records(path: Path, records: Sequence[Record], answers: Mapping[str, Sequence[str]]) -> str:
    """Write the records of an evaluation of stage 1.

    Args:
        path: `records.h5`.
        records: Merged records.
        answers: Aspect -> answers in the order of the scores, where they are compared by likelihood.

    Returns:
        Digest of the content.

    Raises:
        OSError: the file cannot be written.
    """
    table = RecordTable.of(records)
    with RecordsWriter(path) as writer:
        writer.strings("sample_key", [key.rpartition("#")[0] for key in table.keys])
        writer.strings("aspect", [key.rpartition("#")[2] for key in table.keys])
        writer.outcomes(table)
        for aspect, choices in answers.items():
            rows = table.rows_of(aspect)
            writer.put(f"answers/{aspect}/row", rows)
            writer.scores(f"answers/{aspect}/", table.scores, table.mean_scores, rows, choices)
        return writer.seal({})


def read_aspect_records(path: str | Path) -> AspectRecords:
    """Read an evaluation of stage 1, and check its digest.

    Raises:
        InputError: The file is missing, or of another format or stage. DataError: It is damaged.
    """
    path = Path(path)
    with reading_records(path) as file:
        if file.has("categories"):
            raise InputError(f"{path}: holds scores of categories: it is an evaluation of stage 2, not of stage 1")
        digest = ContentDigest()
        columns = {name: read_column(file, name, STRINGS, digest) for name in (*OUTCOMES, "aspect")}
        count = len(columns["sample_key"])
        for name, values in columns.items():
            if len(values) != count:
                raise ValueError(f"lengths differ: sample_key {count}, {name} {len(values)}")
        if not count:
            raise ValueError("it holds no answer")
        names = file.names("answers") if file.has("answers") else []
        compared = {aspect: _compared(file, aspect, columns["aspect"], digest) for aspect in names}
        found = digest.of({})
        check_digest(file, found)
        pairs = np.stack(
            [np.unique(columns[name], return_inverse=True)[1] for name in ("sample_key", "aspect")], axis=1
        )
        if len(np.unique(pairs, axis=0)) != count:
            raise ValueError("an aspect of a sample_key occurs twice")
        return AspectRecords(columns, compared, found)


def _compared(file: Hdf5File, aspect: str, aspects: np.ndarray, digest: ContentDigest) -> ComparedAnswers:
    """Read the scores of an aspect; `aspects` `[N]` is that of each record."""
    group = f"answers/{aspect}"
    rows = read_column(file, f"{group}/row", Column("<i8", (None,)), digest)
    own = np.flatnonzero(aspects == aspect.encode())
    if not np.array_equal(rows, own):
        raise ValueError(f"{group}/row are not the records of {shown(aspect)}")
    answers = read_column(file, f"{group}/categories", STRINGS, digest)
    if not len(answers):
        raise ValueError(f"{group}/categories holds no answer")
    floats = Column("<f4", (len(rows), len(answers)))
    scores, means = (read_column(file, f"{group}/{name}", floats, digest) for name in ("scores", "mean_scores"))
    return ComparedAnswers(rows, tuple(text.decode() for text in answers.tolist()), scores, means)
