"""The demo world: six aspects drawn independently, and an emotion drawn from an exactly known posterior over them.

The posterior is a softmax of additive logits, one row of `AFFINITY` per label, so the accuracy that nothing can beat is
known exactly. Labels are EmoSet's own.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from masp.data.categories import ASPECTS, CATEGORY_SETS

EMOTIONS = CATEGORY_SETS["emoset"]
LEVELS = ("very low", "low", "moderate", "high", "very high")
"""The words for brightness and colorfulness, from 0 to 1 in steps of 0.2."""

# What each label speaks for: emotion -> weight. Everything else about the posterior follows from this table.
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
        "boxing ": {"anger": 0.9, "excitement": 0.3},  # the blank is EmoSet's
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
}
STRENGTH = {
    "facial_expression": 9.0,
    "object": 9.0,
    "scene": 9.0,
    "human_action": 9.0,
    "brightness": 7.0,
    "colorfulness": 7.0,
}
"""Logits per unit of affinity."""

ABSENT = {"facial_expression": 0.2, "human_action": 0.2}
"""How often a picture lacks an aspect; the others are always there."""

LABELS: dict[str, tuple[str, ...]] = {aspect: tuple(AFFINITY[aspect]) for aspect in ASPECTS}


def words(label: str) -> str:
    """A label as one would say it: `amusement_park` -> `amusement park`."""
    return " ".join(label.replace("_", " ").lower().split())


def _logits(aspect: str) -> np.ndarray:
    """`[num_labels + 1, num_emotions]`, each emotion's mean over the labels zero; the last row is the absent aspect."""
    table = np.array([[row.get(e, 0.0) for e in EMOTIONS] for row in AFFINITY[aspect].values()])
    table = STRENGTH[aspect] * (table - table.mean(0))
    return np.vstack([table, np.zeros(len(EMOTIONS))])


LOGITS: dict[str, np.ndarray] = {aspect: _logits(aspect) for aspect in ASPECTS}


@dataclass(frozen=True)
class Scene:
    """What one picture shows: an index into `LABELS[aspect]` per aspect, -1 where it shows none."""

    labels: tuple[int, ...]
    """In the order of `ASPECTS`."""

    def label(self, aspect: str) -> str | None:
        index = self.labels[ASPECTS.index(aspect)]
        return None if index < 0 else LABELS[aspect][index]

    def answers(self) -> dict[str, str]:
        """Aspect -> answer text, of the aspects that are there."""
        return {a: words(LABELS[a][i]) for a, i in zip(ASPECTS, self.labels, strict=True) if i >= 0}


def draw_scene(rng: np.random.Generator, absent: Mapping[str, float] = ABSENT) -> Scene:
    """Every aspect on its own: absent with its probability, else each label equally likely."""
    return Scene(
        tuple(
            -1 if rng.random() < absent.get(aspect, 0.0) else int(rng.integers(len(LABELS[aspect])))
            for aspect in ASPECTS
        )
    )


def posterior(labels: Sequence[int] | np.ndarray) -> np.ndarray:
    """P(emotion | aspects).

    Args:
        labels: `[..., 6]` label indices in the order of `ASPECTS`, -1 for an absent aspect.

    Returns:
        `[..., 8]` in the order of `EMOTIONS`, summing to one.
    """
    labels = np.asarray(labels)
    logits = sum(LOGITS[aspect][labels[..., k]] for k, aspect in enumerate(ASPECTS))
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def draw_emotion(rng: np.random.Generator, scene: Scene) -> str:
    """An emotion drawn from the posterior."""
    return EMOTIONS[rng.choice(len(EMOTIONS), p=posterior(scene.labels))]


def best_possible_accuracy(known: Sequence[str] = ASPECTS) -> float:
    """The accuracy of the best possible guess, by enumerating every combination of aspects.

    Args:
        known: aspects the guess may use; the others are averaged over.
    """
    ranges, weights = [], []
    for aspect in ASPECTS:
        count, missing = len(LABELS[aspect]), ABSENT.get(aspect, 0.0)
        ranges.append([*range(count), -1] if missing else range(count))
        weights.append([(1 - missing) / count] * count + ([missing] if missing else []))
    shape = [len(r) for r in ranges]
    joint = posterior(np.array(list(itertools.product(*ranges)))).reshape(*shape, len(EMOTIONS))
    for axis, weight in enumerate(weights):
        joint *= np.array(weight).reshape([-1 if k == axis else 1 for k in range(len(shape) + 1)])
    unknown = tuple(k for k, aspect in enumerate(ASPECTS) if aspect not in known)
    return float(joint.sum(unknown).max(-1).sum())


def expected_accuracy(scenes: Sequence[Sequence[int]]) -> float:
    """The accuracy that the best possible guess is expected to have on these pictures: their mean largest posterior."""
    return float(posterior(np.asarray(scenes)).max(-1).mean())


def level_word(value: float) -> str:
    """The word of a brightness or colorfulness in steps of 0.1: 0.3 -> `low`."""
    return LEVELS[min(round(value * 10) // 2, 4)]


def annotation(scene: Scene, brightness: float, colorfulness: float) -> dict:
    """A picture's annotation as EmoSet has them; absent aspects have no key."""
    found = {"brightness": brightness, "colorfulness": colorfulness}
    for aspect in ("scene", "facial_expression", "human_action"):
        if (label := scene.label(aspect)) is not None:
            found[aspect] = label
    if (label := scene.label("object")) is not None:
        found["object"] = [label]
    return found


def read_annotation(content: Mapping) -> Scene:
    """The inverse of `annotation`."""
    labels = []
    for aspect in ASPECTS:
        value = content.get(aspect)
        value = level_word(value) if isinstance(value, float) else value[0] if isinstance(value, list) else value
        labels.append(-1 if value is None else LABELS[aspect].index(value))
    return Scene(tuple(labels))


def digest() -> str:
    """Names this version of the world: data made by another has another posterior."""
    from hashlib import blake2b

    content = json.dumps([AFFINITY, STRENGTH, ABSENT], sort_keys=True)
    return blake2b(content.encode(), digest_size=8).hexdigest()
