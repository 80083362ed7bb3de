"""Explanations of predictions: what each aspect answers, where it looks, and what it did for the decision.

All prompts of an image run in one batch: the whole one, one without each aspect, one without all of them and one
without the vision features.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from masp.artifacts.trained import Trained
from masp.config import Config, load_aspects
from masp.config.aspects import VISION_FEATURES
from masp.data.questions import Questions
from masp.errors import InputError
from masp.evaluation.aspects import MAX_CLOSED, closed_answers, num_tokens_of_longest
from masp.evaluation.scorers import AspectScorer, Score, ScoreRequest, TargetScorer
from masp.results.explanations.explanation import AspectExplanation, Explanation
from masp.results.metrics import softmax
from masp.vlm.language import LanguageHalf
from masp.vlm.preprocessor import load_token_grid
from masp.vlm.prompt import load_prompt

WHOLE: frozenset[str] = frozenset()


def left_out(aspects: Sequence[str], vision_features: bool) -> list[frozenset[str]]:
    """What is left out of each prompt of an image: nothing, each aspect, all aspects, the vision features.

    A prompt that would be the same as another, or would have nothing of the image, is not among them.

    Args:
        aspects: Aspects whose tokens are in the prompt.
        vision_features: Whether vision features are.
    """
    everything = {*aspects, *([VISION_FEATURES] if vision_features else [])}
    parts = [WHOLE, *(frozenset([aspect]) for aspect in aspects), frozenset(aspects)]
    parts += [frozenset([VISION_FEATURES])] if vision_features else []
    return [part for part in dict.fromkeys(parts) if part != everything]


@dataclass(frozen=True)
class Answering:
    """How aspects are asked."""

    closed: Mapping[str, tuple[str, ...]]
    """Aspect -> answers whose likelihoods are compared; the others are written."""
    longest: Mapping[str, int]
    """Aspect -> number of tokens of its longest answer; a written one is no longer."""


def answering(config: Config, seen: Mapping[str, Collection[str]]) -> Answering:
    """How aspects are asked: by the answers of a dataset, as in evaluations of stage 1, else by their definition.

    Args:
        config: Run configuration.
        seen: Aspect -> its different answers in the dataset, where it has any.
    """
    defined = load_aspects(config.aspect_definitions)
    closed, known = {}, {}
    for name in config.aspects:
        aspect, answers = defined[name], set(seen.get(name, ()))
        # a list answers with several of its vocabulary, so that says nothing of its length
        known[name] = answers or ({*aspect.vocabulary} if aspect.kind != "list" else set())
        choices = closed_answers(aspect, answers)
        if not answers and aspect.kind != "list" and 2 <= len(aspect.vocabulary) <= MAX_CLOSED:
            choices = aspect.vocabulary
        if choices:
            closed[name] = choices
    longest = dict.fromkeys(config.aspects, config.annotate.max_new_tokens)
    given = {name: answers for name, answers in known.items() if answers}
    return Answering(closed, longest | num_tokens_of_longest(load_prompt(config.vlm.path), given))


def why_no_attention(config: Config) -> str:
    """Why explanations of this VLM do not say where aspects look; empty where they do."""
    try:
        load_token_grid(config.vlm, "explanations say where aspects look")
    except InputError as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class Found:
    """What the model says about one image, from which its explanation follows."""

    scores: Mapping[frozenset[str], Score]
    """What was left out of the prompt -> scores of all categories."""
    answers: Mapping[str, Score]
    """Aspect -> its answer, see `AspectScorer.answers`, in the order of the prompt."""
    attention: np.ndarray | None
    """`[A, height, width]`, or None."""


class Explainer:
    """Explains predictions of a model that has aspect modules.

    Args:
        config: Run configuration.
        trained: What was trained.
        questions: Questions.
        target: Scorer of the target.
        language: The VLM's language half, as in `target`.
        how: How aspects are asked; None for what their definitions say.

    Raises:
        InputError: There are no aspect modules.
    """

    def __init__(
        self,
        config: Config,
        trained: Trained,
        questions: Questions,
        target: TargetScorer,
        language: LanguageHalf,
        how: Answering | None = None,
    ):
        if trained.aspects is None:
            raise InputError("this run has no aspect modules, so there is nothing to explain its predictions with")
        self.config, self.target = config, target
        how = answering(config, {}) if how is None else how
        self.why_no_attention = why_no_attention(config)
        """Why explanations do not say where aspects look; empty where they do."""
        layout = (trained.aspect_lineage and trained.aspect_lineage.layout) or config.stage1.layout
        device, closed, longest = target.device, how.closed, how.longest
        self.answers = AspectScorer(config, trained.aspects, layout, questions, closed, longest, device, language)

    def explain(self, requests: Sequence[ScoreRequest]) -> list[Explanation]:
        """Explain the predictions of a batch of images.

        Args:
            requests: The images; nothing is left out of their prompts.

        Raises:
            InputError: The output of the model for an image is not finite.
        """
        found = self.find(requests)
        return [explanation(r.name, self.target.categories, f) for r, f in zip(requests, found, strict=True)]

    def find(self, requests: Sequence[ScoreRequest]) -> list[Found]:
        """Ask what explanations are made from; arguments and errors as `explain`."""
        said = {aspect: self.answers.answers(requests, aspect) for aspect in self.target.aspects}
        looked = None if self.why_no_attention else self.target.attention(requests)
        parts = left_out(self.target.aspects, self.target.vision_features)
        return [
            Found(
                dict(zip(parts, self.target.score([replace(request, without=part) for part in parts]), strict=True)),
                {aspect: answers[row] for aspect, answers in said.items()},
                looked[row] if looked else None,
            )
            for row, request in enumerate(requests)
        ]


def explanation(name: str, categories: Sequence[str], found: Found) -> Explanation:
    """An explanation from what the model says.

    Args:
        name: Of the image.
        categories: In the order of the scores.
        found: What it says.
    """
    rows = list(found.scores)
    sums = np.array([found.scores[row].scores for row in rows], dtype=np.float64)
    shares = softmax(sums)
    best = list(categories).index(str(found.scores[WHOLE].prediction))
    whole = rows.index(WHOLE)

    def change(part: frozenset[str], of: np.ndarray) -> float | None:
        return float(of[whole, best] - of[rows.index(part), best]) if part in found.scores else None

    logs = sums - np.logaddexp.reduce(sums, axis=1, keepdims=True)
    aspects = []
    for place, (aspect, answer) in enumerate(found.answers.items()):
        contribution, in_logs = change(frozenset([aspect]), sums), change(frozenset([aspect]), logs)
        seen = None if found.attention is None else found.attention[place]
        said = answer.prediction or ""
        aspects.append(AspectExplanation(aspect, said, _probability(answer), contribution, in_logs, seen))
    return Explanation(
        image=name,
        category=categories[best],
        probability=float(shares[whole, best]),
        probabilities=dict(zip(categories, shares[whole].tolist(), strict=True)),
        aspects=tuple(aspects),
        all_aspects=change(frozenset(found.answers), sums),
        vision_features=change(frozenset([VISION_FEATURES]), sums),
    )


def _probability(answer: Score) -> float:
    """Of an answer: among those that were compared, or that the model writes its tokens."""
    assert answer.scores is not None
    share = float(softmax([answer.scores]).max()) if len(answer.scores) > 1 else math.exp(answer.scores[0])
    return min(1.0, share)  # but for rounding
