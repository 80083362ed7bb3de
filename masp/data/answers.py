"""From an annotation, as the author of a dataset wrote it, to the answers that the language model must give."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from masp.config.aspects import Aspect, Aspects, Kind
from masp.data.reading import read_json
from masp.errors import DataError
from masp.files.fields import OMIT_NONE
from masp.files.text import nfc, shown
from masp.files.typed import is_text


@dataclass(frozen=True, slots=True)
class Annotation:
    """What one annotation file says."""

    answers: dict[str, str]
    """Aspect -> answer, of every aspect that is annotated."""
    other_keys: tuple[str, ...]
    """Its keys that are not aspects."""


@dataclass(frozen=True)
class AnswerForm:
    """What of the definition of an aspect decides which answer an annotation means; a cache keeps it."""

    kind: Kind
    bounds: Annotated[tuple[float, float] | None, OMIT_NONE] = None
    words: Annotated[tuple[str, ...] | None, OMIT_NONE] = None
    """Of a level, from lowest to highest."""

    def __str__(self) -> str:
        if self.bounds is None or self.words is None:
            return f"kind = {self.kind}"
        low, high = map(_number, self.bounds)
        return f"a level from {low} to {high} in the words {', '.join(self.words)}"


def answer_form(aspect: Aspect) -> AnswerForm:
    """The form of the answers to an aspect."""
    return AnswerForm(aspect.kind, aspect.bounds, aspect.vocabulary if aspect.kind == "level" else None)


def answer_text(aspect: Aspect, value: Any) -> str | None:
    """The answer that an annotated value means.

    Args:
        aspect: Aspect that the value is about.
        value: Value in the annotation: a number between the bounds of a level, a list of strings for a list, else a
            string; None where there is none.

    Returns:
        The answer in lower case, or None if the value is empty (None, empty string, empty list).

    Raises:
        ValueError: The value is none of these; the message is what would be valid.
    """
    if value is None:
        return None
    if aspect.kind == "level":
        return _level(aspect, value)
    texts, valid = (value, "a list of strings") if aspect.kind == "list" else ([value], "a string")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"must be {valid}")
    return ", ".join(filter(None, map(_clean, texts))) or None


def read_annotation(path: str | Path, aspects: Aspects) -> Annotation:
    """Read one annotation file.

    Args:
        path: A JSON file that holds one object; the values of keys other than the aspects are not looked at.
        aspects: Aspects to read.

    Raises:
        FileNotFoundError: The file does not exist.
        DataError: Not a JSON object, or a value in it is not valid. The message names file, key and value.
        OSError: It cannot be read.
    """
    annotation = read_json(path, DataError)
    if not isinstance(annotation, dict):
        raise DataError(f'{path}: must hold one JSON object, such as {{"NAME OF AN ASPECT": "its value"}}')
    by_name = {nfc(key): value for key, value in annotation.items()}
    if len(by_name) < len(annotation):
        twice = next(key for key in annotation if nfc(key) != key)
        raise DataError(f"{path}: has the key {shown(twice)} twice, in two Unicode forms; leave one out")
    answers = {}
    for name, aspect in aspects.items():
        try:
            answer = answer_text(aspect, by_name.get(name))
        except ValueError as error:
            raise DataError(f"{path}: {name} = {shown(by_name[name])}: {error}, or be left out") from None
        if answer is not None:
            answers[name] = answer
    return Annotation(answers, tuple(key for key in by_name if key not in aspects))


def _level(aspect: Aspect, value: Any) -> str:
    assert aspect.bounds is not None, f"{aspect.name} is a level"
    (low, high), words = aspect.bounds, aspect.vocabulary
    # The comparison is written so that NaN, which JSON readers let pass, fails it.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"must be a number from {_number(low)} to {_number(high)}")
    # A step includes its lower end, also when arithmetic left it a few bits short (1 - 0.8 is 0.19999999999999996);
    # far from zero the bits of a number are coarser.
    width = high - low
    short = max(1e-9, 4 * sys.float_info.epsilon * max(abs(low), abs(high)) / width * len(words))
    step = int((float(value) - low) / width * len(words) + short)
    return words[min(step, len(words) - 1)]


def _number(value: float) -> str:
    """A number as people write it: 1.0 as `1`."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


@functools.lru_cache(maxsize=1 << 16)
def _clean(text: str) -> str:
    if not is_text(text):
        raise ValueError("must be text, without halves of a surrogate pair")
    return nfc(" ".join(text.replace("_", " ").lower().split()))
