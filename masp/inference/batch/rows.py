"""What is kept of each image while a batch prediction runs, a line each, and what all of it depends on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masp.errors import DataError
from masp.files.jsonl import whole_lines
from masp.files.regular import read_bytes
from masp.files.typed import Json, decode
from masp.results.explanations.explanation import Explanation
from masp.results.ledger_format import encode_line, unsealed_line


@dataclass(frozen=True)
class Row:
    """What was found for one image."""

    number: int
    """Of the image, in the order of the inputs."""
    reason: str | None = None
    """Why it cannot be read; None if it was predicted."""
    prediction: str | None = None
    log_likelihoods: tuple[float, ...] | None = None
    """Of the categories in the order of the question, nats."""
    explanation: dict[str, Json] | None = None
    """As `Explanation.to_json` has it, without the prediction; None if it was not asked for."""

    def line(self) -> bytes:
        """The row with a checksum."""
        return encode_line({name: value for name, value in vars(self).items() if value is not None})


def explained(explanation: Explanation) -> dict[str, Any]:
    """What a row has of an explanation."""
    known = ("image", "prediction", "probabilities")
    return {name: value for name, value in explanation.to_json().items() if name not in known}


def read_rows(path: Path, numbers: Sequence[int], is_whole: bool) -> tuple[list[Row], int]:
    """Read the rows of a file.

    Args:
        path: The file.
        numbers: Those that the rows must have, in order.
        is_whole: Whether all of them must be there. Otherwise a line that a kill has cut off is left out.

    Returns:
        The rows, and the number of bytes that they take.

    Raises:
        DataError: The file is damaged.
    """
    data = read_bytes(path) or b""
    lines, num_bytes = whole_lines(data)
    try:
        rows = list(_rows(lines))
    except (DataError, ValueError) as error:
        raise damaged(path, str(error)) from None
    found = [row.number for row in rows]
    if found != list(numbers[: len(found)]) or (is_whole and (len(found) < len(numbers) or num_bytes < len(data))):
        raise damaged(path, f"it does not have the rows of its images ({len(found)} of {len(numbers)})")
    return rows, num_bytes


def _rows(lines: Sequence[bytes]) -> Iterator[Row]:
    texts = []
    for number, line in enumerate(lines, start=1):
        text, has_checksum = unsealed_line(line)
        if not has_checksum:
            raise ValueError(f"line {number} has no checksum")
        texts.append(text)
    yield from decode(list[Row], b"[" + b",".join(texts) + b"]", "a row", unique_keys=False, surrogates=True)


def damaged(path: Path, why: str) -> DataError:
    """The error about a file of rows."""
    return DataError(
        f"{os.fspath(path)} is damaged: {why}; delete this file and run the same command again, which predicts its "
        "images again"
    )
