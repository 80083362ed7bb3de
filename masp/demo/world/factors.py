"""The demo world: seven factors drawn independently, and an emotion drawn from an exactly known posterior given them.

Six factors are the aspects of the method, with EmoSet's own labels. The seventh, the weather, is visible in the images
and in the annotations, but none of these aspects, because an image evokes more than is asked about it; whoever defines
it as an aspect (`configs/aspects-demo.yaml`) can train a module for it. The posterior is a softmax of additive
logits, one row of `AFFINITY` per label, so the best possible accuracy is known exactly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

from masp.taxonomy import CATEGORY_SETS

EMOTIONS = CATEGORY_SETS["emoset"]
ASPECTS = ("facial_expression", "object", "scene", "human_action", "brightness", "colorfulness")
"""The factors about which the VLM was taught questions; `configs/aspects.yaml` has the same."""
WEATHER = "weather"
FACTORS = (*ASPECTS, WEATHER)
"""The factors that an emotion depends on, in the order of `Scene.labels`."""
LEVELS = ("very low", "low", "moderate", "high", "very high")
"""The words for brightness and colorfulness, from 0 to 1 in steps of 0.2."""

# The evidence of each label: emotion -> weight. The posterior follows from this table and `STRENGTH`.
AFFINITY: dict[str, dict[str, dict[str, float]]] = {
    "facial_expression": {
        "angry": {"anger": 1.0},
        "disgust": {"disgust": 1.0},
        "fear": {"fear": 1.0},
        "happy": {"amusement": 0.8, "contentment": 0.6},
        "sad": {"sadness": 1.0},
        "surprise": {"awe": 0.7, "excitement": 0.8},
    },
    "object": {
        "Balloon": {"amusement": 0.9, "excitement": 0.3},
        "Butterfly": {"awe": 0.5, "contentment": 0.7},
        "Cake": {"amusement": 0.5, "contentment": 0.6},
        "Candle": {"contentment": 0.5, "sadness": 0.6},
        "Handgun": {"anger": 0.8, "fear": 0.5},
        "Kite": {"excitement": 0.9, "awe": 0.4},
        "Knife": {"anger": 0.9, "disgust": 0.3},
        "Skull": {"disgust": 0.5, "fear": 0.7},
        "Spider": {"disgust": 0.8, "fear": 0.4},
        "Umbrella": {"sadness": 0.9},
        "Teddy bear": {"amusement": 0.5, "sadness": 0.4},
        "Lighthouse": {"awe": 0.9, "excitement": 0.3},
    },
    "scene": {
        "alley": {"anger": 0.7, "fear": 0.5},
        "amusement_park": {"amusement": 0.9, "excitement": 0.5},
        "beach": {"contentment": 0.9, "amusement": 0.3},
        "cemetery": {"sadness": 0.9, "fear": 0.3},
        "desert": {"awe": 0.4, "sadness": 0.5, "anger": 0.3},
        "forest": {"contentment": 0.5, "fear": 0.5},
        "landfill": {"disgust": 1.0},
        "snowfield": {"awe": 0.6, "excitement": 0.5},
        "volcano": {"awe": 0.5, "excitement": 0.3, "anger": 0.5},
        "swamp": {"disgust": 0.7, "fear": 0.4},
    },
    "human_action": {
        "boxing ": {"anger": 0.9, "excitement": 0.3},  # the trailing space is EmoSet's
        "celebrating": {"excitement": 0.8, "amusement": 0.5},
        "climbing ladder": {"fear": 0.6, "awe": 0.4},
        "crying": {"sadness": 1.0},
        "garbage collecting": {"disgust": 0.9},
        "push up": {"anger": 0.4, "excitement": 0.5, "disgust": 0.3},
        "reading book": {"contentment": 0.9},
        "yoga": {"awe": 0.7, "contentment": 0.4},
    },
    "brightness": {
        "very low": {"fear": 0.9, "sadness": 0.3},
        "low": {"anger": 0.5, "disgust": 0.6},
        "moderate": {"contentment": 0.6, "sadness": 0.5},
        "high": {"amusement": 0.8, "excitement": 0.4},
        "very high": {"awe": 0.9, "excitement": 0.4},
    },
    "colorfulness": {
        "very low": {"sadness": 0.8, "fear": 0.5},
        "low": {"disgust": 0.8, "contentment": 0.2},
        "moderate": {"awe": 0.5, "contentment": 0.7},
        "high": {"anger": 0.7, "amusement": 0.3},
        "very high": {"excitement": 0.9, "amusement": 0.5},
    },
    WEATHER: {
        "rain": {"sadness": 0.8, "fear": 0.3},
        "confetti": {"amusement": 0.8, "excitement": 0.5},
        "fog": {"fear": 0.8, "awe": 0.3},
        "sunbeams": {"contentment": 0.8, "awe": 0.4},
        "flies": {"disgust": 0.9},
        "lightning": {"anger": 0.8, "excitement": 0.4},
    },
}
STRENGTH = {
    "facial_expression": 8.0,
    "object": 8.0,
    "scene": 8.0,
    "human_action": 8.0,
    "brightness": 6.5,
    "colorfulness": 6.5,
    WEATHER: 6.5,
}
"""Logits per unit of affinity."""

ABSENT = {"facial_expression": 0.2, "human_action": 0.2}
"""Probability that an image lacks an aspect; the other aspects are always present."""

SENSES = ("evoked", "shown")
"""Which emotion is meant: the one that an image evokes, from all factors, or the one that the person in it shows."""
SHOWN_BY = ("facial_expression", "human_action")
"""The factors that the shown emotion depends on."""
CAPTION_LEVELS = {
    "brightness": ("dark", "dim", "lit", "bright", "glaring"),
    "colorfulness": ("grey", "pale", "tinted", "vivid", "garish"),
}
"""Words for the levels of `LEVELS` in captions, where `low` alone would not say what is low."""

LABELS: dict[str, tuple[str, ...]] = {factor: tuple(AFFINITY[factor]) for factor in FACTORS}


def words(label: str) -> str:
    """A label as plain words: `amusement_park` -> `amusement park`."""
    return " ".join(label.replace("_", " ").lower().split())


def caption_words(factor: str, label: str) -> str:
    """A label as written in captions: `amusement_park` -> `amusement park`, `low` brightness -> `dim`."""
    return CAPTION_LEVELS[factor][LEVELS.index(label)] if factor in CAPTION_LEVELS else words(label)


def _logits(factor: str) -> np.ndarray:
    """Logits `[num_labels + 1, num_emotions]`, centered over the labels; the last row is for the absent factor."""
    table = np.array([[row.get(e, 0.0) for e in EMOTIONS] for row in AFFINITY[factor].values()])
    table = STRENGTH[factor] * (table - table.mean(0))
    return np.vstack([table, np.zeros(len(EMOTIONS))])


LOGITS: dict[str, np.ndarray] = {factor: _logits(factor) for factor in FACTORS}


@dataclass(frozen=True)
class Scene:
    """The content of one image: an index into `LABELS[factor]` per factor, -1 if the factor is absent."""

    labels: tuple[int, ...]
    """Label indices in the order of `FACTORS`."""

    def label(self, factor: str) -> str | None:
        index = self.labels[FACTORS.index(factor)]
        return None if index < 0 else LABELS[factor][index]

    def shown(self, factor: str) -> str:
        """The label of a factor that the scene shows."""
        label = self.label(factor)
        assert label is not None, factor
        return label

    def only(self, factors: Collection[str]) -> Scene:
        """The same scene with the other factors removed."""
        return Scene(tuple(i if f in factors else -1 for f, i in zip(FACTORS, self.labels, strict=True)))


def draw_scene(rng: np.random.Generator, absent: Mapping[str, float] = ABSENT) -> Scene:
    """Draw every factor independently: absent with its probability, otherwise each label equally likely."""
    return Scene(
        tuple(
            -1 if rng.random() < absent.get(factor, 0.0) else int(rng.integers(len(LABELS[factor])))
            for factor in FACTORS
        )
    )


def posterior(labels: Sequence[int] | np.ndarray) -> np.ndarray:
    """P(emotion | factors).

    Args:
        labels: `[..., 7]` label indices in the order of `FACTORS`, -1 for an absent factor.

    Returns:
        `[..., 8]` in the order of `EMOTIONS`, summing to one.
    """
    labels = np.asarray(labels)
    logits = sum(LOGITS[factor][labels[..., k]] for k, factor in enumerate(FACTORS))
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def draw_emotion(rng: np.random.Generator, scene: Scene) -> str:
    """Draw an emotion from the posterior."""
    return EMOTIONS[rng.choice(len(EMOTIONS), p=posterior(scene.labels))]


def best_possible_accuracy(known: Collection[str] = FACTORS) -> float:
    """Best possible accuracy, by enumerating every combination of labels.

    Args:
        known: Factors that the prediction may use; the others are marginalized.
    """
    # The logit of a combination is a sum over factors, so the combinations are built up factor by factor.
    logits, chances = np.zeros((1, len(EMOTIONS))), np.ones(1)
    order = [*(f for f in FACTORS if f in known), *(f for f in FACTORS if f not in known)]
    for factor in order:
        missing = ABSENT.get(factor, 0.0)
        table = LOGITS[factor] if missing else LOGITS[factor][:-1]
        count = len(LABELS[factor])
        weight = np.array([(1 - missing) / count] * count + ([missing] if missing else []))
        logits = (logits[:, None] + table).reshape(-1, len(EMOTIONS))
        chances = (chances[:, None] * weight).reshape(-1)
    joint = np.exp(logits - logits.max(-1, keepdims=True))
    joint *= (chances / joint.sum(-1))[:, None]
    return float(joint.reshape(_num_combinations(known), -1, len(EMOTIONS)).sum(1).max(-1).sum())


def _num_combinations(factors: Collection[str]) -> int:
    return math.prod(len(LABELS[f]) + (f in ABSENT) for f in FACTORS if f in factors)


def expected_accuracy(scenes: Sequence[Sequence[int]]) -> float:
    """Expected accuracy of the best possible prediction on these images: the mean of the largest posterior."""
    return float(posterior(np.asarray(scenes)).max(-1).mean())


def level_word(value: float) -> str:
    """The word for a brightness or colorfulness in steps of 0.1: 0.3 -> `low`."""
    return LEVELS[min(round(value * 10) // 2, 4)]


def annotation(scene: Scene, brightness: float, colorfulness: float) -> dict:
    """The annotation of an image in EmoSet's form, plus its weather; absent aspects have no key."""
    found: dict[str, float | str | list[str]] = {"brightness": brightness, "colorfulness": colorfulness}
    for aspect in ("scene", "facial_expression", "human_action", WEATHER):
        if (label := scene.label(aspect)) is not None:
            found[aspect] = label
    if (label := scene.label("object")) is not None:
        found["object"] = [label]
    return found


def _check_label(factor: str, label: str) -> str:
    if label not in LABELS[factor]:
        raise ValueError(f"must be one of {', '.join(LABELS[factor])}")
    return label


_Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Annotation:
    """An annotation as it is read back; an aspect that the image lacks is None."""

    image_id: str
    emotion: str
    brightness: _Share
    colorfulness: _Share
    scene: Annotated[str, AfterValidator(partial(_check_label, "scene"))]
    object: tuple[Annotated[str, AfterValidator(partial(_check_label, "object"))]]
    weather: Annotated[str, AfterValidator(partial(_check_label, WEATHER))]
    facial_expression: Annotated[str, AfterValidator(partial(_check_label, "facial_expression"))] | None = None
    human_action: Annotated[str, AfterValidator(partial(_check_label, "human_action"))] | None = None

    def to_scene(self) -> Scene:
        """Return the scene that the image shows, the inverse of `annotation`."""
        shown = {
            "brightness": level_word(self.brightness),
            "colorfulness": level_word(self.colorfulness),
            "scene": self.scene,
            "object": self.object[0],
            "facial_expression": self.facial_expression,
            "human_action": self.human_action,
            WEATHER: self.weather,
        }
        return Scene(tuple(-1 if (label := shown[f]) is None else LABELS[f].index(label) for f in FACTORS))


def digest() -> str:
    """Digest that identifies this version of the world; another version has another posterior."""
    content = json.dumps([AFFINITY, STRENGTH, ABSENT], sort_keys=True)
    return blake2b(content.encode(), digest_size=8).hexdigest()
