"""How many tokens of text the language model reads per sequence: template, questions, answers."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from masp.config import Config
from masp.data.questions import load_questions
from masp.data.sample import Sample
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
    """Aspect -> tokens of its question, mean over the templates."""
    answers: dict[str, float]
    """Aspect -> tokens of its answer, mean over the training images that have one."""
    emotion_question: float
    emotion_answer: float
    counted: bool
    """Whether they were counted with the VLM's own tokenizer; otherwise a word or a punctuation mark counts as one."""


def count_words(config: Config, samples: Sequence[Sample], categories: Sequence[str]) -> Words:
    """Count the text tokens of a run.

    Args:
        config: Run configuration.
        samples: Training samples.
        categories: Categories that the emotion question lists.

    Raises:
        InputError: The questions file is unusable or lacks an aspect.
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
    return Words(
        *template,
        questions={a: statistics.mean(tokens(t) for t in questions.templates(a)) for a in config.aspects},
        answers={aspect: _mean(answers, tokens) for aspect, answers in by_aspect.items()},
        emotion_question=statistics.mean(map(tokens, questions.every_emotion(categories))),
        emotion_answer=_mean(emotions, tokens),
        counted=counted,
    )


def _mean(texts: dict[str, int], tokens: Callable[[str], int]) -> float:
    """Compute the mean tokens of texts, each weighted by how often it occurs."""
    total = sum(texts.values())
    return sum(tokens(text) * times for text, times in texts.items()) / total if total else 0.0


def _tokenizer(path: str) -> tuple[tuple[int, int, int, int], Callable[[str], int], bool]:
    """Return the tokens of the template's parts, a function that counts those of a text, and whether it is exact."""
    try:
        prompt = load_prompt(path)
    except InputError:  # a directory without a tokenizer is enough for a plan
        return _QWEN_TEMPLATE, lambda text: len(_PIECE.findall(text)), False
    template = len(prompt.opening), len(prompt.image_start), len(prompt.image_end), len(prompt.closing)
    return template, lambda text: len(prompt.ids(text)), True
