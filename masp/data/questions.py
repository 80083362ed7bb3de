"""The questions put to the language model: several templates per aspect and for the target, which is the emotion unless
the configuration names another.

Those about the target are in a YAML or JSON file; those about the aspects where the aspects are defined, unless the
file has its own.

Training draws a template (and the order of the categories) from a hash of `(seed, epoch, sample_key, aspect)`, so that
what a sample is asked depends on neither rank, worker nor the samples before it.

A file in the form of the published code, `prompts.json`, is read as well: it maps each aspect, and `emotion`, to a list
of templates, and `{}` in a template about the emotion is the list of categories.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from masp.config.aspects import Aspects, load_aspects
from masp.config.schema import Config, TargetConfig
from masp.config.yaml_text import read_yaml
from masp.errors import InputError
from masp.files.regular import read_bytes
from masp.files.text import nfc, shown
from masp.files.typed import Json, decode, is_text
from masp.taxonomy import normalize_category

EMOTION = "emotion"
"""Key of the templates about the emotion, the target of the published code."""
SLOT, LIST_SLOT = "{categories}", "{categories_list}"
"""Where an emotion template lists the categories: joined with ", ", or in the published form, `['joy', 'fear']`."""
MAX_FILE_BYTES = 1 << 20
_ALMOST_A_SLOT = re.compile(r"\{\}|\{[^{}]*categor[^{}]*\}", re.IGNORECASE)


def _draw(*what: object) -> int:
    """A 64-bit number that depends on nothing but `what`."""
    text = "\0".join(str(part) for part in what)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def drawn_category(
    categories: Sequence[str], distribution: Sequence[float], seed: int, epoch: int, sample_key: str
) -> str:
    """The category that this sample has as its answer in this epoch, drawn from its distribution.

    Args:
        categories: The categories.
        distribution: Probability of each; a category of probability 0 is never drawn.
        seed: Seed of the run.
        epoch: Number of the epoch.
        sample_key: Sample key.
    """
    place = _draw("answer", seed, epoch, sample_key) / 2**64 * math.fsum(distribution)
    possible = [(category, p) for category, p in zip(categories, distribution, strict=True) if p > 0]
    for category, probability in possible:
        place -= probability
        if place < 0:
            return category
    return possible[-1][0]  # the sum is rounded


@dataclass(frozen=True)
class Questions:
    """All templates of a run. The first of each is the one evaluation uses."""

    path: str
    aspects: Mapping[str, tuple[str, ...]]
    """Aspect -> its templates, each a whole question."""
    emotions: tuple[str, ...]
    """Templates of the question about the target, each with one `{categories}` or `{categories_list}`, or with neither
    where it names the categories itself."""
    target: str = EMOTION
    """What they ask for."""

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
        return self._asked(template, order)

    def emotion_first(self, categories: Sequence[str]) -> str:
        """The emotion question in evaluation: first template, categories as given."""
        return self._asked(self.emotions[0], categories)

    def every_emotion(self, categories: Sequence[str]) -> tuple[str, ...]:
        """The emotion questions of all templates, categories as given.

        Raises:
            InputError: A template that names the categories itself lacks one of these.
        """
        return tuple(self._asked(template, categories) for template in self.emotions)

    def _asked(self, template: str, categories: Sequence[str]) -> str:
        """A template with the categories in their place."""
        if SLOT in template:
            return template.replace(SLOT, ", ".join(categories))
        if LIST_SLOT in template:
            return template.replace(LIST_SLOT, repr(list(categories)))
        named = normalize_category(template)
        for category in categories:
            if not re.search(rf"(?<!\w){re.escape(normalize_category(category))}(?!\w)", named):
                raise InputError(
                    f"{self.path}: {self.target}: {shown(template)} does not name {shown(category)}: it must name "
                    f"every category, or hold {SLOT} or {LIST_SLOT} once"
                )
        return template

    def templates(self, aspect: str) -> tuple[str, ...]:
        """All templates of an aspect.

        Raises:
            InputError: The file has no questions about it.
        """
        if aspect not in self.aspects:
            raise InputError(f"{self.path}: no questions about aspect {aspect!r}; it has {', '.join(self.aspects)}")
        return self.aspects[aspect]


def questions_of(config: Config) -> Questions:
    """The questions of a run: about its aspects and its target.

    Raises:
        InputError: See `load_questions`.
    """
    return load_questions(config.questions, load_aspects(config.aspect_definitions), config.target)


def load_questions(path: str | Path, aspects: Aspects | None = None, target: TargetConfig | None = None) -> Questions:
    """Read and check a questions file.

    Args:
        path: A YAML file, or a JSON file whose name ends in `.json`.
        aspects: The aspects that are defined, with their questions; None for those of `configs/aspects.yaml`.
        target: What is asked for; None for the emotion.

    Raises:
        InputError: Unreadable, not valid YAML or JSON, something else than templates where templates belong, or no
            questions about the target.
    """
    target = target or TargetConfig()
    content = _read_json(path) if str(path).lower().endswith(".json") else read_yaml(path, "questions")[0]
    is_published = EMOTION in content and len(content) > 1 and all(isinstance(item, list) for item in content.values())
    if is_published:
        content = {"aspects": {name: value for name, value in content.items() if name != EMOTION}, **content}
    elif not content or content.keys() - {"aspects", EMOTION, "targets"}:
        keys = shown(", ".join(content)) if content else "none"
        raise InputError(
            f"{path}: must have the keys {EMOTION}, aspects or targets and no others, or map {EMOTION} and each aspect "
            f"to a list of questions; has {keys}"
        )
    prefix = "" if is_published else "aspects."
    asked = {each.name: each.questions for each in (aspects or load_aspects()).values()}
    asked |= {name: _templates(path, f"{prefix}{name}", value) for name, value in _section(path, content, "aspects")}
    about = {EMOTION: content[EMOTION]} if EMOTION in content else {}
    about |= dict(_section(path, content, "targets"))
    named = {name: _templates(path, name if name == EMOTION else f"targets.{name}", v) for name, v in about.items()}
    if is_published:
        named[EMOTION] = tuple(_from_published(path, template) for template in named[EMOTION])
    if target.questions is not None:
        path, key = "target.questions", target.name
        named[key] = _templates(path, key, target.questions)
    if target.name not in named:
        raise InputError(
            f"{path}: no questions about target {target.name!r}: give them as target.questions, or in this file under "
            f"targets: {target.name}; it has {', '.join(named) or 'none'}"
        )
    for name, templates in named.items():
        for template in templates:
            _check_slots(path, name, template)
    return Questions(str(path), asked, named[target.name], target.name)


def _section(path: str | Path, content: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    """A part of the file that maps names to templates."""
    found = content.get(key, {})
    if not isinstance(found, dict):
        raise InputError(f"{path}: {key} must map each name to a list of questions, is {shown(found)}")
    return list(found.items())


def _read_json(path: str | Path) -> dict[str, Any]:
    data = read_bytes(Path(path), max_bytes=MAX_FILE_BYTES, key="questions")
    if data is None:
        raise InputError(f"questions: {path} does not exist")
    return decode(dict[str, Json], data.removeprefix(b"\xef\xbb\xbf"), f"questions: {path}", error=InputError)


def _templates(path: str | Path, key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{path}: {key} must be a list of one or more questions, is {shown(value)}")
    for item in value:
        if not isinstance(item, str) or not item.strip() or not is_text(item):
            raise InputError(f"{path}: {key}: {shown(item)} is not a question; give a non-empty string")
    return tuple(nfc(item.strip()) for item in value)


def _check_slots(path: str | Path, target: str, template: str) -> None:
    """Refuse a template with several lists, or with a misspelled one, which would be asked as it is."""
    num_slots = template.count(SLOT) + template.count(LIST_SLOT)
    if num_slots > 1:
        raise InputError(f"{path}: {target}: {shown(template)} must hold {SLOT} or {LIST_SLOT} exactly once")
    almost = None if num_slots else _ALMOST_A_SLOT.search(template)
    if almost:
        raise InputError(
            f"{path}: {target}: {shown(template)}: {shown(almost[0])} is not a slot; must hold {SLOT} (joy, fear) or "
            f"{LIST_SLOT} (['joy', 'fear']) exactly once, or name every category"
        )


def _from_published(path: str | Path, template: str) -> str:
    """A template of `prompts.json` in our form.

    The published code formats it twice, first with the list, then with the joined categories: `{}` becomes the list,
    `{{}}` the joined categories, and a brace that is meant must be written four times.
    """
    list_mark, joined_mark = "\ue000", "\ue001"  # private characters, which no template holds
    if list_mark in template or joined_mark in template:
        raise InputError(f"{path}: {EMOTION}: {shown(template)} holds a character of Unicode's private use area")
    try:
        marked = _formatted(_formatted(template, list_mark), joined_mark)
    except ValueError as error:
        raise InputError(
            f"{path}: {EMOTION}: {shown(template)}: {error}; in this form {{}} is the list of categories"
        ) from None
    return marked.replace(list_mark, LIST_SLOT).replace(joined_mark, SLOT)


def _formatted(template: str, value: str) -> str:
    """`template.format(value)` for fields `{}` and `{0}` alone: others could reach into objects or fill the memory."""
    pieces = []
    for text, name, form, conversion in string.Formatter().parse(template):
        pieces.append(text)
        if name is None:
            continue
        if name not in ("", "0") or form or conversion:
            raise ValueError(f"{shown('{' + name + '}')} is not a valid field")
        pieces.append(value)
    return "".join(pieces)
