"""The annotations of a cache, completed by the stored answers: what training and evaluation see.

What people annotated always stays. A stored answer with too little confidence, or that the image does not have the
aspect, gives no annotation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masp.cache.annotations.manifest import DIRECTORY, MANIFEST, Origin, StoredAspect, read_stored
from masp.cache.annotations.source import definition_of
from masp.cache.annotations.table import StoredAnswer, read_table
from masp.cache.fingerprint import Fields, compare
from masp.config import Config
from masp.config.aspects import load_aspects
from masp.data.answer_table import NONE, AnswerColumn, AnswerTable
from masp.data.questions import questions_of
from masp.errors import DataError
from masp.files.fields import Count, Sha256


@dataclass(frozen=True)
class Origins:
    """Who gave the answers to an aspect that are used."""

    people: Count
    """Images that people annotated."""
    vlm: Count = 0
    pixels: Count = 0
    num_unsure: Count = 0
    """Answers of the VLM that are not used, as their confidence is below `min_confidence`."""
    min_confidence: float = 0.0
    file: Sha256 | None = None
    """SHA-256 of the file of the stored answers; None where there is none."""

    @property
    def text(self) -> str:
        """As one line says it."""
        parts = [
            (self.people, "by people"),
            (self.vlm, f"by the VLM (confidence at least {self.min_confidence:g})"),
            (self.pixels, "from pixels"),
        ]
        found = ", ".join(f"{count:,} {who}" for count, who in parts if count) or "none"
        return found if self.file is None else f"{found}; annotations {self.file[:12]}"


@dataclass(frozen=True)
class Completed:
    """Annotations with the stored answers in them."""

    table: AnswerTable
    """In the order of the index."""
    origins: Mapping[str, Origins]
    """Aspect -> who gave its answers, of every aspect with stored answers that is in use."""


def complete(
    answers: Callable[[], AnswerTable],
    keys: Sequence[str],
    directory: Path,
    index_digest: str,
    model: Fields,
    config: Config,
) -> Completed | None:
    """The annotations of a cache with the stored answers to the aspects in use; None where nothing is stored.

    Args:
        answers: Returns what people annotated, in the order of the index.
        keys: Keys of the index.
        directory: Directory of the cache.
        index_digest: SHA-256 of its index.
        model: Model part of its fingerprint.
        config: Run configuration; `aspects`, `annotate.min_confidence` and the definitions matter.

    Raises:
        InputError: The answers are to another question or by another VLM, or belong to another cache; names the field
            and both values.
        DataError: A file is damaged.
    """
    everything = read_stored(directory)
    stored = {name: everything[name] for name in config.aspects if name in everything}
    if not stored:
        return None
    own, row_of = answers(), {key: row for row, key in enumerate(keys)}
    columns, origins = dict(own.columns), dict[str, Origins]()
    for aspect, found in stored.items():
        check_stored(directory, aspect, found, index_digest, model, config)
        columns[aspect], origins[aspect] = _merged(
            own.columns.get(aspect),
            read_table(directory, aspect, found),
            row_of,
            config.annotate.min_confidence,
            found,
            directory,
        )
    return Completed(AnswerTable(dict(sorted(columns.items())), len(own)), origins)


def check_stored(
    directory: Path, aspect: str, found: StoredAspect, index_digest: str, model: Fields, config: Config
) -> None:
    """Refuse stored answers to another question, by another VLM or about other images.

    Raises:
        InputError: Names the field and both values.
    """
    what = f"{directory / DIRECTORY}: aspect {aspect}"
    then = f"`masp annotate --forget {aspect}` and `masp annotate` ask again"
    definition = load_aspects(config.aspect_definitions).get(aspect)
    if definition is not None:
        here = definition_of(definition, questions_of(config).aspect_first(aspect))
        compare(found.source.definition, here, what, f"give the old value, or {then}")
    if found.source.vlm:
        compare(found.source.vlm, model, what, f"they belong to another cache; {then}")
    if found.index != index_digest:
        compare(
            {"index": found.index}, {"index": index_digest}, what,
            "the cache has changed or it is another one; `masp annotate` again answers what is missing",
        )  # fmt: skip


def _merged(
    own: AnswerColumn | None,
    answers: Sequence[StoredAnswer],
    row_of: Mapping[str, int],
    min_confidence: float,
    stored: StoredAspect,
    directory: Path,
) -> tuple[AnswerColumn, Origins]:
    numbers = np.full(len(row_of), NONE, dtype=np.int32) if own is None else own.numbers
    counts: dict[Origin, int] = {"vlm": 0, "pixels": 0, "dataset": 0}
    more: dict[int, str] = {}
    num_unsure, people = 0, int((numbers != NONE).sum())
    for each in answers:
        row = row_of.get(each.key)
        if row is None:
            raise DataError(f"{directory / DIRECTORY / MANIFEST}: sample {each.key} is not in the cache")
        if each.answer is None or numbers[row] != NONE:
            continue
        if each.origin == "vlm" and each.confidence < min_confidence:
            num_unsure += 1
            continue
        more[row] = each.answer
        counts[each.origin] += 1
    texts = tuple(sorted({*(own.texts if own else ()), *more.values()}))
    number_of = {text: number for number, text in enumerate(texts)}
    merged = np.full(len(numbers), NONE, dtype=np.int32)
    if own is not None:
        ours = np.array([*(number_of[text] for text in own.texts), NONE], dtype=np.int32)
        merged[:] = ours[numbers]  # NONE is also the last place
    if more:
        merged[list(more)] = [number_of[text] for text in more.values()]
    origins = Origins(
        people + counts["dataset"], counts["vlm"], counts["pixels"], num_unsure, min_confidence, stored.sha256
    )
    return AnswerColumn(merged, texts), origins
