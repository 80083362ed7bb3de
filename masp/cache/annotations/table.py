"""`annotations/<aspect>.parquet`: a row per image that was asked, in the order of the cache's index.

All files have one schema: `key`, `aspect`, `answer` (null: the image does not have the aspect), `confidence` (0 to 1),
`question` (null where nothing was asked), `origin` and `vlm` (digest of the model part of the fingerprint).
pyarrow takes a moment to import, so it is imported where it is used.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from masp.cache.annotations.manifest import Origin, StoredAspect, again, answers_path
from masp.data.sources.containers.arrow_columns import require_pyarrow
from masp.errors import DataError
from masp.files.atomic import write_bytes
from masp.files.regular import read_bytes

if TYPE_CHECKING:
    import pyarrow as pa

MAX_BYTES = 16 << 30
"""Size limit of a file; a row has about 50 bytes."""


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """The answer to an aspect of one image."""

    key: str
    answer: str | None
    """None: the image does not have the aspect."""
    confidence: float
    """From 0 to 1: the probability among the possible answers, or of generated answers the mean probability of a
    token; 1 for what people or pixels say."""
    origin: Origin

    def __post_init__(self) -> None:
        if not 0 <= self.confidence <= 1:
            raise ValueError("must have a confidence from 0 to 1")


def _schema() -> pa.Schema:
    import pyarrow as pa

    coded = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("aspect", coded, nullable=False),
            pa.field("answer", coded),
            pa.field("confidence", pa.float64(), nullable=False),
            pa.field("question", coded),
            pa.field("origin", coded, nullable=False),
            pa.field("vlm", coded),
        ]
    )


def table_bytes(aspect: str, answers: Sequence[StoredAnswer], question: str | None, vlm: str | None) -> bytes:
    """The content of a file; equal answers are equal bytes.

    Args:
        aspect: Name of the aspect.
        answers: Answers, in the order of the index.
        question: What the VLM was asked; None where the pixels answer.
        vlm: Digest of the VLM; None likewise.

    Raises:
        InputError: pyarrow is not installed.
    """
    require_pyarrow("annotate")
    import pyarrow as pa
    import pyarrow.parquet as pq

    asked = [each.origin == "vlm" for each in answers]
    columns = {
        "key": [each.key for each in answers],
        "aspect": [aspect] * len(answers),
        "answer": [each.answer for each in answers],
        "confidence": [each.confidence for each in answers],
        "question": [question if is_asked else None for is_asked in asked],
        "origin": [each.origin for each in answers],
        "vlm": [vlm if is_asked else None for is_asked in asked],
    }
    with io.BytesIO() as file:
        pq.write_table(pa.table(columns, schema=_schema()), file, compression="zstd", row_group_size=1 << 20)
        return file.getvalue()


def write_table(cache: Path, aspect: str, data: bytes) -> str:
    """Write a file to a temporary name, then rename it; returns its SHA-256.

    Raises:
        OSError: It cannot be written.
    """
    write_bytes(answers_path(cache, aspect), data)
    return hashlib.sha256(data).hexdigest()


def is_whole(cache: Path, aspect: str, stored: StoredAspect) -> bool:
    """Whether the file of an aspect is there and as the manifest says."""
    data = read_bytes(answers_path(cache, aspect), max_bytes=MAX_BYTES, key="cache.dir")
    return data is not None and hashlib.sha256(data).hexdigest() == stored.sha256


def read_table(cache: Path, aspect: str, stored: StoredAspect) -> list[StoredAnswer]:
    """The stored answers to an aspect, in the order of the index.

    Raises:
        DataError: The file is missing or damaged.
        InputError: It may not be read, or pyarrow is not installed.
    """
    require_pyarrow("annotate")
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = answers_path(cache, aspect)
    data = read_bytes(path, max_bytes=MAX_BYTES, key="cache.dir")
    if data is None:
        raise DataError(f"{path} is missing, but {path.parent / '_manifest.json'} lists it; {again(aspect)}")
    if hashlib.sha256(data).hexdigest() != stored.sha256:
        raise DataError(f"{path} is damaged: its digest is not the manifest's; {again(aspect)}")
    try:
        table = pq.read_table(pa.BufferReader(data))
        columns = [table.column(name).to_pylist() for name in ("key", "answer", "confidence", "origin")]
        answers = [StoredAnswer(*row) for row in zip(*columns, strict=True)]
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise DataError(f"{path} is damaged: {str(error).splitlines()[0]}; {again(aspect)}") from None
    if any(each.origin not in get_args(Origin) for each in answers):
        raise DataError(f"{path} is damaged: an answer has an unknown origin; {again(aspect)}")
    return answers
