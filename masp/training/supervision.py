"""What stage 2 learns to answer: the label of an image, or the distribution that raters gave over the categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from masp.cache.reader import CachedSample
from masp.config.schema import Stage2Config
from masp.data.questions import drawn_category
from masp.errors import InputError
from masp.models.candidates import candidate_tree
from masp.training.schedule import TrainingCache
from masp.vlm.prompt import Prompt


def check_supervision(settings: Stage2Config, cache: TrainingCache, rows: np.ndarray, place: str) -> None:
    """Refuse to learn distributions that no training image has.

    Args:
        settings: Settings of stage 2.
        cache: Feature cache.
        rows: Rows of the training images.
        place: Setting and directory that the images come from.

    Raises:
        InputError: None has one.
    """
    if settings.supervision == "distribution" and not cache.has_distribution(rows).any():
        raise InputError(
            f"stage2.supervision = 'distribution': no training image in {place} has a distribution over the "
            "categories, only a label; give stage2.supervision=label, or a cache of a dataset with votes"
        )


def supervision_notes(settings: Stage2Config, cache: TrainingCache, rows: np.ndarray) -> list[str]:
    """How many training images are trained on their label although distributions are asked for.

    Args:
        settings: Settings of stage 2.
        cache: Feature cache.
        rows: Rows of the training images.
    """
    if settings.supervision == "label":
        return []
    num_without = len(rows) - int(np.count_nonzero(cache.has_distribution(rows)))
    if not num_without:
        return []
    return [
        f"stage2.supervision = 'distribution': {num_without:,} of {len(rows):,} training images have no distribution "
        "over the categories; they are trained on their label"
    ]


def weighs_answers(settings: Stage2Config, epoch: int | None) -> bool:
    """Whether all categories of an image are answers, each with its probability.

    Args:
        settings: Settings of stage 2.
        epoch: Number of the epoch; None measures held-out images, whose loss is then the mean over what could be drawn.
    """
    return settings.supervision == "distribution" and (settings.distribution_loss == "weighted" or epoch is None)


def answer_of(
    settings: Stage2Config, sample: CachedSample, categories: Sequence[str], seed: int, epoch: int | None
) -> str:
    """The one answer of an image in an epoch.

    Args:
        settings: Settings of stage 2.
        sample: The image.
        categories: The categories, in the order of its distribution.
        seed: Seed of the run.
        epoch: Number of the epoch.
    """
    if settings.supervision == "label" or sample.distribution is None or epoch is None:
        return sample.category
    return drawn_category(categories, sample.distribution, seed, epoch, sample.key)


def weights_of(sample: CachedSample, categories: Sequence[str]) -> Mapping[str, float]:
    """All answers of an image: category -> probability, of those that have one; without a distribution its label."""
    if sample.distribution is None:
        return {sample.category: 1.0}
    return {c: p for c, p in zip(categories, sample.distribution, strict=True) if p > 0}


def more_tokens(prompt: Prompt, categories: Sequence[str], tokens_of_row: int) -> int:
    """At most how many more tokens an image costs where all categories are its answers, for the token budget.

    Args:
        prompt: Chat template of the VLM.
        categories: The categories.
        tokens_of_row: Tokens of a row behind what runs once per image.
    """
    if not prompt.family.has_tree:
        return (len(categories) - 1) * tokens_of_row
    return len(candidate_tree([prompt.answer(category) for category in categories]).ids)
