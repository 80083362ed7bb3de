"""Scorers: from features to a category or an answer, with a VLM and what was trained around it.

They know neither ledgers nor ranks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from masp.artifacts.trained import Trained
from masp.config import Config
from masp.config.aspects import VISION_FEATURES
from masp.data.questions import Questions
from masp.errors import InputError
from masp.models.forward import Stage2Model, num_logits, run
from masp.models.generation import generate
from masp.models.likelihood import NotFiniteError, Scored, check_finite, score_categories
from masp.models.sequence import Batch, build_sequence, make_batch, pad_features
from masp.models.sequence import Sequence as PromptSequence
from masp.models.trainable import AspectModules
from masp.runtime.devices import torch_dtype
from masp.taxonomy import normalize_category
from masp.vlm.features import Features, ImageLayout
from masp.vlm.language import LanguageHalf, load_language_half
from masp.vlm.loading import Partition
from masp.vlm.preprocessor import NO_TOKEN_GRID, load_token_grid
from masp.vlm.prompt import Prompt, load_prompt

DECISION = "first line, lower case"
"""How a generated text becomes an answer; part of the identity of an evaluation that generates."""


@dataclass(frozen=True)
class Score:
    """What came out for one question about one image."""

    prediction: str | None
    """A category or an answer; None if the generated line names no category."""
    scores: tuple[float, ...] | None
    """Log-likelihood of each choice's words, nats; None where the answer was generated."""
    mean_scores: tuple[float, ...] | None
    """The same per token."""
    text: str | None
    """The generated text; None where likelihoods were compared."""


@dataclass(frozen=True)
class ScoreRequest:
    """One question about one image."""

    features: Features
    layout: ImageLayout
    aspect_tokens: Tensor | None = None
    """`[A, N, D]` computed before; None runs the aspect modules."""
    aspect: str | None = None
    """The aspect that is asked for; None asks for the target."""
    without: frozenset[str] = frozenset()
    """Aspects, and `vision_features`, that are left out of the prompt of the target; what follows moves up."""
    name: str = "an image"
    """Sample key or path, for errors."""


@contextmanager
def finite_for(samples: Sequence[str], dtype: torch.dtype) -> Iterator[None]:
    """Say which sample it is whose output is not finite.

    Raises:
        InputError: Names the sample, the number format, and what to change.
    """
    try:
        yield
    except NotFiniteError as error:
        names = [samples[row] for row in error.rows]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        kind = str(dtype).removeprefix("torch.")
        remedy = (
            "use engine.precision=bf16 or fp32" if dtype == torch.float16 else "the VLM or what was trained is damaged"
        )
        if dtype == torch.bfloat16:
            remedy = "use engine.precision=fp32"
        raise InputError(
            f"the model's output for sample {names[0]}{more} is not finite in {kind}; {remedy}; nothing of it is kept"
        ) from None


def load_language(config: Config, device: str, partition: Partition | None = None) -> LanguageHalf:
    """The language half as the configuration asks for it.

    Args:
        config: Run configuration; `vlm` and `engine.precision` matter.
        device: `cpu` or `cuda`.
        partition: Divides it over the ranks while it is loaded.
    """
    vlm, dtype = config.vlm, torch_dtype(config.engine.precision)
    return load_language_half(vlm.path, dtype, device, vlm.attention, partition, vlm.quantization)


class Scorer(Protocol):
    """Whatever answers questions about images."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Score a batch of any size; returns one score per request."""


class TargetScorer(Scorer):
    """A VLM's language half with aspect modules and soft prompt.

    Args:
        config: Run configuration; `vlm`, `engine`, `evaluate` and `aspects` matter.
        trained: What was trained; its soft prompt decides the layout.
        questions: Questions; the first template of the target is asked.
        categories: Categories in the order of the scores.
        device: `cpu` or `cuda`.
        question: Another wording of the question about the target.
        language: The VLM's language half on that device; None loads it.
        prompt: The VLM's chat template; None loads it.
    """

    def __init__(
        self,
        config: Config,
        trained: Trained,
        questions: Questions,
        categories: Sequence[str],
        device: str,
        question: str | None = None,
        language: LanguageHalf | None = None,
        prompt: Prompt | None = None,
    ):
        self.config, self.categories, self.layout = config, tuple(categories), trained.layout
        self.vision_features = trained.vision_features
        self.device, self.dtype = device, torch_dtype(config.engine.precision)
        self.prompt = prompt or load_prompt(config.vlm.path)
        self.question = question or questions.target_first(self.categories)
        language = language or load_language(config, device)
        modules = None if trained.aspects is None else trained.aspects.to(device, self.dtype)
        soft_prompt = None if trained.soft_prompt is None else trained.soft_prompt.to(device, self.dtype)
        self.num_soft_tokens = 0 if soft_prompt is None else len(soft_prompt.weight)
        self.aspects = () if modules is None else modules.aspects
        self.num_queries = 0 if modules is None else modules.num_queries
        rows = num_logits(self.layout, self.prompt, language.vocab_size, self.num_soft_tokens)
        self.model = Stage2Model(language, modules, soft_prompt, rows).eval()
        self.candidates = [self.prompt.answer(category) for category in self.categories]

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        # nothing is trained here, so no prefix needs to be kept apart
        batch = self.batch(requests, frozen_prefix=False)
        with finite_for([request.name for request in requests], self.dtype):
            return self._scores(batch)

    def batch(self, requests: Sequence[ScoreRequest], frozen_prefix: bool) -> Batch:
        """The prompts of some requests, up to the answer, on the device.

        Args:
            requests: Questions about images.
            frozen_prefix: Whether what comes before the soft prompt runs apart; then all rows are equally long behind
                it, and no part of the image is left out.
        """
        kept = [[aspect not in request.without for aspect in self.aspects] for request in requests]
        sequences = [self.sequence(request, sum(row)) for request, row in zip(requests, kept, strict=True)]
        # an image that is asked about several times is there once
        images = {id(request.features): request for request in requests}
        places = {image: place for place, image in enumerate(images)}
        tokens = [request.aspect_tokens for request in images.values() if request.aspect_tokens is not None]
        return make_batch(
            self.prompt,
            sequences,
            [request.features for request in images.values()],
            row_image=[places[id(request.features)] for request in requests],
            row_kept=None if all(map(all, kept)) else kept,
            frozen_prefix=frozen_prefix,
            goes_on=not frozen_prefix,
            aspect_tokens=tokens or None,
        ).to(self.device, self.dtype)

    def sequence(self, request: ScoreRequest, num_aspects: int) -> PromptSequence:
        """The prompt of a request, up to the answer, with the tokens of some aspects."""
        return build_sequence(
            self.prompt,
            self.question,
            None,
            num_aspect_tokens=num_aspects * self.num_queries,
            image=request.layout if self.vision_features and VISION_FEATURES not in request.without else None,
            num_soft_tokens=self.num_soft_tokens,
            layout=self.layout,
        )

    def _scores(self, batch: Batch) -> list[Score]:
        if self.config.evaluate.scoring == "generate":
            lines = _generated(self.model, batch, self.config.evaluate.max_new_tokens, self.prompt)
            named = {normalize_category(category): category for category in self.categories}
            return [Score(named.get(line), None, None, text) for line, text in lines]
        return _likeliest(self.model, batch, self.categories, self.candidates, self.prompt, self.layout)

    @torch.inference_mode()
    def aspect_tokens(self, requests: Sequence[ScoreRequest]) -> Tensor:
        """The aspect tokens of images, `[I, A, N, D]`, as the prompt has them."""
        padded, mask = pad_features([request.features.tokens for request in requests])
        modules = self.model.aspect_modules
        assert modules is not None, "there are no aspect modules"
        tokens = modules(padded.to(self.device, self.dtype), mask.to(self.device))
        with finite_for([request.name for request in requests], self.dtype):
            check_finite(tokens)
        return tokens

    @torch.inference_mode()
    def attention(self, requests: Sequence[ScoreRequest]) -> list[np.ndarray]:
        """Where the aspects look, each a mean over its queries.

        Returns:
            Per image `[A, height, width]` over its vision tokens, fp32; every map sums to one.

        Raises:
            InputError: The tokens of an image form no grid that is known.
        """
        padded, mask = pad_features([request.features.tokens for request in requests])
        modules = self.model.aspect_modules
        assert modules is not None, "there are no aspect modules to look with"
        found = modules.attention(padded.to(self.device, self.dtype), mask.to(self.device))
        weights = torch.stack([w.float().mean(1) for w in found.values()], dim=1).cpu().numpy()
        with finite_for([request.name for request in requests], self.dtype):
            check_finite(torch.from_numpy(weights))
        found_maps = []
        for maps, request in zip(weights, requests, strict=True):
            grid = self._token_grid(request.layout)
            if grid is None:
                raise InputError(f"{request.name}: {NO_TOKEN_GRID}")
            found_maps.append(maps[:, : request.layout.num_tokens].reshape(len(modules.aspects), *grid))
        return found_maps

    @functools.cached_property
    def _token_grid(self) -> Callable[[ImageLayout], tuple[int, int] | None]:
        return load_token_grid(self.config.vlm, "evaluate.attention = true")


@dataclass
class _OverTokens:
    """The language half over aspect tokens that are there already, in the form that scoring takes."""

    language: LanguageHalf
    tokens: Tensor
    """`[I, A, N, D]`."""
    num_logits: int | None = None

    def hidden(self, batch: Batch, cache=None) -> Tensor:
        return run(self.language, batch, self.tokens, None, cache)


class AspectScorer(Scorer):
    """A VLM's language half with aspect modules.

    Args:
        config: Run configuration; `vlm`, `engine` and `aspects` matter.
        modules: Aspect modules in the order of `config.aspects`.
        layout: Layout that they were trained in; decides whether the end token counts.
        questions: Questions; the first template of each aspect is asked.
        closed: Aspect -> answers whose likelihoods are compared.
        longest: Aspect -> number of tokens of its longest answer; the others may be written no longer.
        device: `cpu` or `cuda`.
        language: The VLM's language half on that device; None loads it.
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
        language: LanguageHalf | None = None,
    ):
        self.aspects, self.layout, self.closed = list(config.aspects), layout, closed
        self.device, self.dtype = device, torch_dtype(config.engine.precision)
        self.prompt = load_prompt(config.vlm.path)
        self.language = language or load_language(config, device)
        self.modules = modules.to(device, self.dtype).eval()
        self.questions = {aspect: questions.aspect_first(aspect) for aspect in self.aspects}
        # and the end token
        self.max_new_tokens = {aspect: count + 1 for aspect, count in longest.items()}

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        found: dict[int, Score] = {}
        for aspect in self.aspects:
            places = [place for place, request in enumerate(requests) if request.aspect == aspect]
            if places:
                asked = [requests[place] for place in places]
                with finite_for([request.name for request in asked], self.dtype):
                    scores = self._score([request.features for request in asked], aspect)
                found |= dict(zip(places, scores, strict=True))
        return [found[place] for place in range(len(requests))]

    @torch.inference_mode()
    def answers(self, requests: Sequence[ScoreRequest], aspect: str) -> list[Score]:
        """The answer to an aspect of each image, as `score` gives it; a written one has one score: the log-likelihood
        of its tokens."""
        with finite_for([request.name for request in requests], self.dtype):
            model, batch = self._asked([request.features for request in requests], aspect)
            if aspect in self.closed:
                return self._compared(model, batch, aspect)
            probabilities: list[list[float]] = []
            lines = _generated(model, batch, self.max_new_tokens[aspect], self.prompt, probabilities)
        sums = [math.fsum(map(math.log, of_tokens)) for of_tokens in probabilities]
        return [Score(line, (total,), None, text) for (line, text), total in zip(lines, sums, strict=True)]

    def _score(self, features: Sequence[Features], aspect: str) -> list[Score]:
        model, batch = self._asked(features, aspect)
        if aspect not in self.closed:
            lines = _generated(model, batch, self.max_new_tokens[aspect], self.prompt)
            return [Score(line, None, None, text) for line, text in lines]
        return self._compared(model, batch, aspect)

    def _compared(self, model: _OverTokens, batch: Batch, aspect: str) -> list[Score]:
        answers = self.closed[aspect]
        return _likeliest(model, batch, answers, [self.prompt.answer(a) for a in answers], self.prompt, self.layout)

    def _asked(self, features: Sequence[Features], aspect: str) -> tuple[_OverTokens, Batch]:
        """The question about an aspect of some images, behind the tokens of its module."""
        sequence = build_sequence(
            self.prompt, self.questions[aspect], None,
            num_aspect_tokens=self.modules.num_queries, image=None, num_soft_tokens=0, layout=self.layout,
        )  # fmt: skip
        count = len(features)
        batch = make_batch(
            self.prompt,
            [sequence] * count,
            features,
            row_image=range(count),
            row_aspect=[self.aspects.index(aspect)] * count,
            goes_on=True,
        ).to(self.device, self.dtype)
        return _OverTokens(self.language, self.modules(batch.features, batch.feature_mask)), batch


def _likeliest(
    model: Scored, batch: Batch, choices: Sequence[str], ids: Sequence[Sequence[int]], prompt: Prompt, layout: str
) -> list[Score]:
    """Compare the likelihoods of all choices in one pass."""
    return chosen(choices, *score_categories(model, batch, ids, None if layout == "released" else prompt.end))


def chosen(choices: Sequence[str], sums: Tensor, means: Tensor) -> list[Score]:
    """The likeliest of some choices, from their log-likelihoods and those per token, `[B, C]` each."""
    # argmax takes the first of equals: ties go to the order of the choices
    best = sums.argmax(dim=1).tolist()
    return [
        Score(choices[b], tuple(s.tolist()), tuple(m.tolist()), None) for b, s, m in zip(best, sums, means, strict=True)
    ]


def _generated(
    model: Scored,
    batch: Batch,
    max_new_tokens: int,
    prompt: Prompt,
    probabilities: list[list[float]] | None = None,
) -> list[tuple[str, str]]:
    """Let the model write: the answer that counts, and the whole text; see `generate` for `probabilities`."""
    rows, _ = generate(model, batch, max_new_tokens, prompt.stop, probabilities)
    texts = [prompt.decode(ids) for ids in rows]
    return [(written_answer(text), text) for text in texts]


def written_answer(text: str) -> str:
    """The answer in a generated text: its first line, in the form in which categories and answers are compared."""
    return normalize_category(text.split("\n")[0])
