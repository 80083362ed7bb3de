"""What stored answers depend on: VLM, question, possible answers, settings, machine; compared before any are used."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from masp.cache.fingerprint import Fields, compare, describe_device, this_machine
from masp.config import Config
from masp.config.aspects import FROM_PIXELS, Aspect
from masp.files.sealed import digest_of
from masp.files.typed import Json
from masp.runtime.devices import pick_device
from masp.vlm.prompt import Prompt, load_prompt

MAX_PIXEL_SIDE = 512
"""Longer side to which an image is scaled down before its brightness and colorfulness are computed."""
_PIXEL_VERSION = 1
"""Of the formulas."""


@dataclass(frozen=True)
class AnswerSource:
    """What the answers to an aspect depend on, in four flat parts."""

    definition: dict[str, Json]
    """The aspect as it is defined: who answers, the question, the possible answers."""
    vlm: dict[str, Json]
    """Model part of the cache's fingerprint; empty where the pixels give the answers."""
    settings: dict[str, Json]
    """How the language half runs, or how an image is decoded."""
    machine: dict[str, Json]
    """What may change the last bits."""

    @property
    def fields(self) -> Fields:
        """All fields; those of a part have its name before theirs, except those of settings."""
        named = ((f"{part}.", values) for part, values in asdict(self).items())
        return {
            f"{'' if prefix == 'settings.' else prefix}{n}": v for prefix, values in named for n, v in values.items()
        }

    @property
    def digest(self) -> str:
        """SHA-256 of all fields."""
        return digest_of(self.fields)


def definition_of(aspect: Aspect, question: str) -> dict[str, Any]:
    """The part of a source that says what an aspect is.

    Args:
        aspect: The aspect.
        question: What is asked about it.
    """
    found: dict[str, Any] = {"annotate": aspect.annotate, "kind": aspect.kind, "answers": list(aspect.vocabulary)}
    if aspect.annotate in FROM_PIXELS:
        return {**found, "formula": _PIXEL_VERSION}
    return {**found, "question": question, "absent": aspect.absent}


def answer_source(config: Config, aspect: Aspect, question: str, model: Fields) -> AnswerSource:
    """What the answers of this configuration on this machine depend on.

    Args:
        config: Run configuration; `vlm`, `engine.precision` and `annotate` matter.
        aspect: The aspect.
        question: What is asked about it.
        model: Model part of the fingerprint of the cache.

    Raises:
        InputError: `annotate.device` is a GPU and there is none, or the VLM has no usable prompt.
    """
    annotate, definition = config.annotate, definition_of(aspect, question)
    if aspect.annotate in FROM_PIXELS:
        machine = this_machine("cpu", "", 0, 0).fields
        names = ("pillow", "jpeg_library", "webp_library")
        settings: dict[str, Any] = {"vlm.transparency": config.vlm.transparency, "max_side": MAX_PIXEL_SIDE}
        return AnswerSource(definition, {}, settings, {name: machine[name] for name in names})
    device = pick_device(annotate.device, "annotate.device")
    settings = {
        "engine.precision": config.engine.precision,
        "vlm.quantization": config.vlm.quantization,
        "annotate.batch_size": annotate.batch_size,
        "prompt": prompt_text(load_prompt(config.vlm.path), question),
    }
    if aspect.annotate == "generate":
        settings["annotate.max_new_tokens"] = annotate.max_new_tokens
    if device == "cpu":
        settings["annotate.num_threads"] = annotate.num_threads
    machine = this_machine(describe_device(device), config.engine.precision, 0, 0).fields
    return AnswerSource(
        definition, dict(model), settings, {name: machine[name] for name in ("device", "torch", "transformers")}
    )


def prompt_text(prompt: Prompt, question: str) -> str:
    """The prompt of a question as text, special tokens written out; `<image>` stands for the features."""

    def text(ids) -> str:
        found = prompt.tokenizer.decode(list(ids), skip_special_tokens=False)
        assert isinstance(found, str)  # of one sequence, not of several
        return found

    return (
        f"{text((*prompt.opening, *prompt.image_start))}<image>{text((*prompt.image_end, *prompt.question(question)))}"
    )


def check_source(found: AnswerSource, here: AnswerSource, what: str, remedy: str) -> None:
    """Refuse answers that were given in another way.

    Args:
        found: What the stored answers depend on.
        here: What answers of this configuration depend on.
        what: Names the stored answers.
        remedy: What the user can do.

    Raises:
        InputError: Names the first field that differs and both its values.
    """
    compare(found.fields, here.fields, what, remedy)
