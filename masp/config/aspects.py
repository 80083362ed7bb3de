"""Aspects as their file defines them: what is asked about an image, which answers there may be, and who gives them.

The file maps the name of each aspect to the settings of `AspectSettings`; `configs/aspects.yaml` has the six of the
method. Nothing else in MASP knows which aspects there are.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from masp.config.fields import Item, Settings, Text, UniqueList
from masp.config.packaged import find_packaged
from masp.config.reading import check_settings
from masp.config.yaml_text import parse_mapping, read_text_bytes
from masp.errors import InputError
from masp.files.text import nfc, shown
from masp.taxonomy import normalize_category

SHIPPED = "configs/aspects.yaml"
MAX_ASPECTS = 64
"""The index of a cache says in one 64-bit integer which aspects an image is annotated with."""
RESERVED = ("image", "label", "split", "id")
"""What a column of a dataset may hold beside aspects."""
VISION_FEATURES = "vision_features"
"""What else than aspects may be left out of a prompt."""
_NAME = re.compile(r"\w[\w-]{0,63}")

Kind = Literal["text", "list", "level"]
Annotator = Literal["likelihood", "generate", "brightness", "colorfulness", "never"]
FROM_PIXELS: tuple[Annotator, ...] = ("brightness", "colorfulness")
"""Those that need no VLM."""


@dataclass
class AspectSettings(Settings):
    """One aspect, as the file has it."""

    questions: Annotated[list[Text], Field(examples=[["Name the scene."]])]
    """Templates of the question. Training draws one; evaluation and annotation ask the first."""

    kind: Kind = "text"
    """What annotations hold: `text`, a string; `list`, a list of strings; `level`, a number that becomes a word."""

    vocabulary: Annotated[UniqueList[Item], Field(examples=[["rain", "fog"]])] = field(default_factory=list)
    """The possible answers; empty for an open aspect, and for levels, whose answers are their words."""

    bounds: Annotated[list[float], Field(examples=[["0", "1"]], min_length=2, max_length=2)] | None = None
    """Lowest and highest number of a level."""

    words: Annotated[UniqueList[Item], Field(examples=[["low", "high"]])] = field(default_factory=list)
    """Words of a level from lowest to highest; each stands for an equal part of the range between the bounds."""

    annotate: Annotator | None = None
    """How `masp annotate` answers it: `likelihood` compares the possible answers, `generate` lets the VLM write,
    `brightness` and `colorfulness` are computed from the pixels, `never` leaves it alone. null: `likelihood` where
    there are possible answers, else `generate`."""

    absent: Text | None = None
    """The answer by which the VLM says that an image does not have the aspect, such as a face; it is compared like the
    possible answers, and where it is the best, the image gets no answer."""


@dataclass(frozen=True)
class Aspect:
    """One aspect."""

    name: str
    kind: Kind
    questions: tuple[str, ...]
    """Templates, at least one."""
    vocabulary: tuple[str, ...]
    """The possible answers in the form in which answers are compared, in the order of the file; the words of a level
    from lowest to highest. Empty for an open aspect."""
    bounds: tuple[float, float] | None
    """Of a level."""
    annotate: Annotator
    absent: str | None
    """See `AspectSettings`, in the form in which answers are compared."""


Aspects = Mapping[str, Aspect]
"""Name -> aspect, in the order of the file."""


def load_aspects(path: str | Path = SHIPPED) -> Aspects:
    """Read and check a file of aspects.

    Args:
        path: YAML file; `configs/…` may be MASP's own, see `find_packaged`.

    Raises:
        InputError: Unreadable, not valid YAML, or an aspect is not as `AspectSettings` requires.
    """
    file = find_packaged(str(path), is_noted=False)
    return dict(_defined(file, read_text_bytes(file, "aspect_definitions")))


# Commands ask several times, and reading the shipped vocabularies takes 30 ms.
@functools.lru_cache(maxsize=8)
def _defined(file: str, text: bytes) -> Aspects:
    """The aspects that the text of a file defines."""
    content, lines = parse_mapping(text, f"aspect_definitions: {file}")
    if not 1 <= len(content) <= MAX_ASPECTS:
        raise InputError(f"{file}: must define 1 to {MAX_ASPECTS} aspects, not {len(content)}")
    found: dict[str, Aspect] = {}
    for written, tree in content.items():
        place, name = f"{file} line {lines[written]}", nfc(written)
        if not _NAME.fullmatch(name) or name in (*RESERVED, VISION_FEATURES):
            raise InputError(
                f"{place}: {shown(name)} cannot be the name of an aspect: letters, digits, _ and - can, at most 64 of "
                f"them, and not {', '.join((*RESERVED, VISION_FEATURES))}"
            )
        if not isinstance(tree, dict):
            raise InputError(f"{place}: {name} = {shown(tree)}: must be a section with questions")
        below = f"{written}."
        own_lines = {key.removeprefix(below): line for key, line in lines.items() if key.startswith(below)}
        if twin := next((other for other in found if _compared(other) == _compared(name)), None):
            raise InputError(f"{place}: the aspects {shown(twin)} and {shown(name)} differ only in case or - and _")
        settings = check_settings(AspectSettings, tree, f"{file}, aspect {name},", own_lines, place)
        if tree.get("vocabulary") == []:
            raise InputError(f"{place}: {name}.vocabulary = []: must hold the possible answers, or be left out")
        found[name] = _aspect(name, settings, f"{place}: {name}")
    return found


def _compared(name: str) -> str:
    """A name as columns and misspelled keys are compared with it."""
    return name.casefold().replace("-", "_")


def _aspect(name: str, settings: AspectSettings, where: str) -> Aspect:
    """Check what is about more than one value."""
    if not settings.questions:
        raise InputError(f"{where}.questions = []: must hold at least one question")
    is_level = settings.kind == "level"
    own, other = ("words", "vocabulary") if is_level else ("vocabulary", "words")
    if getattr(settings, other):
        raise InputError(f"{where}.{other}: not with kind = {settings.kind}; give {own}")
    if is_level and len(settings.words) < 2:
        raise InputError(f"{where}.words = {shown(settings.words)}: a level needs two or more words")
    bounds = settings.bounds
    if is_level and (bounds is None or not 0 < bounds[1] - bounds[0] < math.inf):
        raise InputError(f"{where}.bounds = {shown(bounds)}: a level needs two numbers, the lower one first: [0, 1]")
    if bounds is not None and not is_level:
        raise InputError(f"{where}.bounds: only of kind = level")
    vocabulary = tuple(normalize_category(text) for text in getattr(settings, own))
    if "" in vocabulary or len(set(vocabulary)) < len(vocabulary):
        raise InputError(
            f"{where}.{own} = {shown(list(vocabulary))}: must hold different words (case and underscores make no "
            "difference)"
        )
    if len(vocabulary) == 1:
        raise InputError(f"{where}.{own} = {shown(list(vocabulary))}: needs two or more answers to choose from")
    annotate = settings.annotate or ("likelihood" if vocabulary and settings.kind != "list" else "generate")
    if annotate == "likelihood" and (not vocabulary or settings.kind == "list"):
        raise InputError(f"{where}.annotate = likelihood: needs a vocabulary, and not kind = list; take generate")
    if annotate in FROM_PIXELS and not is_level:
        raise InputError(f"{where}.annotate = {annotate}: gives a number, so it needs kind = level")
    if annotate == "generate" and is_level:
        raise InputError(f"{where}.annotate = generate: the words of a level are compared; take likelihood")
    absent = None if settings.absent is None else normalize_category(settings.absent)
    if absent in vocabulary:
        raise InputError(f"{where}.absent = {shown(settings.absent)}: is one of the possible answers")
    return Aspect(
        name,
        settings.kind,
        tuple(nfc(question.strip()) for question in settings.questions),
        vocabulary,
        None if bounds is None else (bounds[0], bounds[1]),
        annotate,
        absent,
    )
