"""How many tokens of text the language model reads per sequence: template, questions, answers."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from masp.config import Config
from masp.data.questions import SLOT, load_questions
from masp.errors import InputError
from masp.vlm.prompt import load_prompt

_QWEN_TEMPLATE = (14, 1, 1, 5)
"""Tokens of the Qwen family's template: opening with the system turn, image start, image end, closing."""
_PIECE = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Words:
    """Mean numbers of text tokens."""

    opening: int
    """System turn and the start of the user turn."""
    image_start: int
    image_end: int
    closing: int
    """From the end of the question to the start of the answer."""
    questions: dict[str, float]
    """Aspect -> its question, mean over the templates."""
    answers: dict[str, float]
    """Aspect -> its answer, mean over the training images that have one."""
    emotion_question: float
    emotion_answer: float
    counted: bool
    """With the VLM's own tokenizer; otherwise a word or a punctuation mark is taken for a token."""


def count_words(config: Config, samples: Sequence[Any], categories: Sequence[str]) -> Words:
    """Count a run's text.

    Args:
        config: of the run.
        samples: the training images, as `masp.data.datasets.Sample`.
        categories: that the emotion question lists.

    Raises:
        InputError: the questions file is unusable or lacks an aspect.
    """
    questions = load_questions(config.questions)
    template, tokens, counted = _tokenizer(config.vlm.path)
    by_aspect: dict[str, dict[str, int]] = {aspect: {} for aspect in config.aspects}
    emotions: dict[str, int] = {}
    for sample in samples:
        emotions[sample.category] = emotions.get(sample.category, 0) + 1
        for aspect, answer in sample.answers.items():
            if aspect in by_aspect:
                by_aspect[aspect][answer] = by_aspect[aspect].get(answer, 0) + 1
    listed = ", ".join(categories)
    return Words(
        *template,
        questions={a: statistics.mean(tokens(t) for t in questions.templates(a)) for a in config.aspects},
        answers={aspect: _mean(answers, tokens) for aspect, answers in by_aspect.items()},
        emotion_question=statistics.mean(tokens(t.replace(SLOT, listed)) for t in questions.emotions),
        emotion_answer=_mean(emotions, tokens),
        counted=counted,
    )


def _mean(texts: dict[str, int], tokens: Callable[[str], int]) -> float:
    """Mean tokens of texts that occur so many times."""
    total = sum(texts.values())
    return sum(tokens(text) * times for text, times in texts.items()) / total if total else 0.0


def _tokenizer(path: str) -> tuple[tuple[int, int, int, int], Callable[[str], int], bool]:
    """Tokens of the template's parts, a function that counts those of a text, and whether they are the VLM's own."""
    try:
        prompt = load_prompt(path)
    except InputError:  # a folder without tokenizer is enough to plan with
        return _QWEN_TEMPLATE, lambda text: len(_PIECE.findall(text)), False
    template = len(prompt.opening), len(prompt.image_start), len(prompt.image_end), len(prompt.closing)
    return template, lambda text: len(prompt.ids(text)), True
