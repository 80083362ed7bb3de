"""The questions put to the language model: several templates per aspect and for the emotion, from a YAML file.

Training draws a template (and the order of the categories) from a hash of `(seed, epoch, sample_key, aspect)`, so that
what a sample is asked depends on neither rank, worker nor the samples before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from masp.config.yaml_text import read_yaml
from masp.errors import InputError
from masp.files.text import nfc, shown
from masp.files.typed import is_text

SLOT = "{categories}"
"""Where an emotion template lists the categories."""


def _draw(*what: object) -> int:
    """A 64-bit number that depends on nothing but `what`."""
    text = "\0".join(str(part) for part in what)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True)
class Questions:
    """All templates of one file. The first of each is the one evaluation uses."""

    path: str
    aspects: Mapping[str, tuple[str, ...]]
    """Aspect -> its templates, each a whole question."""
    emotions: tuple[str, ...]
    """Templates of the emotion question, each with one `{categories}`."""

    def aspect(self, aspect: str, seed: int, epoch: int, sample_key: str) -> str:
        """The question about an aspect that this sample is asked in this epoch."""
        templates = self.templates(aspect)
        return templates[_draw("template", seed, epoch, sample_key, aspect) % len(templates)]

    def aspect_first(self, aspect: str) -> str:
        """The question about an aspect in evaluation."""
        return self.templates(aspect)[0]

    def emotion(self, categories: Sequence[str], seed: int, epoch: int, sample_key: str) -> str:
        """The emotion question of this sample in this epoch, the categories listed in an order of its own."""
        draw = ("emotion", seed, epoch, sample_key)
        template = self.emotions[_draw("template", *draw) % len(self.emotions)]
        order = sorted(categories, key=lambda category: (_draw("order", *draw, category), category))
        return template.replace(SLOT, ", ".join(order))

    def emotion_first(self, categories: Sequence[str]) -> str:
        """The emotion question in evaluation: first template, categories as given."""
        return self.emotions[0].replace(SLOT, ", ".join(categories))

    def templates(self, aspect: str) -> tuple[str, ...]:
        """All templates of an aspect.

        Raises:
            InputError: The file has no questions about it.
        """
        if aspect not in self.aspects:
            raise InputError(f"{self.path}: no questions about aspect {aspect!r}; it has {', '.join(self.aspects)}")
        return self.aspects[aspect]


def load_questions(path: str | Path) -> Questions:
    """Read and check a questions file.

    Raises:
        InputError: Unreadable, not valid YAML, or something else than templates where templates belong.
    """
    content, _ = read_yaml(path, "questions")
    if set(content) != {"aspects", "emotion"}:
        keys = shown(", ".join(content)) if content else "none"
        raise InputError(f"{path}: must have the keys aspects and emotion and no others, has {keys}")
    if not isinstance(content["aspects"], dict):
        raise InputError(f"{path}: aspects must map each aspect to a list of questions, is {shown(content['aspects'])}")
    aspects = {name: _templates(path, f"aspects.{name}", value) for name, value in content["aspects"].items()}
    emotions = _templates(path, "emotion", content["emotion"])
    for template in emotions:
        if template.count(SLOT) != 1:
            raise InputError(f"{path}: emotion: {shown(template)} must hold {SLOT} exactly once")
    return Questions(str(path), aspects, emotions)


def _templates(path: str | Path, key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{path}: {key} must be a list of one or more questions, is {shown(value)}")
    for item in value:
        if not isinstance(item, str) or not item.strip() or not is_text(item):
            raise InputError(f"{path}: {key}: {shown(item)} is not a question; give a non-empty string")
    return tuple(nfc(item.strip()) for item in value)
