"""The annotated answers of many images as columns: millions of dictionaries would take gigabytes and minutes.

`answers.safetensors` holds such a table beside a cache's index, in the order of its rows, so that nobody has to read
the answers out of the tars. Each aspect has `<aspect>/numbers` (int32 `[N]`: which answer; -1 for none) and its
different answers as one run of UTF-8 bytes with their lengths (`<aspect>/text`, `<aspect>/lengths`). The metadata is
one JSON object: to which index the file belongs, and the digest of all of it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from masp.errors import DataError
from masp.files.atomic import write_bytes
from masp.files.fields import Count, Sha256
from masp.files.hdf5 import naming_damage
from masp.files.regular import file_size
from masp.files.typed import canonical_json, decode, plain
from masp.runtime.growing_array import GrowingArray

FILE = "answers.safetensors"
MAX_BYTES = 64 << 30
"""Size limit; the file has about 25 bytes per sample, and every different answer once."""

NONE = -1
"""The number that stands for no answer."""

_MAX_KEPT = 1 << 16
"""Different rows that `AnswerTable.rows` keeps, so that equal ones are made once."""

_KEY = "masp"
"""The only key of the metadata: safetensors writes several in any order."""


@dataclass(frozen=True)
class AnswerColumn:
    """The answers to one aspect."""

    numbers: np.ndarray
    """int32 `[N]`, into `texts`; `NONE` where an image is not annotated with the aspect."""
    texts: tuple[str, ...]
    """The different answers, sorted; each is that of some image unless the column was taken from a longer one."""


class AnswerTable(Sequence[Mapping[str, str]]):
    """The annotated answers of images in an order; reads like a list of dictionaries from aspect to answer.

    Args:
        columns: Aspect -> its column; all are of one length.
        count: Number of images.
    """

    def __init__(self, columns: Mapping[str, AnswerColumn], count: int):
        self.columns, self._count = dict(columns), count

    @classmethod
    def of(cls, answers: Sequence[Mapping[str, str]]) -> AnswerTable:
        """A table of dictionaries from aspect to answer, with a column for every aspect that some of them have."""
        columns = {}
        for aspect in sorted({aspect for found in answers for aspect in found}):
            column = [found.get(aspect) for found in answers]
            texts = tuple(sorted({text for text in column if text is not None}))
            number_of: dict[str | None, int] = {text: number for number, text in enumerate(texts)}
            number_of[None] = NONE
            columns[aspect] = AnswerColumn(np.array([number_of[text] for text in column], dtype=np.int32), texts)
        return cls(columns, len(answers))

    @classmethod
    def join(cls, tables: Sequence[AnswerTable]) -> AnswerTable:
        """The rows of tables, one table after another."""
        joined = JoinedAnswers(sum(map(len, tables)))
        for table in tables:
            joined.add(table)
        return joined.table()

    def take(self, rows: np.ndarray) -> AnswerTable:
        """Some rows, in the given order."""
        columns = {a: AnswerColumn(column.numbers[rows], column.texts) for a, column in self.columns.items()}
        return AnswerTable(columns, len(rows))

    def has_any(self, aspects: Sequence[str]) -> np.ndarray:
        """Which rows have an answer to any of these aspects, bool `[N]`."""
        found = np.zeros(len(self), dtype=bool)
        for aspect in aspects:
            if aspect in self.columns:
                found |= self.columns[aspect].numbers != NONE
        return found

    def rows(self) -> Iterator[dict[str, str]]:
        """All rows; equal ones may be the same object, not to be changed."""
        columns = [(aspect, column.texts) for aspect, column in self.columns.items()]
        if not columns:
            yield from itertools.repeat({}, len(self))
            return
        kept: dict[tuple[int, ...], dict[str, str]] = {}
        for numbers in zip(*(column.numbers.tolist() for column in self.columns.values()), strict=True):
            row = kept.get(numbers)
            if row is None:
                if len(kept) >= _MAX_KEPT:
                    kept.clear()
                row = {a: texts[n] for (a, texts), n in zip(columns, numbers, strict=True) if n != NONE}
                kept[numbers] = row
            yield row

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row):
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        return {
            aspect: column.texts[number]
            for aspect, column in self.columns.items()
            if (number := column.numbers[row]) != NONE
        }

    def __iter__(self) -> Iterator[Mapping[str, str]]:
        return self.rows()


class JoinedAnswers:
    """The rows of tables that are read one after another; none of them is kept."""

    def __init__(self, capacity: int):
        """Nothing yet of about so many rows."""
        self._capacity, self._count = capacity, 0
        self._columns: dict[str, tuple[GrowingArray, dict[str, int]]] = {}
        """Aspect -> numbers of its answers, which may lack rows at the end, and answer -> number in order of
        appearance."""

    def add(self, table: AnswerTable) -> None:
        """Add the rows of a table."""
        for aspect, column in table.columns.items():
            if aspect not in self._columns:
                self._columns[aspect] = GrowingArray(np.int32, self._capacity), {}
            numbers, number_of = self._columns[aspect]
            numbers.extend(np.full(self._count - len(numbers), NONE, dtype=np.int32))
            ours = [number_of.setdefault(text, len(number_of)) for text in column.texts]
            numbers.extend(np.array([*ours, NONE], dtype=np.int32)[column.numbers])  # NONE is also the last place
        self._count += len(table)

    def table(self) -> AnswerTable:
        """The table of all rows; to be called once, in the end."""
        columns = {}
        for aspect, (numbers, number_of) in sorted(self._columns.items()):
            numbers.extend(np.full(self._count - len(numbers), NONE, dtype=np.int32))
            texts = tuple(sorted(number_of))
            final = np.full(len(texts) + 1, NONE, dtype=np.int32)
            final[[number_of[text] for text in texts]] = np.arange(len(texts), dtype=np.int32)
            values = numbers.values
            values[:] = final[values]
            columns[aspect] = AnswerColumn(values, texts)
        return AnswerTable(columns, self._count)


@dataclass(frozen=True)
class _Metadata:
    format_version: Literal[1]
    index: Sha256
    """Digest of the index that the table belongs to."""
    num_samples: Count
    aspects: tuple[str, ...]
    digest: Sha256
    """Of everything else."""


def save_answers(directory: Path, index_digest: str, table: AnswerTable) -> None:
    """Write the file to a temporary name, then rename it; equal answers are equal bytes.

    Args:
        directory: Directory of the cache.
        index_digest: SHA-256 of its index.
        table: Answers of all samples, in the order of the index.

    Raises:
        OSError: It cannot be written.
    """
    tensors = {f"{a}/{name}": v for a, column in table.columns.items() for name, v in _arrays(column).items()}
    metadata = _Metadata(1, index_digest, len(table), tuple(table.columns), answers_digest(index_digest, table))
    write_bytes(directory / FILE, save(tensors, {_KEY: canonical_json(plain(metadata)).decode()}))


def _arrays(column: AnswerColumn) -> dict[str, np.ndarray]:
    texts = [text.encode("utf-8", "surrogatepass") for text in column.texts]  # as sidecars may hold
    return {
        "numbers": column.numbers.astype("<i4"),
        "lengths": np.array([*map(len, texts)], dtype="<i4"),
        "text": np.frombuffer(b"".join(texts), "u1"),
    }


def answers_digest(index_digest: str, table: AnswerTable) -> str:
    """SHA-256 of everything in the file."""
    digest = hashlib.sha256(f"{index_digest} {len(table)}".encode())
    for aspect, column in table.columns.items():
        for name, values in _arrays(column).items():
            digest.update(f"\n{aspect}/{name} {len(values)}\n".encode())
            digest.update(values.tobytes())
    return digest.hexdigest()


def load_answers(directory: Path, index_digest: str, remedy: str) -> AnswerTable | None:
    """Read the file; None if there is none for this index.

    Args:
        directory: Directory of the cache.
        index_digest: SHA-256 of its index.
        remedy: What to do about damage.

    Raises:
        DataError: Damaged.
        InputError: It may not be read.
    """
    path = directory / FILE
    if file_size(path, max_bytes=MAX_BYTES, key="cache.dir") is None:
        return None
    with naming_damage(path, remedy), safe_open(path, "np") as file:
        metadata = _metadata(path, (file.metadata() or {}).get(_KEY) or "{}", remedy)
        names = {aspect: [f"{aspect}/{name}" for name in ("numbers", "lengths", "text")] for aspect in metadata.aspects}
        if sorted(itertools.chain(*names.values())) != sorted(file.keys()):
            raise ValueError("its columns are not those of its aspects")
        columns = {aspect: _column(*map(file.get_tensor, found)) for aspect, found in names.items()}
        table = AnswerTable(columns, metadata.num_samples)
        if any(len(column.numbers) != len(table) for column in columns.values()):
            raise ValueError("its columns differ in length")
        if metadata.digest != answers_digest(metadata.index, table):
            raise ValueError("its content is not that of its digest")
        return table if metadata.index == index_digest else None


def _metadata(path: Path, text: str, remedy: str) -> _Metadata:
    try:
        return decode(_Metadata, text.encode(), str(path))
    except DataError as error:
        raise DataError(f"{error}; {remedy}" if remedy else str(error)) from None


def _column(numbers: np.ndarray, lengths: np.ndarray, text: np.ndarray) -> AnswerColumn:
    if not (numbers.dtype == lengths.dtype == np.int32 and numbers.ndim == lengths.ndim == text.ndim == 1):
        raise ValueError("its columns have other types or shapes")
    data = text.tobytes()
    if (lengths < 0).any() or lengths.sum(dtype=np.int64) != len(data):
        raise ValueError("the lengths of its texts are not those of their bytes")
    ends = np.cumsum([0, *lengths.tolist()]).tolist()
    texts = tuple(data[start:stop].decode("utf-8", "surrogatepass") for start, stop in itertools.pairwise(ends))
    if len(numbers) and not (numbers.min() >= NONE and numbers.max() < len(texts)):
        raise ValueError("a number stands for no text")
    return AnswerColumn(numbers, texts)
