"""Asking the frozen VLM about the aspects of images, from their stored features.

The prompt is the stock one: system turn, image, question. Nothing that was trained is in it. System turn and image run
once for all aspects of a batch; each question goes on from their keys and values and leaves them as they are. Families
with windows or states, for which padding between the two would count (`Family.pads_left`), run them with each question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from masp.cache.reader import CachedSample
from masp.config import Config
from masp.config.aspects import Aspect
from masp.data.questions import Questions
from masp.errors import InputError
from masp.evaluation.scorers import finite_for, load_language
from masp.models.forward import run, run_prefix, run_suffix
from masp.models.generation import generate
from masp.models.likelihood import score_categories
from masp.models.sequence import Batch, build_sequence, make_batch
from masp.runtime.devices import pick_device, torch_dtype
from masp.taxonomy import normalize_category
from masp.vlm.caches import hold_same
from masp.vlm.language import LanguageHalf
from masp.vlm.prompt import load_prompt


@dataclass(frozen=True)
class Answer:
    """What came out for one aspect of one image."""

    text: str | None
    """None: the image does not have the aspect, or the VLM wrote nothing that could be an answer."""
    confidence: float
    """Of likelihoods: the probability of this answer among all. Of a written one: the mean probability of a token."""


@dataclass
class _BehindPrefix:
    """The language half behind the prefix of a batch, which runs once, in the form that scoring takes."""

    language: LanguageHalf
    num_logits: int | None = None
    prefix: Any = None
    """Cache of the prefix; None until it has run, and in families that run it with each question."""

    def hidden(self, batch: Batch, cache: Any = None) -> Tensor:
        """Hidden states behind the question `[B, Ls, D]`."""
        if batch.prefix is None:
            return run(self.language, batch, None, None, cache)
        if self.prefix is None:
            self.prefix = self.language.new_cache()
            run_prefix(self.language, batch, None, None, self.prefix)
        hold_same(cache, self.prefix)
        return run_suffix(self.language, batch, None, None, cache)


class VlmAnnotator:
    """The language half of the VLM, which answers questions about images.

    Args:
        config: Run configuration; `vlm`, `engine.precision` and `annotate` matter.
        questions: Questions; the first template of an aspect is asked.

    Raises:
        InputError: The VLM cannot be loaded on the device.
    """

    def __init__(self, config: Config, questions: Questions):
        self.device = pick_device(config.annotate.device, "annotate.device")
        if self.device == "cpu" and config.engine.precision == "fp16":
            raise InputError("engine.precision = 'fp16': needs a GPU; valid on a CPU are bf16 and fp32")
        self.dtype, self.questions = torch_dtype(config.engine.precision), questions
        self.max_new_tokens = config.annotate.max_new_tokens
        self.prompt = load_prompt(config.vlm.path)
        self.language = load_language(config, self.device)

    @torch.inference_mode()
    def answer(self, samples: Sequence[CachedSample], aspects: Sequence[Aspect]) -> Mapping[str, list[Answer]]:
        """The answers to some aspects of a batch of images; those to one do not depend on which others are asked.

        Args:
            samples: Images with their features.
            aspects: What is asked.

        Returns:
            Aspect -> an answer per image.

        Raises:
            InputError: The output of the model for an image is not finite; names it.
        """
        model = _BehindPrefix(self.language)
        found = {}
        for aspect in aspects:
            batch = self._batch(samples, self.questions.aspect_first(aspect.name))
            with finite_for([sample.key for sample in samples], self.dtype):
                found[aspect.name] = self._answers(model, batch, aspect)
        return found

    def _batch(self, samples: Sequence[CachedSample], question: str) -> Batch:
        sequences = [
            build_sequence(
                self.prompt, question, None,
                num_aspect_tokens=0, image=sample.layout, num_soft_tokens=0, layout="after_image",
            )
            for sample in samples
        ]  # fmt: skip
        features = [sample.features for sample in samples]
        batch = make_batch(self.prompt, sequences, features, row_image=range(len(samples)), goes_on=True)
        return batch.to(self.device, self.dtype)

    def _answers(self, model: _BehindPrefix, batch: Batch, aspect: Aspect) -> list[Answer]:
        if aspect.annotate == "generate":
            probabilities: list[list[float]] = []
            rows, _ = generate(model, batch, self.max_new_tokens, self.prompt.stop, probabilities)
            return [self._written(ids, p, aspect) for ids, p in zip(rows, probabilities, strict=True)]
        choices = [*aspect.vocabulary, *([] if aspect.absent is None else [aspect.absent])]
        sums, _ = score_categories(model, batch, [self.prompt.answer(choice) for choice in choices], self.prompt.end)
        shares = sums.double().softmax(dim=1)
        # argmax takes the first of equals: ties go to the order of the answers
        best = sums.argmax(dim=1).tolist()
        return [
            Answer(None if choices[place] == aspect.absent else choices[place], float(share[place]))
            for place, share in zip(best, shares, strict=True)
        ]

    def _written(self, ids: Sequence[int], probabilities: Sequence[float], aspect: Aspect) -> Answer:
        """The answer in generated tokens: their first line."""
        count = len(ids)
        if "\n" in self.prompt.decode(list(ids)).strip():
            count = next(
                n for n in range(1, count + 1) if "\n" in self.prompt.decode(list(ids[:n])).strip("\n") or n == count
            )
        return Answer(
            clean_answer(self.prompt.decode(list(ids)), aspect), float(sum(probabilities[:count]) / max(1, count))
        )


def clean_answer(text: str, aspect: Aspect) -> str | None:
    """The answer in a written text, in the form of annotations; None where there is none.

    Args:
        text: What the VLM wrote; its first line counts. Of kind `list`, parts at commas are answers, each once.
        aspect: The aspect. Where it has possible answers, others are not taken.
    """
    line = next(iter(text.strip().split("\n")))
    parts = line.split(",") if aspect.kind == "list" else [line]
    cleaned = [normalize_category(part.strip().rstrip(".")) for part in parts]
    valid = [
        part
        for part in dict.fromkeys(cleaned)
        if part and part != aspect.absent and (not aspect.vocabulary or part in aspect.vocabulary)
    ]
    return ", ".join(valid) or None
