"""Explanations of predictions: what each aspect answers, where it looks, and what it did for the decision.

All prompts of an image run in one batch: the whole one, one without each aspect, one without all of them and one
without the vision features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from masp.artifacts.trained import Trained
from masp.config import Config, load_aspects
from masp.config.aspects import VISION_FEATURES
from masp.data.questions import Questions
from masp.errors import InputError
from masp.evaluation.aspects import MAX_CLOSED, num_tokens_of_longest
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


def known_answers(config: Config) -> dict[str, tuple[str, ...]]:
    """Aspect -> its possible answers by its definition, of aspects where these are few enough to be compared."""
    defined = load_aspects(config.aspect_definitions)
    closed = {name: defined[name].vocabulary for name in config.aspects if defined[name].kind != "list"}
    return {name: answers for name, answers in closed.items() if 2 <= len(answers) <= MAX_CLOSED}


class Explainer:
    """Explains predictions of a model that has aspect modules.

    Args:
        config: Run configuration.
        trained: What was trained.
        questions: Questions.
        target: Scorer of the target.
        language: The VLM's language half, as in `target`.
        closed: Aspect -> answers whose likelihoods are compared; None for those of the definitions.

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
        closed: Mapping[str, Sequence[str]] | None = None,
    ):
        if trained.aspects is None:
            raise InputError("this run has no aspect modules, so there is nothing to explain its predictions with")
        self.config, self.target = config, target
        closed = known_answers(config) if closed is None else closed
        defined = load_aspects(config.aspect_definitions)
        longest = dict.fromkeys(config.aspects, config.annotate.max_new_tokens)
        named = {name: defined[name].vocabulary for name in config.aspects if defined[name].vocabulary}
        # of a list, an answer names several
        longest |= {
            name: count
            for name, count in num_tokens_of_longest(load_prompt(config.vlm.path), named).items()
            if defined[name].kind != "list"
        }
        self.why_no_attention = ""
        """Why explanations do not say where aspects look; empty where they do."""
        try:
            load_token_grid(config.vlm, "explanations say where aspects look")
        except InputError as error:
            self.why_no_attention = str(error)
        layout = (trained.aspect_lineage and trained.aspect_lineage.layout) or config.stage1.layout
        device = target.device
        self.answers = AspectScorer(config, trained.aspects, layout, questions, closed, longest, device, language)

    def explain(self, requests: Sequence[ScoreRequest]) -> list[Explanation]:
        """Explain the predictions of a batch of images.

        Args:
            requests: The images; nothing is left out of their prompts.

        Raises:
            InputError: The output of the model for an image is not finite.
        """
        said = {aspect: self.answers.answers(requests, aspect) for aspect in self.target.aspects}
        looked = None if self.why_no_attention else self.target.attention(requests)
        return [
            self._explained(
                request, {aspect: answers[row] for aspect, answers in said.items()}, looked[row] if looked else None
            )
            for row, request in enumerate(requests)
        ]

    def _explained(
        self, request: ScoreRequest, said: Mapping[str, tuple[str, float]], looked: np.ndarray | None
    ) -> Explanation:
        parts = left_out(self.target.aspects, self.target.vision_features)
        scores = self.target.score([replace(request, without=part) for part in parts])
        found = dict(zip(parts, scores, strict=True))
        return explanation(request.name, self.target.categories, found, said, looked)


def explanation(
    name: str,
    categories: Sequence[str],
    scores: Mapping[frozenset[str], Score],
    said: Mapping[str, tuple[str, float]],
    looked: np.ndarray | None,
) -> Explanation:
    """An explanation from the scores of all prompts of an image.

    Args:
        name: Of the image.
        categories: In the order of the scores.
        scores: What was left out -> scores of all categories.
        said: Aspect -> its answer and the probability of it, in the order of the prompt.
        looked: `[A, height, width]` attention maps, or None.
    """
    rows = list(scores)
    sums = np.array([scores[row].scores for row in rows], dtype=np.float64)
    shares = softmax(sums)
    best = list(categories).index(str(scores[WHOLE].prediction))
    whole = rows.index(WHOLE)

    def change(part: frozenset[str], of: np.ndarray) -> float | None:
        return float(of[whole, best] - of[rows.index(part), best]) if part in scores else None

    logs = sums - np.logaddexp.reduce(sums, axis=1, keepdims=True)
    aspects = []
    for place, (aspect, (answer, probability)) in enumerate(said.items()):
        contribution, in_logs = change(frozenset([aspect]), sums), change(frozenset([aspect]), logs)
        seen = None if looked is None else looked[place]
        aspects.append(AspectExplanation(aspect, answer, probability, contribution, in_logs, seen))
    return Explanation(
        image=name,
        category=categories[best],
        probability=float(shares[whole, best]),
        probabilities=dict(zip(categories, shares[whole].tolist(), strict=True)),
        aspects=tuple(aspects),
        all_aspects=change(frozenset(said), sums),
        vision_features=change(frozenset([VISION_FEATURES]), sums),
    )
