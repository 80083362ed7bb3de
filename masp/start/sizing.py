"""How long and how fast to train, given the number of training images: one rule for both stages.

AdamW moves a value by about the learning rate in each step, whatever the gradient. So what a run can reach is the sum
of its learning rates, and this sum must suit the numbers that are trained: the soft prompt lives among the VLM's word
embeddings, whose size differs by a factor of a thousand between VLMs, and the aspect modules begin with weights whose
size follows from the width of the VLM. The rule:

    steps          enough of them: `MIN_STEPS`, and at least as many epochs as the published configuration
    learning rate  such that the learning rates of all steps add up to `REACH` times the RMS of those numbers

Both the published hyperparameters for 94,500 images and those of the demo for 4,000, which were found independently of
each other, are of about this reach (docs/training.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from masp.config.schema import StageName

REACH = 8.0
"""Sum of the learning rates of a stage, in units of the RMS of what it trains."""
MIN_STEPS: dict[StageName, int] = {"stage1": 500, "stage2": 300}
"""Optimizer steps that a stage needs at least, however few images there are."""
MIN_EPOCHS: dict[StageName, int] = {"stage1": 3, "stage2": 1}
"""Epochs of the published configuration; fewer are never chosen."""
MAX_EPOCHS = 40
"""More passes over the same few images teach nothing new."""
BATCH_SIZES = (8, 16, 32, 64)
STEPS_PER_EPOCH = 64
"""Steps that an epoch should have at least: the batch grows with the dataset as long as it has them."""
WARMUP = 0.03
"""Part of the steps over which the learning rate increases, as published."""
MIN_WARMUP_STEPS = 10
"""Steps that AdamW's moments need before they say anything."""
MAX_LEARNING_RATE = 10.0
"""The largest that the settings allow."""
NUM_VALIDATIONS = 10
"""Validations in a run, so that the best of about ten states is kept."""
MIN_VALIDATE_EVERY = 10
PATIENCE = 4
"""Validations without a new lowest loss after which a stage ends."""


@dataclass(frozen=True)
class StageSizes:
    """The settings of one stage that depend on the number of images."""

    num_epochs: int
    global_batch_size: int
    learning_rate: float
    """At the end of the warmup; two significant digits."""
    warmup_ratio: float
    validate_every: int
    """Optimizer steps between two validations; also between two checkpoints."""
    patience: int
    num_steps: int
    """Optimizer steps of the stage; not a setting."""


def stage_sizes(
    stage: StageName, num_images: int, rms: float, batch_size: int | None = None, num_epochs: int | None = None
) -> StageSizes:
    """Choose the settings of a stage by the number of images that it learns from.

    Args:
        stage: Name of the stage.
        num_images: Training images, without those of validation.
        rms: RMS of the numbers that are trained: `attention_rms` for stage 1, that of the VLM's word embeddings for
            stage 2.
        batch_size: `global_batch_size`, where it is decided already; the rest then suits it.
        num_epochs: Likewise `num_epochs`.

    Raises:
        ValueError: There are no images, or `rms` is not above 0.
    """
    if num_images < 1 or not rms > 0:
        raise ValueError(f"cannot size a stage for {num_images} images and an RMS of {rms}")
    if batch_size is None:
        batch_size = max([BATCH_SIZES[0], *(size for size in BATCH_SIZES if num_images >= size * STEPS_PER_EPOCH)])
    steps_per_epoch = -(-num_images // batch_size)
    if num_epochs is None:
        num_epochs = min(max(-(-MIN_STEPS[stage] // steps_per_epoch), MIN_EPOCHS[stage]), MAX_EPOCHS)
    num_steps = num_epochs * steps_per_epoch
    warmup_ratio = min(0.5, max(WARMUP, MIN_WARMUP_STEPS / num_steps))
    return StageSizes(
        num_epochs=num_epochs,
        global_batch_size=batch_size,
        # the mean of the rates of a linear schedule is half of the largest
        learning_rate=min(_rounded(2 * REACH * rms / num_steps), MAX_LEARNING_RATE),
        warmup_ratio=_rounded(warmup_ratio),
        validate_every=max(MIN_VALIDATE_EVERY, num_steps // NUM_VALIDATIONS),
        patience=PATIENCE,
        num_steps=num_steps,
    )


def attention_rms(hidden_size: int) -> float:
    """RMS of the weights with which a cross-attention of width D begins: Xavier's uniform distribution over `[3D, D]`,
    whose variance is 2 / (3D + D)."""
    return math.sqrt(2 / (4 * hidden_size))


def _rounded(value: float) -> float:
    """A value with two significant digits, which is what such a rule can claim."""
    return float(f"{value:.1e}")
