"""Scores samples with a VLM and what was trained around it; knows neither ledgers nor ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from masp.artifacts.trained import Trained
from masp.config import Config
from masp.data.questions import Questions
from masp.models.forward import Stage2Model, num_logits
from masp.models.generation import generate
from masp.models.likelihood import score_categories
from masp.models.sequence import build_sequence, make_batch, pad_features
from masp.runtime.devices import torch_dtype
from masp.vlm.language import load_language_half
from masp.vlm.prompt import Prompt, load_prompt


@dataclass(frozen=True)
class Score:
    """What came out for one sample."""

    prediction: str | None
    """A category; None if the generated line names none."""
    scores: list[float] | None
    """Log-likelihood of each category's words, in nats; None under `generate`."""
    mean_scores: list[float] | None
    """The same per token."""
    text: str | None
    """The generated line; None under `likelihood`."""


class Scorer:
    """A VLM's language half with aspect modules and soft prompt, ready to score features.

    Args:
        config: `vlm`, `engine`, `evaluate` and `aspects` matter.
        trained: what was trained; its soft prompt decides the layout.
        questions: evaluation asks the first emotion template.
        categories: in the order of the scores.
        device: `cpu` or `cuda`.
    """

    def __init__(self, config: Config, trained: Trained, questions: Questions, categories: Sequence[str], device: str):
        self.config, self.categories, self.layout = config, tuple(categories), trained.layout
        self.vision_features = trained.vision_features
        self.device, self.dtype = device, torch_dtype(config.engine.precision)
        self.prompt: Prompt = load_prompt(config.vlm.path)
        self.question = questions.emotion_first(self.categories)
        language = load_language_half(config.vlm.path, self.dtype, device, config.vlm.attention)
        modules = None if trained.aspects is None else trained.aspects.to(device, self.dtype)
        soft_prompt = None if trained.soft_prompt is None else trained.soft_prompt.to(device, self.dtype)
        self.num_soft_tokens = 0 if soft_prompt is None else len(soft_prompt.weight)
        self.num_aspect_tokens = 0 if modules is None else len(modules.aspects) * modules.num_queries
        rows = num_logits(self.layout, self.prompt, language.vocab_size, self.num_soft_tokens)
        self.model = Stage2Model(language, modules, soft_prompt, rows).eval()
        self.candidates = [self.prompt.ids(category) for category in self.categories]

    def score(
        self,
        features: Sequence[Tensor],
        grids: Sequence[tuple[int, int, int]],
        aspect_tokens: Sequence[Tensor] | None = None,
    ) -> list[Score]:
        """Score a batch of any size.

        Args:
            features: per image `[T, D]`.
            grids: per image `(t, h, w)`.
            aspect_tokens: per image `[A, N, D]` computed before; None runs the aspect modules.
        """
        sequences = [
            build_sequence(
                self.prompt,
                self.question,
                None,
                num_aspect_tokens=self.num_aspect_tokens,
                grid=grid if self.vision_features else None,
                num_soft_tokens=self.num_soft_tokens,
                layout=self.layout,
            )
            for grid in grids
        ]
        # nothing is trained here, so there is no prefix to keep apart
        batch = make_batch(
            sequences, features, row_image=range(len(grids)), frozen_prefix=False, aspect_tokens=aspect_tokens
        )
        batch = batch.to(self.device, self.dtype)
        if self.config.evaluate.scoring == "generate":
            ids, _ = generate(self.model, batch, self.config.evaluate.max_new_tokens, self.prompt.stop)
            return [self._read(row) for row in ids]
        end = None if self.layout == "released" else self.prompt.end
        sums, means = score_categories(self.model, batch, self.candidates, end)
        # argmax takes the first of equals: ties go to the order of the categories
        best = sums.argmax(dim=1).tolist()
        return [
            Score(self.categories[b], s.tolist(), m.tolist(), None) for b, s, m in zip(best, sums, means, strict=True)
        ]

    @torch.inference_mode()
    def attention(self, features: Sequence[Tensor], grids: Sequence[tuple[int, int, int]]) -> list[np.ndarray]:
        """Where the aspects look, each a mean over its queries.

        Returns:
            Per image `[A, height, width]` over its vision tokens, fp32; every map sums to one.
        """
        padded, mask = pad_features(features)
        modules = self.model.aspect_modules
        assert modules is not None, "without aspect modules nothing looks"
        found = modules.attention(padded.to(self.device, self.dtype), mask.to(self.device))
        weights = torch.stack([w.float().mean(1) for w in found.values()], dim=1).cpu().numpy()
        side = self.prompt.merge_size
        return [
            maps[:, : t * h * w // side**2].reshape(len(modules.aspects), t * h // side, w // side)
            for maps, (t, h, w) in zip(weights, grids, strict=True)
        ]

    def _read(self, ids: list[int]) -> Score:
        """A generated line as a category: the first line, matched exactly but for spaces around it."""
        text = self.prompt.decode(ids)
        line = text.split("\n")[0].strip()
        return Score(line if line in self.categories else None, None, None, text)
