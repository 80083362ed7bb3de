"""From an annotation, as the author of a dataset wrote it, to the answers that the language model must give."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masp.data.reading import read_json
from masp.errors import DataError
from masp.files.text import nfc, shown
from masp.files.typed import is_text
from masp.taxonomy import ASPECTS

LEVELS = ("very low", "low", "moderate", "high", "very high")

LEVEL_ASPECTS = ("brightness", "colorfulness")
LIST_ASPECTS = ("object",)


@dataclass(frozen=True, slots=True)
class Annotation:
    """What one annotation file says."""

    answers: dict[str, str]
    """Aspect -> answer, of every aspect that is annotated."""
    other_keys: tuple[str, ...]
    """Its keys that are not aspects."""


def answer_text(aspect: str, value: Any) -> str | None:
    """The answer that an annotated value means.

    Args:
        aspect: One of `ASPECTS`.
        value: Value in the annotation: a number from 0 to 1 for brightness and colorfulness, a list of strings for
            object, else a string; None where there is none.

    Returns:
        The answer in lower case, or None if the value is empty (None, empty string, empty list).

    Raises:
        ValueError: The value is none of these; the message is what would be valid.
    """
    if value is None:
        return None
    if aspect in LEVEL_ASPECTS:
        return _level(value)
    texts, valid = (value, "a list of strings") if aspect in LIST_ASPECTS else ([value], "a string")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"must be {valid}")
    return ", ".join(filter(None, map(_clean, texts))) or None


def read_annotation(path: str | Path) -> Annotation:
    """Read one annotation file.

    Args:
        path: A JSON file that holds one object; the values of keys other than the aspects are not looked at.

    Raises:
        FileNotFoundError: The file does not exist.
        DataError: Not a JSON object, or a value in it is not valid. The message names file, key and value.
        OSError: It cannot be read.
    """
    annotation = read_json(path, DataError)
    if not isinstance(annotation, dict):
        raise DataError(f'{path}: must hold one JSON object such as {{"brightness": 0.5}}')
    by_name = {nfc(key): value for key, value in annotation.items()}
    if len(by_name) < len(annotation):
        twice = next(key for key in annotation if nfc(key) != key)
        raise DataError(f"{path}: has the key {shown(twice)} twice, in two Unicode forms; leave one out")
    answers = {}
    for aspect in ASPECTS:
        try:
            answer = answer_text(aspect, by_name.get(aspect))
        except ValueError as error:
            raise DataError(f"{path}: {aspect} = {shown(by_name[aspect])}: {error}, or be left out") from None
        if answer is not None:
            answers[aspect] = answer
    return Annotation(answers, tuple(key for key in by_name if key not in ASPECTS))


def _level(value: Any) -> str:
    # The comparison is written so that NaN, which JSON readers let pass, fails it.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError("must be a number from 0 to 1")
    # A step includes its lower end, also when arithmetic left it a few bits short (1 - 0.8 is 0.19999999999999996).
    step = int(value * len(LEVELS) + 1e-9)
    return LEVELS[min(step, len(LEVELS) - 1)]


@functools.lru_cache(maxsize=1 << 16)
def _clean(text: str) -> str:
    if not is_text(text):
        raise ValueError("must be text, without halves of a surrogate pair")
    return nfc(" ".join(text.replace("_", " ").lower().split()))
