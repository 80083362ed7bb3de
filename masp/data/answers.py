"""From an annotation, as a dataset's author wrote it, to the answers that the language model must give."""

import json
from pathlib import Path
from typing import Any

from masp.errors import DataError
from masp.files.retry import retry_io
from masp.files.text import all_lines
from masp.taxonomy import ASPECTS

LEVELS = ("very low", "low", "moderate", "high", "very high")

LEVEL_ASPECTS = ("brightness", "colorfulness")
LIST_ASPECTS = ("object",)


def answer_text(aspect: str, value: Any) -> str | None:
    """The answer that an annotated value stands for.

    Args:
        aspect: one of `ASPECTS`.
        value: the annotation's value: a number from 0 to 1 for brightness and colorfulness, a list of texts for
            object, else a text; None where there is none.

    Returns:
        The answer in lower case, or None if the value says nothing (None, empty text, empty list).

    Raises:
        ValueError: the value is none of these; the message is what would be valid.
    """
    if value is None:
        return None
    if aspect in LEVEL_ASPECTS:
        return _level(value)
    texts, valid = (value, "a list of texts") if aspect in LIST_ASPECTS else ([value], "a text")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"must be {valid}")
    return ", ".join(filter(None, map(_clean, texts))) or None


def read_annotation(path: Path) -> dict[str, str]:
    """The answers in one annotation file.

    Args:
        path: a JSON file that holds one object; keys that are no aspect say nothing about an answer.

    Returns:
        The answer of every aspect that is annotated.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it holds no JSON object, or a value that is not valid. The message names file, key and value.
        OSError: it cannot be read.
    """
    content = retry_io(path.read_bytes)
    try:
        annotation = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON: {all_lines(error)}") from None
    if not isinstance(annotation, dict):
        raise DataError(f'{path}: must hold one JSON object such as {{"brightness": 0.5}}')
    answers = {}
    for aspect in ASPECTS:
        try:
            answer = answer_text(aspect, annotation.get(aspect))
        except ValueError as error:
            shown = repr(annotation[aspect])[:80]
            raise DataError(f"{path}: {aspect} = {shown}: {error}, or be left out") from None
        if answer is not None:
            answers[aspect] = answer
    return answers


def _level(value: Any) -> str:
    # The comparison is written so that NaN, which JSON readers let pass, fails it.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError("must be a number from 0 to 1")
    # A step's lower end belongs to it, also when arithmetic left it a few bits short (1 - 0.8 is 0.19999999999999996).
    step = int(value * len(LEVELS) + 1e-9)
    return LEVELS[min(step, len(LEVELS) - 1)]


def _clean(text: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # JSON lets halves of a pair pass; no tokenizer does
        raise ValueError("must be text, without halves of a surrogate pair")
    return " ".join(text.replace("_", " ").lower().split())
