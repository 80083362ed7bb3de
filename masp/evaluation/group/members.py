"""Which evaluations can be scored behind one prefix: those that differ only in what comes after the image."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from masp.artifacts.store import load_soft_prompt
from masp.artifacts.trained import NONE, default_aspect_path, default_soft_prompt_path, prompt_aspects
from masp.config import Config
from masp.config.feature_source import evaluation_source
from masp.errors import MaspError
from masp.files.sealed import digest_of
from masp.vlm.families import family_of

OWN = ("seed", "order_seed", "output_dir", "questions", "stage1", "stage2", "logging")
"""Settings in which members may differ, beside the soft prompt, `target.questions` and `evaluate.output_dir`."""


@dataclasses.dataclass(frozen=True)
class PromptForm:
    """What a soft prompt says of the prompts that it was trained in."""

    layout: str | None
    vision_features: bool
    categories: tuple[str, ...]
    """Those that it was trained on, where they decide which are asked for."""


def why_alone(config: Config) -> str | None:
    """Why an evaluation cannot be scored behind the prefix of others; None where it can."""
    asked = config.evaluate
    if asked.stage != "stage2":
        return f"each aspect has a prompt of its own (evaluate.stage={asked.stage})"
    if asked.scoring != "likelihood":
        return f"answers are written (evaluate.scoring={asked.scoring})"
    if asked.without:
        return f"parts are left out of the prompt (evaluate.without=[{','.join(asked.without)}])"
    if evaluation_source(config) == "live":
        where = "cache.dir=null" if config.cache.dir is None else "evaluate.source=live"
        return f"features are computed live ({where})"
    try:
        family, form = family_of(config.vlm.path), prompt_form(config)
    except MaspError as error:  # which the evaluation itself will raise
        return str(error)
    if family.runs_whole:
        return f"{family.model_type} models read a prompt as a whole (vlm.path)"
    if form.layout != "after_image":
        return f"its soft prompt comes before the image (layout {form.layout})"
    return None


def prompt_form(config: Config) -> PromptForm:
    """The form of the prompt that an evaluation asks in, before anything large is loaded.

    Raises:
        InputError, DataError: As `masp.artifacts.store.load_soft_prompt`.
    """
    if config.checkpoint.soft_prompt == NONE:
        return PromptForm(config.checkpoint.layout or config.stage2.layout, config.stage2.vision_features, ())
    path = config.checkpoint.soft_prompt or str(default_soft_prompt_path(config))
    _, lineage = load_soft_prompt(path, family_of(config.vlm.path).hidden_size)
    categories = lineage.categories if config.evaluate.category_map else ()
    return PromptForm(lineage.layout or config.checkpoint.layout, lineage.vision_features, categories)


def group_key(config: Config) -> str:
    """A digest of all that the members of a group must have in common; of configurations without `why_alone`."""
    shared = dataclasses.asdict(copy.deepcopy(config))
    for name in OWN:
        del shared[name]
    del shared["target"]["questions"], shared["evaluate"]["output_dir"]
    for name in ("soft_prompt", "layout"):
        del shared["checkpoint"][name]
    if prompt_aspects(config):
        shared["checkpoint"]["aspect"] = config.checkpoint.aspect or str(default_aspect_path(config).resolve())
        if Path(shared["checkpoint"]["aspect"]).exists():
            shared["checkpoint"]["aspect"] = str(Path(shared["checkpoint"]["aspect"]).resolve())
    return digest_of(shared | {"form": dataclasses.asdict(prompt_form(config))})


def groups_of(configs: Sequence[Config]) -> list[list[int]]:
    """Numbers of the evaluations that share a prefix, in the order of their first ones; one that cannot is alone."""
    groups: dict[str, list[int]] = {}
    for number, config in enumerate(configs):
        key = group_key(config) if why_alone(config) is None else str(number)
        groups.setdefault(key, []).append(number)
    return list(groups.values())
