"""What `masp annotate` computes: tokens and FLOP of the questions that the VLM is asked before stage 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from masp.annotation.wanted import aspects_to_annotate
from masp.config import Config
from masp.config.aspects import FROM_PIXELS
from masp.data.lacking import Lacking
from masp.data.questions import questions_of
from masp.plan.evaluation import answer_flops, compared_tokens, generated_tokens
from masp.plan.rates import Rate
from masp.plan.tokens import PlannedImage, tally, text_tokens
from masp.vlm.cost.flops import Language, language_flops
from masp.vlm.families import family_of


@dataclass(frozen=True)
class AnnotationEstimate:
    """The work of an annotation by the VLM, and how long it takes at some rate."""

    aspects: tuple[str, ...]
    """The aspects that the VLM is asked about."""
    num_images: int
    """Images that lack at least one of them."""
    num_questions: int
    """Questions about all images."""
    tokens_per_image: float
    """Tokens that the language model reads per image; of written answers, the largest number."""
    flops_per_image: float
    flops: float
    hours: float
    rate: Rate


def estimate_annotation(
    config: Config, language: Language, images: Sequence[PlannedImage], rate: Rate
) -> AnnotationEstimate | None:
    """Estimate the annotation of the images that lack an aspect, see `masp.data.lacking.Lacking`.

    Args:
        config: Run configuration, whose `vlm.path` is a directory.
        language: Sizes of the language model.
        images: Images of all splits.
        rate: How fast the language model is, in FLOP.

    Returns:
        None where the run has no need of it: `annotate.aspects` lists none and people annotated each aspect in use, or
        there is no cache, or the aspect modules are not trained.

    Raises:
        InputError: Questions are unusable, or an aspect is listed that is never annotated.
    """
    if config.cache.dir is None or config.checkpoint.aspect is not None:
        return None
    asked = {aspect.name: aspect for aspect in aspects_to_annotate(config) if aspect.annotate not in FROM_PIXELS}
    groups = list(tally(images))
    lacking = Lacking.of(config, ((p.sample.split, p.sample.answers) for p, _ in groups))
    if not asked or not (lacking.is_listed or lacking.unanswered(asked)):
        return None
    text, family, questions = text_tokens(config.vlm.path), family_of(config.vlm.path), questions_of(config)
    behind = {}
    for name, aspect in asked.items():
        choices = [*aspect.vocabulary, *([] if aspect.absent is None else [aspect.absent])]
        answer = (
            generated_tokens(config.annotate.max_new_tokens)
            if aspect.annotate == "generate"
            else compared_tokens([text.answer(choice) for choice in choices], family.has_tree)
        )
        behind[name] = text.question(questions.aspect_first(name)) + text.closing, answer
    shares_prefix = not (family.pads_left or family.runs_whole)
    # aspects that the same images lack are asked about together
    together = {name: tuple(lacking.lacks(name, p.sample.answers) for p, _ in groups) for name in asked}
    num_images = num_questions = 0
    tokens = flops = 0.0
    for number, (p, count) in enumerate(groups):
        mine = [name for name in asked if together[name][number]]
        prefix = text.opening + text.image_start + p.block_length + text.image_end
        repeated = len(mine) - len({together[name] for name in mine}) if shares_prefix else 0
        num_images += count * bool(mine)
        num_questions += count * len(mine)
        for name in mine:
            suffix, answer = behind[name]
            tokens += count * (prefix + suffix + answer.num_tokens)
            flops += count * answer_flops(language, prefix + suffix, answer)
        tokens -= count * repeated * prefix
        flops -= count * repeated * language_flops(language, suffix=prefix, gradient=False)
    if not num_images:
        return None
    return AnnotationEstimate(
        aspects=tuple(name for name in asked if any(together[name])),
        num_images=num_images,
        num_questions=num_questions,
        tokens_per_image=tokens / num_images,
        flops_per_image=flops / num_images,
        flops=flops,
        hours=rate.hours(flops, tokens),
        rate=rate,
    )
