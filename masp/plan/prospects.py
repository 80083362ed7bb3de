"""Which stages can be trained on a dataset as configured, in how many steps, and whether these can change anything."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from masp.artifacts.trained import default_aspect_path
from masp.config import Config
from masp.data.findings import WITHOUT_STAGE_1, Finding, meant_by
from masp.data.sample import Dataset, Samples, count_kinds
from masp.data.splits.subset import seen_samples
from masp.data.target.find_labels import with_a_label
from masp.training.schedule import num_steps_of, too_little


@dataclass(frozen=True)
class Prospect:
    """What to expect of one stage."""

    stage: str
    num_images: int
    """Training images that it can learn from; all, where the VLM is to annotate an aspect in use."""
    num_steps: int
    """Optimizer steps; images held out for validation are not subtracted."""
    obstacle: str
    """Why it cannot be trained as configured, and what to do; empty where it can, or need not be."""
    summary: str
    """One line for the user."""
    hint: str
    """What else the user should know; may be empty."""


def prospects(config: Config, dataset: Dataset) -> tuple[Prospect, Prospect]:
    """What to expect of both stages.

    Args:
        config: Run configuration.
        dataset: The dataset with the labels of the target, see `masp.data.target.find_labels.label_dataset`.
    """
    dataset = replace(dataset, samples=seen_samples(config.dataset, Samples.of(dataset.samples)))
    num_train = num_annotated = num_pairs = 0
    by_vlm = _by_vlm(config)
    for (split, category, aspects), count in count_kinds(dataset.samples).items():
        if split == "train":
            asked = len(set(config.aspects) & (set(aspects) | by_vlm))
            num_train, num_pairs = num_train + count * bool(category), num_pairs + count * asked
            num_annotated += count if asked else 0
    num_positions = num_pairs if config.stage1.position == "pair" else num_annotated
    one, two = num_steps_of(num_positions, config.stage1), num_steps_of(num_train, config.stage2)
    own_modules = bool(config.aspects) and config.checkpoint.aspect is None
    obstacle = _obstacle_1(config, dataset, num_annotated) if own_modules else ""
    if not own_modules:
        why = f"checkpoint.aspect = {config.checkpoint.aspect}" if config.aspects else "aspects = []"
        first = Prospect("stage1", num_annotated, one, "", f"not needed: {why}", "")
    else:
        hint = "" if obstacle else too_little("stage1", one, config.stage1) or ""
        first = Prospect("stage1", num_annotated, one, obstacle, _summary(obstacle, num_annotated, one), hint)
    lacking = obstacle if obstacle and not os.path.isfile(default_aspect_path(config)) else ""
    if not num_train:
        lacking = f"the dataset has no training image{with_a_label(config.target)}"
    elif lacking:
        lacking = f"it needs aspect modules, and stage 1 cannot train them; {WITHOUT_STAGE_1}"
    elif config.stage2.supervision == "distribution" and not _has_distributions(dataset):
        lacking = (
            "stage2.supervision = 'distribution', and no training image has a distribution over the categories; give "
            "stage2.supervision=label"
        )
    hint = "" if lacking else too_little("stage2", two, config.stage2) or ""
    return first, Prospect("stage2", num_train, two, lacking, _summary(lacking, num_train, two), hint)


def prospect_findings(config: Config, dataset: Dataset) -> list[Finding]:
    """The same as findings, for a plan: only what stands in the way of training."""
    return [
        Finding(
            "training", f"{each.stage}: {each.obstacle}" if each.obstacle else each.hint, each.num_steps, serious=True
        )
        for each in prospects(config, dataset)
        if each.obstacle or each.hint
    ]


def obstacles(config: Config, dataset: Dataset) -> dict[str, str]:
    """Stage -> why it cannot be trained as configured."""
    return {each.stage: each.obstacle for each in prospects(config, dataset) if each.obstacle}


def _obstacle_1(config: Config, dataset: Dataset, num_annotated: int) -> str:
    if not num_annotated:
        return f"no training image is annotated with any of {', '.join(config.aspects)}; {WITHOUT_STAGE_1}"
    counts = dataset.holdings.aspects.get("train", {})
    by_vlm = _by_vlm(config)
    if empty := [aspect for aspect in config.aspects if not counts.get(aspect) and aspect not in by_vlm]:
        rest = ",".join(aspect for aspect in config.aspects if aspect not in empty)
        meant = "".join(meant_by(aspect, dataset.findings) for aspect in empty)
        return f"no training image is annotated with {' or '.join(empty)}{meant}; give aspects=[{rest}]"
    return ""


def _by_vlm(config: Config) -> set[str]:
    """The aspects that the VLM is to annotate before stage 1, so that nobody else has to."""
    return set(config.annotate.aspects or ()) if config.cache.dir is not None else set()


def _has_distributions(dataset: Dataset) -> bool:
    kinds = Samples.of(dataset.samples).kinds()
    return any(split == "train" and label.distribution is not None for split, label in kinds)


def _summary(obstacle: str, num_images: int, num_steps: int) -> str:
    return f"not possible as configured: {obstacle}" if obstacle else f"{num_images:,} images, {num_steps:,} steps"
