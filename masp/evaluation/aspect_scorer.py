"""Scores answers about aspects from aspect tokens; knows neither ledgers nor ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from masp.config import Config
from masp.data.questions import Questions
from masp.evaluation.emotion_scorer import Score
from masp.models.aspect_modules import AspectModules
from masp.models.forward import run
from masp.models.generation import generate
from masp.models.likelihood import score_categories
from masp.models.sequence import Batch, build_sequence, make_batch
from masp.runtime.devices import torch_dtype
from masp.vlm.language import LanguageHalf, load_language_half
from masp.vlm.prompt import load_prompt


@dataclass
class _Asked:
    """The language half over aspect tokens that are there already, as scoring wants a model."""

    language: LanguageHalf
    tokens: Tensor
    """`[I, A, N, D]`."""
    num_logits: int | None = None

    def hidden(self, batch: Batch, cache=None) -> Tensor:
        return run(self.language, batch, self.tokens, None, cache)


class AspectScorer:
    """A VLM's language half with aspect modules.

    Args:
        config: `vlm`, `engine` and `aspects` matter.
        modules: in the order of `config.aspects`.
        layout: that they were trained in; decides whether the end token counts.
        questions: the first template of each aspect is asked.
        closed: aspect -> answers whose likelihoods are compared.
        longest: aspect -> tokens of its longest answer; the others may be written no longer.
        device: `cpu` or `cuda`.
    """

    def __init__(
        self,
        config: Config,
        modules: AspectModules,
        layout: str,
        questions: Questions,
        closed: Mapping[str, Sequence[str]],
        longest: Mapping[str, int],
        device: str,
    ):
        self.aspects, self.layout, self.closed = list(config.aspects), layout, closed
        self.device, self.dtype = device, torch_dtype(config.engine.precision)
        self.prompt = load_prompt(config.vlm.path)
        self.language = load_language_half(config.vlm.path, self.dtype, device, config.vlm.attention)
        self.modules = modules.to(device, self.dtype).eval()
        self.questions = {aspect: questions.aspect_first(aspect) for aspect in self.aspects}
        # and the end token
        self.max_new_tokens = {aspect: count + 1 for aspect, count in longest.items()}

    @torch.inference_mode()
    def score(self, features: Sequence[Tensor], asked: Sequence[tuple[int, str]]) -> list[Score]:
        """Score answers.

        Args:
            features: per image `[T, D]`.
            asked: image and aspect of each answer.

        Returns:
            One per entry of `asked`; `scores` and `mean_scores` only for closed aspects.
        """
        found: dict[int, Score] = {}
        for aspect in self.aspects:
            rows = [n for n, (_, name) in enumerate(asked) if name == aspect]
            if rows:
                scores = self._score(features, [asked[n][0] for n in rows], aspect)
                found |= dict(zip(rows, scores, strict=True))
        return [found[n] for n in range(len(asked))]

    def _score(self, features: Sequence[Tensor], images: Sequence[int], aspect: str) -> list[Score]:
        sequence = build_sequence(
            self.prompt, self.questions[aspect], None,
            num_aspect_tokens=self.modules.num_queries, grid=None, num_soft_tokens=0, layout=self.layout,
        )  # fmt: skip
        batch = make_batch(
            [sequence] * len(images), [features[i] for i in images],
            row_image=range(len(images)), row_aspect=[self.aspects.index(aspect)] * len(images),
        ).to(self.device, self.dtype)  # fmt: skip
        model = _Asked(self.language, self.modules(batch.features, batch.feature_mask))
        if aspect not in self.closed:
            ids, _ = generate(model, batch, self.max_new_tokens[aspect], self.prompt.stop)
            return [self._read(row) for row in ids]
        answers = self.closed[aspect]
        end = None if self.layout == "released" else self.prompt.end
        sums, means = score_categories(model, batch, [self.prompt.ids(a) for a in answers], end)
        best = sums.argmax(dim=1).tolist()
        return [Score(answers[b], s.tolist(), m.tolist(), None) for b, s, m in zip(best, sums, means, strict=True)]

    def _read(self, ids: list[int]) -> Score:
        text = self.prompt.decode(ids)
        return Score(text.split("\n")[0].strip(), None, None, text)
