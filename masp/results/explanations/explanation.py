"""What an explanation of one prediction holds, and the sentence that says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NAMED = 3
"""Aspects that the sentence names at most."""
LEAST = 0.05
"""Contribution (nats) from which on the sentence names an aspect: below it, its second digit would be zero."""


@dataclass(frozen=True)
class AspectExplanation:
    """What one aspect says about an image, and what it did for the prediction."""

    aspect: str
    answer: str
    """What the language model answers about the aspect from its aspect tokens alone, as in stage 1."""
    probability: float
    """Of that answer: among the possible ones where these are known, else that the model writes all its tokens."""
    contribution: float | None
    """Log-likelihood of the predicted category with this aspect minus without it, nats; the others stay. None where
    nothing of the image would be left in the prompt without it."""
    log_probability_change: float | None
    """The same of the logarithm of its probability among the categories."""
    attention: np.ndarray | None = field(default=None, compare=False)
    """`[height, width]` over the vision tokens, fp32, sum one: where the aspect looks. None for a VLM whose vision
    tokens form no grid."""


@dataclass(frozen=True)
class Explanation:
    """Why one image got its category.

    Contributions are leave-one-out: each is what the prompt without that part changes, while all others stay. They do
    not add up to what all aspects do together, since aspects may say the same or need each other; what is missing is
    `interaction`, so that `sum(contributions) + interaction == all_aspects`.
    """

    image: str
    """Its name."""
    category: str
    """The predicted category."""
    probability: float
    """Of that category."""
    probabilities: Mapping[str, float]
    """Category -> probability, in the order of the question."""
    aspects: tuple[AspectExplanation, ...]
    """In the order of the prompt."""
    all_aspects: float | None
    """Contribution of all aspects together, nats; None where nothing of the image would be left in the prompt."""
    vision_features: float | None
    """Contribution of the vision features, nats; None where the prompt has none."""

    @property
    def interaction(self) -> float | None:
        """What all aspects do together beyond the sum of what each does alone, nats."""
        if self.all_aspects is None:
            return None
        return self.all_aspects - sum(aspect.contribution or 0.0 for aspect in self.aspects)

    @property
    def ranked(self) -> tuple[AspectExplanation, ...]:
        """The aspects from the one that spoke most for the category to the one that spoke most against it."""
        return tuple(sorted(self.aspects, key=lambda aspect: -(aspect.contribution or 0.0)))

    @property
    def sentence(self) -> str:
        """The prediction and the aspects that did most for it, in one line made of these numbers alone."""
        named = [aspect for aspect in self.ranked if (aspect.contribution or 0.0) >= LEAST][:NAMED]
        because = ", ".join(f"{_words(a.aspect)} {a.answer or 'unknown'} ({a.contribution:+.1f})" for a in named)
        start = f"{self.category} {self.probability:.2f}"
        return f"{start}: {because}" if because else f"{start}: no aspect alone speaks for it"

    def to_json(self) -> dict[str, Any]:
        """As `masp predict --explain --json` prints it; without attention maps."""
        return {
            "image": self.image,
            "prediction": self.category,
            "probabilities": dict(self.probabilities),
            "explanation": self.sentence,
            "aspects": {
                a.aspect: {
                    "answer": a.answer,
                    "probability": a.probability,
                    "contribution": a.contribution,
                    "log_probability_change": a.log_probability_change,
                }
                for a in self.aspects
            },
            "all_aspects": self.all_aspects,
            "vision_features": self.vision_features,
            "interaction": self.interaction,
        }


def _words(aspect: str) -> str:
    return aspect.replace("_", " ")
