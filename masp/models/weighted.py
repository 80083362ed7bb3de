"""Batches whose rows have several answers, each with a probability: votes of raters instead of one label."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items

from torch import Tensor

from masp.models.candidates import weigh_answers
from masp.models.sequence import Batch, Sequence, make_batch
from masp.vlm.features import Features
from masp.vlm.prompt import Prompt


def make_weighted_batch(
    prompt: Prompt,
    build: Callable[[int, str | None], Sequence],
    answers: Items[Mapping[str, float]],
    features: Items[Features],
    *,
    weights: Items[float],
    layout: str,
    frozen_prefix: bool = True,
    aspect_tokens: Items[Tensor] | None = None,
) -> Batch:
    """Collate images of which each has several answers; the sum of weight x loss is over images and their answers.

    Whatever comes before the soft prompt runs once per image. Where candidates may run as a tree, so does all before
    the answers; where layers keep a state, which cannot branch, each answer is a row of its own.

    Args:
        prompt: Chat template of the VLM.
        build: Makes the sequence of an image, given its number and an answer, or None to stop before the answer.
        answers: Of each image, answer -> probability; those of probability 0 are left out.
        features: Features of each image.
        weights: Weight of each image.
        layout: Layout of the sequences.
        frozen_prefix: See `make_batch`.
        aspect_tokens: See `make_batch`.
    """
    if not prompt.family.has_tree:
        rows = [(image, answer) for image, own in enumerate(answers) for answer, p in own.items() if p > 0]
        return make_batch(
            prompt,
            [build(image, answer) for image, answer in rows],
            features,
            row_image=[image for image, _ in rows],
            weights=[weights[image] * answers[image][answer] for image, answer in rows],
            frozen_prefix=frozen_prefix,
            aspect_tokens=aspect_tokens,
        )
    sequences = [build(image, None) for image in range(len(features))]
    end, released = prompt.end, layout == "released"
    return make_batch(
        prompt,
        sequences,
        features,
        row_image=range(len(features)),
        weights=weights,
        frozen_prefix=frozen_prefix,
        aspect_tokens=aspect_tokens,
        answers=[
            weigh_answers(
                [(prompt.answer(answer), probability) for answer, probability in own.items()],
                None if released else end,
                int(sequence.ids[-1]) if released else None,
            )
            for own, sequence in zip(answers, sequences, strict=True)
        ],
    )
