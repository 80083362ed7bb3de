"""Which artifacts a configuration uses, and whether they belong together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masp.artifacts.export_format import SCHEME
from masp.artifacts.exported import NONE as NONE
from masp.artifacts.store import Lineage, load_aspects, load_soft_prompt, safe_name, soft_prompt_file
from masp.cache.fingerprint import Fields, differences
from masp.config import Config
from masp.config.schema import Quantization
from masp.data.splits.subset import described
from masp.errors import InputError
from masp.files.regular import exists, is_file
from masp.files.text import shown_apart
from masp.models.trainable import AspectModules, SoftPrompt


def prompt_aspects(config: Config) -> tuple[str, ...]:
    """The aspects whose tokens are in the prompt of stage 2, in order."""
    return () if config.checkpoint.aspect == NONE else tuple(config.aspects)


def default_aspect_path(config: Config) -> Path:
    """Where stage 1 of this run leaves its aspect modules."""
    return Path(config.output_dir) / "stage1" / "aspect.safetensors"


def default_soft_prompt_path(config: Config) -> Path:
    """Where stage 2 of this run leaves its soft prompt."""
    return Path(config.output_dir) / "stage2" / soft_prompt_file(safe_name(config.dataset.name), config.target.name)


@dataclass
class Trained:
    """What was trained around the VLM, either of which may be absent."""

    aspects: AspectModules | None
    aspect_lineage: Lineage | None
    soft_prompt: SoftPrompt | None
    soft_prompt_lineage: Lineage | None
    layout: str
    vision_features: bool = True
    """Whether features are in the prompt."""

    def quantization_notes(self, config: Config) -> list[str]:
        """How the language half in use differs from the one of training."""
        return quantization_notes(config.vlm.quantization, (self.aspect_lineage, self.soft_prompt_lineage))

    def subset_notes(self) -> list[str]:
        """On how many of the training images each part was trained, where it was not all for both."""
        parts = {"aspect modules were": self.aspect_lineage, "soft prompt was": self.soft_prompt_lineage}
        texts = {
            name: described(part.settings)
            for name, part in parts.items()
            if part is not None and part.origin == "trained"
        }
        if not any(texts.values()):
            return []
        return [f"the {name} trained on {text or 'all training images'}" for name, text in texts.items()]

    def lineage(self) -> dict[str, Any]:
        """Digests and origins for the record of an evaluation."""
        parts = {"aspect": self.aspect_lineage, "soft_prompt": self.soft_prompt_lineage}
        return {name: None if part is None else part.to_json() for name, part in parts.items()}


def check_lineage(lineage: Lineage, key: str, path: str, model: dict[str, Any], modules: Lineage | None = None) -> None:
    """Refuse an artifact that was trained around another VLM, or with other aspect modules.

    Args:
        lineage: Lineage of the artifact.
        key: Setting that named its file.
        path: Its file.
        model: Model part of the fingerprint in use.
        modules: For a soft prompt, lineage of the aspect modules in use; None if there are none.

    Raises:
        InputError: They do not fit; names the field and both values.
    """
    if lineage.origin == "imported":
        return
    differing = differences(lineage.model or {}, model)
    if differing:
        name, old, new = differing[0]
        there, here = shown_apart(repr(old), repr(new), 200)
        raise InputError(f"{key}: {path} was trained with {name} = {there}, but here it is {here}")
    if lineage.kind == "soft_prompt":
        have = modules.digest if modules else None
        if lineage.aspect_digest != have:
            if lineage.aspect_digest is None:
                raise InputError(
                    f"{key}: {path} was trained without aspect modules, but here they are {_short(have)}; give "
                    f"checkpoint.aspect={NONE}"
                )
            raise InputError(
                f"{key}: {path} was trained with aspect modules {_short(lineage.aspect_digest)} "
                f"({', '.join(lineage.aspects) or 'none'}), but here they are {_short(have)}; "
                "give the ones it was trained with as checkpoint.aspect"
            )


def check_target(lineage: Lineage, path: str, target: str) -> None:
    """Refuse a soft prompt that was trained to recognize something else; an imported one does not say.

    Args:
        lineage: Lineage of the soft prompt.
        path: Its file.
        target: `target.name`.

    Raises:
        InputError: Names both targets.
    """
    if lineage.origin == "trained" and lineage.target_name != target:
        trained, here = shown_apart(lineage.target_name, target, 100)
        raise InputError(
            f"checkpoint.soft_prompt: {path} was trained for target {trained}, but target.name = {here}; give the "
            "same, or a soft prompt of this target"
        )


def quantization_notes(quantization: Quantization, lineages: Iterable[Lineage | None]) -> list[str]:
    """How the language half in use differs from the one behind which artifacts were trained.

    It is the same VLM, rounded: like another `engine.precision`, that changes scores a little and is said and recorded,
    not refused. So what was trained in 4 bits can be used without them, and the cost of each can be measured.

    Args:
        quantization: `vlm.quantization` in use.
        lineages: Lineage of each artifact; None for one that is not there.
    """
    return [
        f"{'the soft prompt was' if lineage.kind == 'soft_prompt' else 'the aspect modules were'} trained with "
        f"vlm.quantization={lineage.quantization}, and it is {quantization} here"
        for lineage in lineages
        if lineage is not None and lineage.origin == "trained" and lineage.quantization != quantization
    ]


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]


def load_trained_aspects(
    config: Config, hidden_size: int, model: Fields
) -> tuple[AspectModules, Lineage] | tuple[None, None]:
    """The aspect modules that the configuration names; None if it does without.

    Raises:
        InputError: They are missing, or belong to another VLM.
    """
    if not prompt_aspects(config):
        return None, None
    path = config.checkpoint.aspect or str(default_aspect_path(config))
    if config.checkpoint.aspect is None and not is_file(Path(path), key="output_dir"):
        raise InputError(
            f"checkpoint.aspect: {path} does not exist; run `masp train --stage stage1`, which needs annotated images, "
            "name a file that was trained elsewhere, or give checkpoint.aspect=none to do without aspect modules"
        )
    modules, lineage = load_aspects(path, config.aspects, hidden_size)
    check_lineage(lineage, "checkpoint.aspect", path, model)
    return modules.requires_grad_(False), lineage


def _check_aspects_of_soft_prompt(config: Config, hidden_size: int) -> None:
    """Say what a run's soft prompt was trained with where the run has no aspect modules of its own and names none.

    Raises:
        InputError: It was trained without, or with those of another run.
    """
    named, path = config.checkpoint.soft_prompt, config.checkpoint.soft_prompt or str(default_soft_prompt_path(config))
    own = default_aspect_path(config)
    if config.checkpoint.aspect is not None or not prompt_aspects(config) or named == NONE:
        return
    if is_file(own, key="output_dir") or not (
        path.startswith(SCHEME) or exists(Path(path), key="checkpoint.soft_prompt")
    ):
        return
    _, lineage = load_soft_prompt(path, hidden_size)
    if lineage.origin == "trained":
        what, remedy = "without aspect modules", "give checkpoint.aspect=none"
        if lineage.aspect_digest is not None:
            what, remedy = (
                f"with aspect modules {lineage.aspect_digest[:12]} of another run",
                "give checkpoint.aspect=FILE",
            )
        raise InputError(f"checkpoint.aspect: {own} does not exist, and {path} was trained {what}; {remedy}")


def load_trained(
    config: Config,
    hidden_size: int,
    model: Fields,
    held: tuple[AspectModules | None, Lineage | None] | None = None,
) -> Trained:
    """Everything that evaluation and prediction load.

    Args:
        config: Run configuration.
        hidden_size: D of the VLM.
        model: Model part of the fingerprint in use.
        held: The aspect modules that the configuration names, if they are loaded already.

    Raises:
        InputError: A file is missing, does not fit the VLM, or belongs to other aspect modules.
    """
    _check_aspects_of_soft_prompt(config, hidden_size)
    modules, aspect_lineage = held or load_trained_aspects(config, hidden_size, model)
    if config.checkpoint.soft_prompt == NONE:
        asked_layout = config.checkpoint.layout or config.stage2.layout
        return Trained(modules, aspect_lineage, None, None, asked_layout, config.stage2.vision_features)
    path = config.checkpoint.soft_prompt or str(default_soft_prompt_path(config))
    if config.checkpoint.soft_prompt is None and not is_file(Path(path), key="output_dir"):
        raise InputError(
            f"checkpoint.soft_prompt: {path} does not exist; run `masp train --stage stage2`, name a file, or give "
            "checkpoint.soft_prompt=none to do without soft prompt"
        )
    soft_prompt, lineage = load_soft_prompt(path, hidden_size)
    check_target(lineage, path, config.target.name)
    check_lineage(lineage, "checkpoint.soft_prompt", path, model, aspect_lineage)
    if lineage.aspects and tuple(config.aspects) != lineage.aspects:
        here, there = shown_apart(str(config.aspects), str(list(lineage.aspects)), 200)
        raise InputError(f"aspects = {here}: {path} was trained with {there}, in this order; give the same")
    layout = lineage.layout or config.checkpoint.layout
    if layout is None:
        raise InputError(
            f"checkpoint.layout: {path} does not say its layout; give checkpoint.layout=released for a published file, "
            "or after_image"
        )
    if config.checkpoint.layout and lineage.layout and config.checkpoint.layout != lineage.layout:
        raise InputError(
            f"checkpoint.layout = {config.checkpoint.layout!r}: {path} was trained with {lineage.layout!r}; "
            "leave it out"
        )
    return Trained(modules, aspect_lineage, soft_prompt, lineage, layout, lineage.vision_features)
