"""Which steps a run consists of, in order, from its configuration alone."""

from __future__ import annotations

from enum import StrEnum

from masp.config.schema import Config


class StepName(StrEnum):
    """The steps that a run may have."""

    EXTRACT = "extract"
    ANNOTATE = "annotate"
    STAGE1 = "stage1"
    STAGE2 = "stage2"
    EVALUATE = "evaluate"


def step_names(config: Config, lacks_aspects: bool = False) -> list[StepName]:
    """The steps of a run, in order.

    Without a cache nothing is extracted, since training and evaluation run the encoder; without aspects, or with aspect
    modules or a soft prompt that were trained elsewhere, these are not trained.

    Args:
        config: Run configuration.
        lacks_aspects: Whether nobody annotated some of the aspects in use, so that the VLM has to; where it is not
            known, `annotate.aspects` says what the VLM is to annotate.
    """
    trains_aspects = bool(config.aspects) and config.checkpoint.aspect is None
    wants_answers = lacks_aspects or bool(config.annotate.aspects)
    needed = {
        StepName.EXTRACT: config.cache.dir is not None,
        StepName.ANNOTATE: trains_aspects and wants_answers and config.cache.dir is not None,
        StepName.STAGE1: trains_aspects,
        StepName.STAGE2: config.checkpoint.soft_prompt is None,
        StepName.EVALUATE: True,
    }
    return [name for name in StepName if needed[name]]
