"""The files that predictions are written to: CSV for spreadsheets, JSON lines, parquet.

One row per image, in the order of the inputs. Columns: `image`; `status` (`ok` or `unreadable`); `prediction`;
`probability_<category>` and `log_likelihood_<category>` for every category; `reason`, why an image cannot be read. With
explanations also `explanation` (the sentence), per aspect its answer, the probability of that, contribution and change
of the log-probability, and `all_aspects`, `vision_features`, `interaction`: flat in CSV (`aspect_<name>_answer` …), a
struct `aspects` in parquet.

JSON lines are those of `masp predict --json`, with `status` and `reason`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from masp.errors import InputError
from masp.inference.batch.rows import Row
from masp.report.export import spreadsheet_text
from masp.results.metrics import softmax

OF_ASPECTS = ("answer", "probability", "contribution", "log_probability_change")
_GROUP_ROWS = 32_768
"""Of a row group in parquet."""
TOGETHER = ("all_aspects", "vision_features", "interaction")


@dataclass(frozen=True)
class Contents:
    """What the rows of an output have."""

    categories: tuple[str, ...]
    """In the order of the question."""
    aspects: tuple[str, ...] | None
    """The explained ones; None without explanations."""
    target: str | None = None
    """Name of the target; None for the emotion."""
    identity: str = "{}"
    """What the rows depend on, as JSON."""


class Writer(Protocol):
    """Writes rows to a file."""

    def write(self, names: Sequence[str], rows: Sequence[Row]) -> None:
        """Add rows of images with these names."""
        ...


def opener_of(output: Path) -> Callable[[Path, Contents], AbstractContextManager[Writer]]:
    """What opens an output for writing, by its extension: a function of a path and the contents.

    Raises:
        InputError: The extension is not one of those that are written.
    """
    found = _OPENERS.get(output.suffix.lower())
    if found is None:
        raise InputError(f"--output {output}: must end in {', '.join(_OPENERS)}")
    return found


def as_object(name: str, row: Row, contents: Contents) -> dict[str, Any]:
    """A row as JSON has it."""
    found: dict[str, Any] = {"image": name, "status": "ok" if row.reason is None else "unreadable"}
    if contents.target is not None:
        found["target"] = contents.target
    if row.log_likelihoods is None:
        return found | {"prediction": None, "reason": row.reason}
    shares = dict(zip(contents.categories, probabilities(row), strict=True))
    sums = dict(zip(contents.categories, row.log_likelihoods, strict=True))
    found |= {"prediction": row.prediction, "probabilities": shares, "log_likelihoods": sums, "reason": None}
    return found | (row.explanation or {})


def probabilities(row: Row) -> list[float]:
    """Of the categories: the softmax of the log-likelihoods."""
    assert row.log_likelihoods is not None, "it was predicted"
    return softmax([row.log_likelihoods])[0].tolist()


@contextmanager
def _open_jsonl(path: Path, contents: Contents) -> Iterator[Writer]:
    class JsonLines:
        def write(self, names: Sequence[str], rows: Sequence[Row]) -> None:
            for name, row in zip(names, rows, strict=True):
                file.write(json.dumps(as_object(name, row, contents), allow_nan=False) + "\n")

    with open(path, "w", encoding="ascii") as file:
        yield JsonLines()


def _flat_columns(contents: Contents) -> list[str]:
    columns = ["image", "status", "prediction"]
    columns += [f"{what}_{c}" for what in ("probability", "log_likelihood") for c in contents.categories]
    columns += ["reason"]
    if contents.aspects is not None:
        columns += ["explanation"]
        columns += [f"aspect_{aspect}_{name}" for aspect in contents.aspects for name in OF_ASPECTS]
        columns += TOGETHER
    return columns


def _flat(row: Row, contents: Contents, nested: bool) -> list[Any]:
    """The values of a row but for its name; aspects as one value if `nested`."""
    num_categories = len(contents.categories)
    if row.log_likelihoods is None:
        values: list[Any] = ["unreadable", None, *[None] * (2 * num_categories), row.reason]
    else:
        values = ["ok", row.prediction, *probabilities(row), *row.log_likelihoods, None]
    if contents.aspects is not None:
        why: dict[str, Any] = row.explanation or {}
        aspects = why.get("aspects")
        each = [(aspects or {}).get(aspect, {}).get(name) for aspect in contents.aspects for name in OF_ASPECTS]
        values += [why.get("explanation"), *([aspects] if nested else each), *map(why.get, TOGETHER)]
    return values


@contextmanager
def _open_csv(path: Path, contents: Contents) -> Iterator[Writer]:
    class Csv:
        def write(self, names: Sequence[str], rows: Sequence[Row]) -> None:
            for name, row in zip(names, rows, strict=True):
                table.writerow(map(_csv_cell, [name, *_flat(row, contents, nested=False)]))

    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(map(spreadsheet_text, _flat_columns(contents)))
        yield Csv()


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    return spreadsheet_text(value) if isinstance(value, str) else repr(value)


@contextmanager
def _open_parquet(path: Path, contents: Contents) -> Iterator[Writer]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = _flat_columns(contents)
    if contents.aspects is not None:
        first = columns.index("explanation") + 1
        columns = [*columns[:first], "aspects", *TOGETHER]
    of_aspect = pa.struct([(name, pa.string() if name == "answer" else pa.float64()) for name in OF_ASPECTS])
    aspects = pa.struct([(_text(aspect), of_aspect) for aspect in contents.aspects or ()])

    def kind(name: str) -> pa.DataType:
        if name == "aspects" and contents.aspects is not None:
            return aspects
        is_number = name.startswith(("probability_", "log_likelihood_")) or name in TOGETHER
        return pa.float64() if is_number else pa.string()

    metadata = {"masp": contents.identity}
    schema = pa.schema([(_text(name), kind(name)) for name in columns], metadata=metadata)

    class Parquet:
        def __init__(self) -> None:
            self.waiting: list[pa.RecordBatch] = []

        def write(self, names: Sequence[str], rows: Sequence[Row]) -> None:
            values = [[name, *_flat(row, contents, nested=True)] for name, row in zip(names, rows, strict=True)]
            arrays = [
                pa.array([_storable(row[place]) for row in values], field.type) for place, field in enumerate(schema)
            ]
            self.waiting.append(pa.record_batch(arrays, schema=schema))
            if sum(map(len, self.waiting)) >= _GROUP_ROWS:
                self.flush()

        def flush(self) -> None:
            file.write_table(pa.Table.from_batches(self.waiting, schema))
            self.waiting = []

    with pq.ParquetWriter(path, schema) as file:
        writer = Parquet()
        yield writer
        writer.flush()


def _storable(value: Any) -> Any:
    """A value with text that is UTF-8, as parquet requires: bytes of a file name that are not are escaped."""
    if isinstance(value, dict):
        return {_text(name): _storable(each) for name, each in value.items()}
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


_OPENERS = {".csv": _open_csv, ".jsonl": _open_jsonl, ".parquet": _open_parquet}
