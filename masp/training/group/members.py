"""The members of a group: runs of stage 2 that differ only in what comes after the image."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

from masp.config import Config
from masp.data.questions import questions_of
from masp.errors import InputError
from masp.files.sealed import digest_of
from masp.training.stages import SoftPromptStage, open_stage

OWN = ("seed", "output_dir", "questions")
"""Settings in which members may differ, beside `OWN_OF_STAGE` and `target.questions`."""
OWN_OF_STAGE = (
    "learning_rate",
    "weight_decay",
    "warmup_ratio",
    "schedule",
    "max_grad_norm",
    "num_epochs",
    "num_soft_prompt_tokens",
    "soft_prompt_init",
    "patience",
)
"""Settings of stage 2 in which they may differ."""


def why_alone(config: Config) -> str | None:
    """Why a run cannot be trained behind the prefix of others; None where it can."""
    stage2 = config.stage2
    if stage2.layout != "after_image" or not stage2.frozen_prefix:
        return "its prompt has no frozen prefix (stage2.layout, stage2.frozen_prefix)"
    if stage2.supervision == "distribution" and stage2.distribution_loss == "weighted":
        return "every category is an answer (stage2.distribution_loss=weighted)"
    if config.engine.precision == "fp16":
        return "fp16 scales the loss, and one member's overflow would skip the step of all (engine.precision=fp16)"
    if config.cache.dir is None:
        return "features are computed live (cache.dir=null)"
    return None


def group_key(config: Config) -> str:
    """A digest of all that the members of a group must have in common."""
    shared = dataclasses.asdict(copy.deepcopy(config))
    shared["order_seed"] = config.seed if config.order_seed is None else config.order_seed
    for name in (*OWN, "evaluate"):
        del shared[name]
    for name in OWN_OF_STAGE:
        del shared["stage2"][name]
    del shared["stage1"], shared["target"]["questions"]
    return digest_of(shared)


def open_members(configs: Sequence[Config], device: str) -> list[SoftPromptStage]:
    """The stages of a group's members; what they share is opened once.

    Args:
        configs: Configurations with the same `group_key`.
        device: `cpu` or `cuda`.

    Raises:
        InputError, DataError: As `masp.training.stages.open_stage`; the first names what all of them share.
    """
    first = open_stage("stage2", configs[0], device)
    assert isinstance(first, SoftPromptStage)
    return [first, *(_like(first, config, device) for config in configs[1:])]


def _like(first: SoftPromptStage, config: Config, device: str) -> SoftPromptStage:
    """A stage on what another one has opened already."""
    if group_key(config) != group_key(first.config):
        raise InputError(f"{config.output_dir} does not share its prefix with {first.config.output_dir}")
    SoftPromptStage.check_settings(config, device)
    stage = SoftPromptStage(config, first.cache, questions_of(config))
    stage.sources, stage.record, stage.num_quarantined = first.sources, first.record, first.num_quarantined
    stage.check_samples()
    stage.check_prompt()
    stage.aspect_modules, stage.aspect_lineage = first.aspect_modules, first.aspect_lineage
    stage.aspect_digest, stage.aspect_tokens = first.aspect_digest, first.aspect_tokens
    return stage
