"""The records of an evaluation as CSV: a line per image, and for stage 1 a line per annotated aspect of an image.

`masp.report.export` says how cells are spelled. Columns keep their order; new ones come last.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from masp.errors import InputError
from masp.files.atomic import replacing
from masp.files.text import reason
from masp.report.export import spreadsheet_text
from masp.report.images import shown_name
from masp.results.aspect_metrics import token_f1
from masp.results.aspect_records import AspectRecords, read_aspect_records
from masp.results.metrics import softmax
from masp.results.metrics_file import check_written_with
from masp.results.records import Records, read_records_file

_CHUNK = 10_000


def write_target_table(path: Path, source: Path) -> Path:
    """Write a line per image: what it is, what was predicted, and the probability and score of every category; then
    those of the data's own distribution, where they have any.

    Args:
        path: CSV file.
        source: `records.h5` of an evaluation of a target.

    Returns:
        `path`.

    Raises:
        InputError: It cannot be written. DataError: `source` is damaged, or not the file that the metrics beside it
            were written with.
    """
    records = read_records_file(source)
    check_written_with(source, records.digest)
    fixed = ["sample_key", "image", "label", "prediction", "correct", "probability", "label_probability"]
    names = [f"probability {c}" for c in records.categories] + [f"score {c}" for c in records.categories]
    names += [] if records.distribution is None else [f"distribution {c}" for c in records.categories]
    return _write(path, [*fixed, *names], _target_lines(records))


def _target_lines(records: Records) -> Iterator[list[str]]:
    position = {category: index for index, category in enumerate(records.categories)}
    for start in range(0, len(records), _CHUNK):
        scores = records.scores[start : start + _CHUNK]
        for row, (chances, sums) in enumerate(zip(softmax(scores), scores, strict=True), start):
            key, label, prediction = records.keys[row], records.labels[row], records.predictions[row]
            yield [
                *_outcome(key, label, prediction or ""),
                *(_number(chances, position.get(name or "")) for name in (prediction, label)),
                *(_number(values, place) for values in (chances, sums) for place in range(len(values))),
                *_own_distribution(records, row),
            ]


def _own_distribution(records: Records, row: int) -> list[str]:
    """The data's own probabilities of the categories; empty cells where the sample has none."""
    if records.distribution is None:
        return []
    own = records.distribution[row]
    return [repr(float(value)) for value in own] if own.any() else [""] * len(own)


def write_aspect_table(path: Path, source: Path) -> Path:
    """Write a line per annotated aspect of an image: what the annotation says, what was answered, and how likely it is.

    Probabilities and scores are those of the predicted and of the annotated answer; both are empty where the answer was
    written, and `token_f1` and `text` where likelihoods were compared.

    Args:
        path: CSV file.
        source: `records.h5` of an evaluation of stage 1.

    Returns:
        `path`.

    Raises:
        InputError: It cannot be written. DataError: `source` is damaged, or not the file that the metrics beside it
            were written with.
    """
    records = read_aspect_records(source)
    check_written_with(source, records.digest)
    names = [
        "sample_key", "image", "aspect", "label", "prediction", "correct", "probability", "label_probability", "score",
        "label_score", "token_f1", "text",
    ]  # fmt: skip
    return _write(path, names, _aspect_lines(records))


def _aspect_lines(records: AspectRecords) -> Iterator[list[str]]:
    number = np.zeros(len(records), dtype=np.int64)
    for found in records.compared.values():
        number[found.rows] = np.arange(len(found.rows))
    positions = {a: {answer: place for place, answer in enumerate(c.answers)} for a, c in records.compared.items()}
    probabilities = {aspect: softmax(found.scores) for aspect, found in records.compared.items()}
    rows = zip(records.keys, records.aspects, records.labels, records.predictions, records.texts, strict=True)
    for row, (key, aspect, label, prediction, text) in enumerate(rows):
        if aspect in records.compared:
            mine, places = number[row], [positions[aspect].get(answer) for answer in (prediction, label)]
            chances, scores = probabilities[aspect][mine], records.compared[aspect].scores[mine]
            likely, sums = ([_number(values, place) for place in places] for values in (chances, scores))
            f1 = ""
        else:
            likely, sums, f1 = ["", ""], ["", ""], repr(token_f1(prediction, label))
        sample_key, image, *outcome = _outcome(key, label, prediction)
        yield [sample_key, image, spreadsheet_text(aspect), *outcome, *likely, *sums, f1, spreadsheet_text(text)]


def _outcome(key: str, label: str, prediction: str) -> list[str]:
    texts = map(spreadsheet_text, (key, shown_name(key), label, prediction))
    return [*texts, str(int(label == prediction))]


def _number(values: np.ndarray, place: int | None) -> str:
    """A value in full precision; nothing where there is none."""
    return "" if place is None or np.isnan(values[place]) else repr(float(values[place]))


def _write(path: Path, names: Sequence[str], lines: Iterable[Sequence[str]]) -> Path:
    try:
        with (
            replacing(path) as temporary,
            open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(map(spreadsheet_text, names))
            writer.writerows(lines)
    except OSError as error:
        raise InputError(f"--tables {path.parent}: {path.name} cannot be written: {reason(error)}") from None
    return path
