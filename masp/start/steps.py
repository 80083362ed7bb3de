"""Which steps a run consists of, in order, from its configuration alone."""

from __future__ import annotations

from enum import StrEnum

from masp.config.schema import Config


class StepName(StrEnum):
    """The steps that a run may have."""

    EXTRACT = "extract"
    STAGE1 = "stage1"
    STAGE2 = "stage2"
    EVALUATE = "evaluate"


def step_names(config: Config) -> list[StepName]:
    """The steps of a run, in order.

    Without a cache nothing is extracted, since training and evaluation run the encoder; without aspects, or with aspect
    modules or a soft prompt that were trained elsewhere, these are not trained.
    """
    needed = {
        StepName.EXTRACT: config.cache.dir is not None,
        StepName.STAGE1: bool(config.aspects) and config.checkpoint.aspect is None,
        StepName.STAGE2: config.checkpoint.soft_prompt is None,
        StepName.EVALUATE: True,
    }
    return [name for name in StepName if needed[name]]
