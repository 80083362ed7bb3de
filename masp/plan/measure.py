"""The rates of this machine: the real encoder and the real training steps on a few of the run's own images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from masp.cache.reader import CachedSample
from masp.config import Config
from masp.config.schema import StageName
from masp.data.images import UnreadableImage, load_image
from masp.data.questions import questions_of
from masp.errors import InputError
from masp.plan.rates import Rate, Rates
from masp.plan.tokens import PlannedImage, PlannedImages, Words
from masp.plan.work import StageWork, extraction_flops, stage1_work, stage2_work
from masp.runtime.devices import encoder_dtype, pick_device, torch_dtype
from masp.training.stages import STAGES
from masp.training.steps import Steps
from masp.vlm.cost.flops import Encoder, Language
from masp.vlm.families import load_config, num_deep_maps, resolve_directory
from masp.vlm.features import Features
from masp.vlm.language import LanguageHalf, load_language_half
from masp.vlm.preprocessor import load_preprocessor
from masp.vlm.prompt import load_prompt
from masp.vlm.vision import load_vision_half

WorkOf = Callable[[Config, Language, Words, Sequence[PlannedImage]], StageWork]
_MIN_SECONDS = 1.0
"""A measurement repeats until it has taken this long."""


def measure_rates(
    config: Config,
    vision: Encoder,
    language: Language,
    words: Words,
    train: PlannedImages,
    num_images: int,
    fallback: Rates,
    categories: Sequence[str],
) -> Rates:
    """Time encoder and training on a few images; loads the weights.

    Reading, decoding and the optimizer are left out: on a machine that is set up well they overlap or are small.

    Args:
        config: Run configuration.
        vision: Sizes of the encoder.
        language: Sizes of the language model.
        words: Numbers of text tokens.
        train: Training images.
        num_images: How many of them to take, from the smallest to the largest.
        fallback: Rates of a stage that has nothing to train on.
        categories: Categories of the dataset.

    Raises:
        InputError: Weights or tokenizer are missing, or no image can be read.
    """
    encoder = _encoder_rate(config, vision, _spread(train, num_images))
    language_half = load_language_half(
        config.vlm.path, torch_dtype(config.engine.precision), pick_device(config.engine.device, "engine.device"),
        config.vlm.attention, quantization=config.vlm.quantization,
    )  # fmt: skip
    rates = {"extract": encoder, "stage1": fallback.stage1, "stage2": fallback.stage2}
    stages: tuple[tuple[StageName, PlannedImages, WorkOf], ...] = (
        ("stage1", train.with_answers(config.aspects), stage1_work),
        ("stage2", train.labeled(), stage2_work),
    )
    for stage, images, work_of in stages:
        chosen = _spread(images, num_images)
        if chosen:
            seconds = _stage_seconds(config, stage, language_half, chosen, categories)
            flops = work_of(config, language, words, chosen).flops_per_epoch
            rates[stage] = Rate(flops / seconds, "FLOP", f"measured here on {len(chosen)} images")
    return Rates(**rates)


def _spread(images: PlannedImages, count: int) -> list[PlannedImage]:
    """Choose images that are evenly spread over all sizes."""
    ordered = np.argsort(images.num_tokens, kind="stable")  # equal ones stay in the order of their keys
    count = min(count, len(ordered))
    places = sorted({round(i * (len(ordered) - 1) / max(1, count - 1)) for i in range(count)})
    return [images[int(ordered[place])] for place in places]


def _encoder_rate(config: Config, vision: Encoder, images: Sequence[PlannedImage]) -> Rate:
    device = pick_device(config.extract.device, "extract.device")
    preprocessor = load_preprocessor(config.vlm.path, config.vlm.min_pixels, config.vlm.max_pixels)
    dtype = torch_dtype(encoder_dtype(config.cache.dtype, device))
    half = load_vision_half(config.vlm.path, dtype, device, config.vlm.attention)
    ready = []
    for planned in images:
        try:
            image, vlm = planned.sample.image, config.vlm
            ready.append((planned, *preprocessor(load_image(image, vlm.max_side, transparency=vlm.transparency))))
        except (UnreadableImage, OSError):
            continue  # its header was whole, the rest is not: extraction would put it in quarantine
    if not ready:
        raise InputError("--measure: none of the images that were tried can be read; give it more of them")

    def encode() -> None:
        for _, inputs, layout in ready:
            half.encode([inputs], [layout])

    flops = extraction_flops(vision, [planned for planned, _, _ in ready])
    return Rate(flops / _seconds(encode, device), "FLOP", f"measured here on {len(ready)} images ({device})")


def _stage_seconds(
    config: Config, name: StageName, language: LanguageHalf, images: Sequence[PlannedImage], categories: Sequence[str]
) -> float:
    """Measure forward and backward passes of one epoch over these images, cut into batches as training does."""
    device, dtype = pick_device(config.engine.device, "engine.device"), language.dtype
    num_deep = num_deep_maps(load_config(resolve_directory(config.vlm.path)))
    cache = _StandIn(images, language.hidden_size, num_deep, categories)
    config = replace(config, **{name: replace(getattr(config, name), validate_every=None)})  # steps only
    config = replace(config, stage1=replace(config.stage1, restarts=1))  # others take as long
    stage, prompt = STAGES[name](config, cache, questions_of(config)), load_prompt(config.vlm.path)
    steps = Steps(stage, prompt)
    batches = [batch for k in range(steps.schedule.steps_per_epoch) for batch in steps[k].batches]
    stage.draw_inputs(language.hidden_size)
    model = stage.around(language, prompt, device)
    for module in model.children():
        if module is not language:
            module.to(dtype)

    def run() -> None:
        for batch in batches:
            model(batch.to(device, dtype)).sum().backward()

    return _seconds(run, device)


def _seconds(function: Callable[[], None], device: str) -> float:
    """Measure the mean seconds of a call, after a first one that warms up."""
    function()
    count, start = 0, _now(device)
    while count == 0 or _now(device) - start < _MIN_SECONDS:
        function()
        count += 1
    return (_now(device) - start) / count


def _now(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()  # kernels run on after their call has returned
    return time.perf_counter()


@dataclass(frozen=True)
class _StandInIndex:
    num_tokens: np.ndarray
    shard: np.ndarray
    keys: list[str]


class _StandIn:
    """A cache of random features for these images, with what training steps read of a cache."""

    def __init__(self, images: Sequence[PlannedImage], hidden_size: int, num_deep: int, categories: Sequence[str]):
        self.images, self.hidden_size, self.num_deep, self.splits = images, hidden_size, num_deep, ("train",)
        self.categories, self.labels, self.subset = tuple(categories), None, None
        tokens = np.array([p.num_tokens for p in images])
        self.index = _StandInIndex(tokens, np.zeros(len(images), dtype=np.int32), [p.sample.key for p in images])

    def rows(self, split: str) -> np.ndarray:
        return np.arange(len(self.images))

    def has_answer(self, rows: np.ndarray, aspect: str) -> np.ndarray:
        return np.array([aspect in self.images[row].sample.answers for row in rows], dtype=bool)

    def has_distribution(self, rows: np.ndarray) -> np.ndarray:
        return np.array([self.images[row].sample.distribution is not None for row in rows], dtype=bool)

    def read(self, row: int, dtype: torch.dtype | None = None, *, epoch: int | None = None) -> CachedSample:
        planned = self.images[row]
        sample, shape = planned.sample, (planned.num_tokens, self.hidden_size)
        deep = torch.randn(self.num_deep, *shape, dtype=dtype) if self.num_deep else None
        return CachedSample(
            sample.key, sample.split, sample.category, dict(sample.answers),
            Features(torch.randn(shape, dtype=dtype), deep),
            planned.layout, planned.size, sample.distribution,
        )  # fmt: skip
