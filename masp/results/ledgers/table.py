"""The merged records as columns: three million of them take a few hundred bytes each, as objects many times that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, overload

import numpy as np

from masp.results.ledger_format import MapPlace, Record

CHUNK = 1 << 16
"""Rows that are worked on at once."""

_PLACE = np.dtype([("file", "i4"), ("offset", "i8"), ("shape", "i4", (3,)), ("crc32", "u4")])
_NONE = -1


class Texts:
    """A column of strings of which many are equal: a number for each, and what the numbers stand for."""

    def __init__(self, count: int):
        self.codes = np.full(count, _NONE, dtype=np.int32)
        """`[N]`; -1 stands for None."""
        self._numbers: dict[str, int] = {}

    @property
    def words(self) -> list[str]:
        """The different strings, in the order of their numbers."""
        return list(self._numbers)

    def take(self, rows: np.ndarray) -> Texts:
        """Some rows, as a column of their own."""
        part = Texts(0)
        part.codes, part._numbers = self.codes[rows], self._numbers
        return part

    def put(self, rows: np.ndarray, values: Iterable[str | None]) -> None:
        """Set some rows."""
        numbers = self._numbers
        codes = [_NONE if v is None else numbers.setdefault(v, len(numbers)) for v in values]
        self.codes[rows] = codes

    def numbers_in(self, words: Sequence[str], other: int) -> np.ndarray:
        """The column as numbers in a list of words: `other` for those that are not in it, -1 for None."""
        position = {word: number for number, word in enumerate(words)}
        table = np.array([*(position.get(word, other) for word in self._numbers), _NONE], dtype=np.int64)
        return table[self.codes]


class Numbers:
    """A column of rows of numbers: fp32 where that changes none of them, as scores are computed in it."""

    def __init__(self, count: int):
        self.starts, self.widths = np.zeros(count, dtype=np.int64), np.full(count, _NONE, dtype=np.int32)
        """`[N]`; a width of -1 stands for None."""
        self._parts: list[np.ndarray] = []
        self._num_values = 0
        self._is_double = False

    def put(self, rows: np.ndarray, values: Sequence[tuple[float, ...] | None]) -> None:
        """Set some rows, each once."""
        widths = np.array([_NONE if v is None else len(v) for v in values], dtype=np.int32)
        lengths = np.maximum(widths, 0)
        self.widths[rows] = widths
        self.starts[rows] = self._num_values + np.cumsum(lengths) - lengths
        flat = np.fromiter(chain.from_iterable(v for v in values if v is not None), dtype=np.float64)
        with np.errstate(over="ignore"):
            single = flat.astype(np.float32)
        if not self._is_double and not np.array_equal(single, flat):
            self._is_double = True
            self._parts = [part.astype(np.float64) for part in self._parts]
        self._parts.append(flat if self._is_double else single)
        self._num_values += len(flat)

    def take(self, rows: np.ndarray) -> Numbers:
        """Some rows, as a column of their own; after `close`."""
        part = Numbers(0)
        part.starts, part.widths, part._parts = self.starts[rows], self.widths[rows], self._parts
        return part

    def close(self) -> None:
        """Join what was set, after the last row."""
        self._parts = [np.concatenate(self._parts) if self._parts else np.empty(0, dtype=np.float32)]

    def row(self, index: int) -> tuple[float, ...] | None:
        """One row."""
        width = int(self.widths[index])
        start = int(self.starts[index])
        return None if width == _NONE else tuple(self._parts[0][start : start + width].tolist())

    def block(self, rows: np.ndarray, width: int) -> np.ndarray:
        """Some rows of one width, fp64 `[len(rows), width]`; those that are None are NaN."""
        found = np.full((len(rows), width), np.nan)
        there = self.widths[rows] == width
        places = self.starts[rows[there]][:, None] + np.arange(width)
        found[there] = self._parts[0][places]
        return found


class RecordTable(Sequence[Record]):
    """Records in an order of their own, one per key; reads like a list of them.

    Args:
        keys: Sample keys in the order of the rows.
    """

    def __init__(self, keys: Sequence[str]):
        count = len(keys)
        self.keys = keys
        self.machines: list[dict[str, Any]] = []
        """The different machines that the ledgers name, in the order of the files."""
        self.labels, self.predictions, self.texts = Texts(count), Texts(count), Texts(count)
        self.scores, self.mean_scores = Numbers(count), Numbers(count)
        self._sources: np.ndarray | None = None
        self._places: np.ndarray | None = None
        self._place_files = Texts(0)

    @classmethod
    def of(cls, records: Sequence[Record]) -> RecordTable:
        """A table of records in their order; a table is itself."""
        if isinstance(records, cls):
            return records
        table = cls([record.sample_key for record in records])
        for start in range(0, len(records), CHUNK):
            part = records[start : start + CHUNK]
            table.put(np.arange(start, start + len(part)), part)
        table.close()
        return table

    def put(self, rows: np.ndarray, records: Sequence[Record]) -> None:
        """Set some rows, each once."""
        self.labels.put(rows, [r.label for r in records])
        self.predictions.put(rows, [r.prediction for r in records])
        self.texts.put(rows, [r.text for r in records])
        self.scores.put(rows, [r.scores for r in records])
        self.mean_scores.put(rows, [r.mean_scores for r in records])
        if any(r.source is not None for r in records):
            if self._sources is None:
                self._sources = np.full((len(self.keys), 2), _NONE, dtype=np.int64)
            self._sources[rows] = [r.source or (_NONE, _NONE) for r in records]
        for row, record in zip(rows.tolist(), records, strict=True):
            if record.attention is not None:
                self._put_place(row, record.attention)

    def _put_place(self, row: int, place: MapPlace) -> None:
        if self._places is None:
            self._places = np.zeros(len(self.keys), dtype=_PLACE)
            self._place_files = Texts(len(self.keys))
        self._place_files.put(np.array([row]), [place.file])
        self._places[row] = (0, place.offset, place.shape, place.crc32)

    def close(self) -> None:
        """To be called after the last `put`."""
        self.scores.close()
        self.mean_scores.close()

    def rows_of(self, aspect: str) -> np.ndarray:
        """The rows of an aspect, of records of stage 1."""
        return np.array([row for row, key in enumerate(self.keys) if key.endswith(f"#{aspect}")], dtype=np.int64)

    def take(self, rows: np.ndarray) -> RecordTable:
        """Some rows, as a table of their own that shares what it can; without sources and attention."""
        part = RecordTable([self.keys[row] for row in rows.tolist()])
        part.labels, part.predictions, part.texts = (c.take(rows) for c in (self.labels, self.predictions, self.texts))
        part.scores, part.mean_scores = self.scores.take(rows), self.mean_scores.take(rows)
        return part

    @property
    def is_right(self) -> np.ndarray:
        """Which predictions are right, `[N]` bool."""
        return self.predictions.numbers_in(self.labels.words, _NONE) == self.labels.codes

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        return self._record(index, self.labels.words, self.predictions.words, self.texts.words)

    def __iter__(self) -> Iterator[Record]:
        words = self.labels.words, self.predictions.words, self.texts.words
        for index in range(len(self)):
            yield self._record(index, *words)

    def _record(self, index: int, labels: list[str], predictions: list[str], texts: list[str]) -> Record:
        key = self.keys[index]
        prediction, text = int(self.predictions.codes[index]), int(self.texts.codes[index])
        return Record(
            sample_key=key,
            label=labels[self.labels.codes[index]],
            prediction=None if prediction == _NONE else predictions[prediction],
            scores=self.scores.row(index),
            mean_scores=self.mean_scores.row(index),
            text=None if text == _NONE else texts[text],
            source=self._source(index),
            attention=self._place(index),
        )

    def _source(self, index: int) -> tuple[int, int] | None:
        if self._sources is None or self._sources[index, 0] == _NONE:
            return None
        size, modified = self._sources[index].tolist()
        return size, modified

    def _place(self, index: int) -> MapPlace | None:
        if self._places is None or self._place_files.codes[index] == _NONE:
            return None
        _, offset, (aspects, height, width), crc32 = self._places[index].tolist()
        file = self._place_files.words[self._place_files.codes[index]]
        return MapPlace(file, offset, (aspects, height, width), crc32)
