"""Compare with outputs of the published implementation, going through the cache as any run does.

A case is a directory with `images/*.png`, `aspect.pth`, `soft_prompt.pt` and `golden.json`; see `Golden`.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from masp.artifacts.store import load_aspects, load_soft_prompt
from masp.cache.reader import Cache, CachedSample, open_cache
from masp.config import Config, load_config
from masp.data.keys import sample_key
from masp.errors import InputError
from masp.extraction.job import extract
from masp.files.regular import is_directory
from masp.files.text import shown
from masp.files.typed import Json, read
from masp.models.forward import Stage1Model, Stage2Model, num_logits
from masp.models.generation import generate
from masp.models.sequence import Batch, build_sequence, make_batch
from masp.vlm.language import load_language_half
from masp.vlm.prompt import load_prompt

LAYOUT = "released"
TOLERANCES = {
    "stage1_loss": 2e-4,
    "stage2_loss": 2e-4,
    "soft_prompt_grad_norm": 1e-3,
    "soft_prompt_grad_row_norms": 1e-3,
    "first_logits": 2e-4,
}
"""Largest differences: absolute for losses and logits, relative for gradient norms."""
MAX_SIDE = 1024
"""The published implementation first brings the longer side of an image to at most this many pixels."""


Positive = Annotated[float, Field(gt=0)]
TokenId = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class GoldenStage1:
    """A stage-1 sample of the published implementation."""

    image: str
    """Name of a file in `images`."""
    aspect: str
    question: str
    answer: str
    loss: float


@dataclass(frozen=True)
class GoldenStage2:
    """A stage-2 sample of the published implementation."""

    image: str
    question: str
    answer: str
    loss: float
    soft_prompt_grad_norm: Positive
    soft_prompt_grad_row_norms: tuple[Positive, ...]


@dataclass(frozen=True)
class GoldenAnswer:
    """An image that the published implementation evaluated."""

    image: str
    question: str
    generated_ids: tuple[TokenId, ...]
    first_logits_top10: tuple[tuple[TokenId, float], ...]
    """Token and logit."""
    generated_text: str | None = None


@dataclass(frozen=True)
class Golden:
    """What `golden.json` holds."""

    stage1: tuple[GoldenStage1, ...]
    stage2: tuple[GoldenStage2, ...]
    evaluate: tuple[GoldenAnswer, ...]
    note: dict[str, Json]
    """How the case was made; `aspects` are the aspects in order."""

    def __post_init__(self) -> None:
        aspects = self.note.get("aspects")
        if not isinstance(aspects, list) or not all(isinstance(aspect, str) for aspect in aspects):
            raise ValueError("must have a list of aspects as note.aspects")
        if unknown := sorted({entry.aspect for entry in self.stage1} - set(self.aspects)):
            raise ValueError(f"must ask for aspects of note.aspects in stage1, not for {shown(unknown[0])}")

    @property
    def aspects(self) -> list[str]:
        """Aspects in order."""
        aspects = self.note["aspects"]
        return [str(aspect) for aspect in aspects] if isinstance(aspects, list) else []


@dataclass
class ParityResult:
    """The largest differences from the published outputs; `TOLERANCES` says which are small enough."""

    stage1_loss: float = 0.0
    stage2_loss: float = 0.0
    soft_prompt_grad_norm: float = 0.0
    soft_prompt_grad_row_norms: float = 0.0
    first_logits: float = 0.0
    generated_ids_equal: bool = True
    num_stage1: int = 0
    num_stage2: int = 0
    num_evaluate: int = 0
    passed: bool = False

    def note(self, name: str, difference: float) -> None:
        """Take in a difference; not `max()`: a NaN must not pass unseen."""
        if not difference <= getattr(self, name):
            setattr(self, name, difference)


def compare(case: Path, vlm: str) -> ParityResult:
    """Recompute a case and report the largest differences.

    Args:
        case: Directory of the case.
        vlm: Directory of the VLM that it was made with.

    Raises:
        InputError: the case lacks a file, or does not fit the VLM.
    """
    golden = read(Golden, case / "golden.json", key="--case", error=InputError)
    if golden is None:
        raise InputError(f"--case: {case}/golden.json does not exist")
    if not is_directory(case / "images"):
        raise InputError(f"--case: {case} has no directory images")
    with tempfile.TemporaryDirectory() as directory:
        config = _config(case, vlm, Path(directory))
        return _Comparison(case, vlm, golden, open_cache(extract(config))).run()


def _config(case: Path, vlm: str, directory: Path) -> Config:
    """A dataset of the case's images (whose category plays no part), and a cache beside it."""
    images = directory / "data" / "test" / "none"
    shutil.copytree(case / "images", images)
    return load_config(
        None,
        [
            f"vlm.path={vlm}",
            f"vlm.max_side={MAX_SIDE}",
            "vlm.transparency=drop",
            f"dataset.root={directory / 'data'}",
            "dataset.name=folder",
            f"cache.dir={directory / 'cache'}",
            "cache.dtype=fp32",
            "cache.num_shards=1",
            "extract.num_workers=0",
            "extract.device=cpu",
            "extract.max_bad_fraction=0",
        ],
    )


class _Comparison:
    def __init__(self, case: Path, vlm: str, golden: Golden, cache: Cache):
        self.golden, self.aspects = golden, golden.aspects
        self.language, self.prompt = load_language_half(vlm), load_prompt(vlm)
        hidden = self.language.hidden_size
        self.modules, _ = load_aspects(str(case / "aspect.pth"), self.aspects, hidden)
        self.soft_prompt, _ = load_soft_prompt(str(case / "soft_prompt.pt"), hidden)
        self.num_soft = len(self.soft_prompt.weight)
        samples = [cache.read(row) for row in range(len(cache))]
        self.samples = {s.key: s for s in samples}
        self.result = ParityResult(
            num_stage1=len(golden.stage1), num_stage2=len(golden.stage2), num_evaluate=len(golden.evaluate)
        )

    def run(self) -> ParityResult:
        rows = num_logits(LAYOUT, self.prompt, self.language.vocab_size, self.num_soft)
        stage1 = Stage1Model(self.language, self.modules)
        for entry in self.golden.stage1:
            self._stage1(stage1, entry)
        stage2 = Stage2Model(self.language, self.modules, self.soft_prompt, rows)
        for sample in self.golden.stage2:
            self._stage2(stage2, sample)
        named = [token for answer in self.golden.evaluate for token, _ in answer.first_logits_top10]
        if max(named, default=0) >= self.language.vocab_size:
            raise InputError(f"--case: golden.json names token {max(named)}, which the VLM does not have")
        if rows is not None and max(named, default=0) >= rows:  # that case was evaluated with the whole vocabulary
            stage2.num_logits = None
        answers = [self._evaluate(stage2, answer) for answer in self.golden.evaluate]
        self.result.generated_ids_equal = all(answers)
        self.result.passed = self.result.generated_ids_equal and all(
            getattr(self.result, name) < bound for name, bound in TOLERANCES.items()
        )
        return self.result

    def _sample(self, image: str) -> CachedSample:
        key = sample_key("test", f"none/{image}")
        if key not in self.samples:
            raise InputError(f"--case: golden.json names image {shown(image)}, which the case does not hold")
        return self.samples[key]

    def _batch(self, image: str, question: str, answer: str | None, aspect: str | None = None) -> Batch:
        sample = self._sample(image)
        tokens = self.modules.num_queries
        sequence = build_sequence(
            self.prompt,
            question,
            answer,
            num_aspect_tokens=tokens if aspect else tokens * len(self.aspects),
            image=None if aspect else sample.layout,
            num_soft_tokens=0 if aspect else self.num_soft,
            layout=LAYOUT,
        )
        asked = [self.aspects.index(aspect)] if aspect else None
        return make_batch(self.prompt, [sequence], [sample.features], row_image=[0], row_aspect=asked)

    @torch.no_grad()
    def _stage1(self, model: Stage1Model, entry: GoldenStage1) -> None:
        loss = model(self._batch(entry.image, entry.question, entry.answer, entry.aspect)).item()
        self.result.note("stage1_loss", abs(loss - entry.loss))

    def _stage2(self, model: Stage2Model, entry: GoldenStage2) -> None:
        if len(entry.soft_prompt_grad_row_norms) != self.num_soft:
            raise InputError(
                f"--case: golden.json has {len(entry.soft_prompt_grad_row_norms)} soft_prompt_grad_row_norms for "
                f"{shown(entry.image)}; soft_prompt.pt has {self.num_soft} rows"
            )
        self.soft_prompt.zero_grad()
        (loss,) = model(self._batch(entry.image, entry.question, entry.answer))
        loss.backward()
        assert self.soft_prompt.weight.grad is not None  # backward has set it
        gradient = self.soft_prompt.weight.grad.double()
        self.result.note("stage2_loss", abs(loss.item() - entry.loss))
        self.result.note("soft_prompt_grad_norm", _relative(gradient.norm().item(), entry.soft_prompt_grad_norm))
        for ours, theirs in zip(gradient.norm(dim=1).tolist(), entry.soft_prompt_grad_row_norms, strict=True):
            self.result.note("soft_prompt_grad_row_norms", _relative(ours, theirs))

    def _evaluate(self, model: Stage2Model, entry: GoldenAnswer) -> bool:
        batch = self._batch(entry.image, entry.question, None)
        (ids,), logits = generate(model, batch, max(1, len(entry.generated_ids)), self.prompt.stop)
        for token, value in entry.first_logits_top10:
            self.result.note("first_logits", abs(logits[0, token].item() - value))
        return ids == list(entry.generated_ids)


def _relative(ours: float, theirs: float) -> float:
    return abs(ours - theirs) / abs(theirs)
