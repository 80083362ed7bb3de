"""What each number format of the cache costs, measured on a sample: features, scores, predictions, bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from masp.artifacts.trained import NONE, Trained, default_aspect_path, default_soft_prompt_path, load_trained
from masp.cache.codec import TORCH_NAMES, encode_features, is_finite, restore, store
from masp.cache.fingerprint import model_part
from masp.cache.manifest import quarantined_keys
from masp.config import Config
from masp.config.feature_source import cache_directory
from masp.data.datasets import dataset_of
from masp.data.keys import in_order_of_digests
from masp.data.questions import questions_of
from masp.data.sample import Sample
from masp.data.target.find_labels import label_dataset
from masp.errors import DataError, InputError
from masp.evaluation.feed import no_image
from masp.evaluation.scorers import Score, ScoreRequest, TargetScorer
from masp.extraction.image_stream import ImageDataset, PreparedImage, batches, image_stream
from masp.files.text import shortened, shown
from masp.runtime.devices import encoder_dtype, pick_device, torch_dtype
from masp.runtime.log import show
from masp.vlm.features import Features
from masp.vlm.preprocessor import load_preprocessor
from masp.vlm.vision import VisionHalf, load_vision_half

REFERENCE = "fp32"


@dataclass
class _Tally:
    """Sums over the sample, for one format."""

    num_bytes: int = 0
    cosine_sum: float = 0.0
    cosine_min: float = 1.0
    error: float = 0.0
    """Of all values, the squared differences."""
    deep_error: float = 0.0
    """Of all values of the deep maps."""
    num_not_finite: int = 0
    changes: list[float] = field(default_factory=list)
    """Per image the largest change of a category's score, in nats."""
    num_changed: int = 0
    num_correct: int = 0


@dataclass(frozen=True)
class FormatCost:
    """What one number format costs."""

    encoder_dtype: str
    """Precision that the encoder runs in for it."""
    bytes_per_image: float
    size_of_bf16: float
    """Bytes as a share of those of bf16."""
    cosine_mean: float
    """Over tokens, with the reference."""
    cosine_min: float
    relative_error: float
    deep_relative_error: float | None
    """Of the deep maps; None if the VLM has none."""
    score_change_mean: float
    """Over images, of the largest change of a category's score, nats."""
    score_change_max: float
    num_changed: int
    """Predictions that change."""
    changed_fraction: float
    accuracy: float
    num_not_finite: int
    """Images that the format cannot hold; they count as changed."""


@dataclass(frozen=True)
class Measurement:
    """What the number formats of the cache cost on a sample."""

    num_images: int
    num_tokens: int
    hidden_size: int
    split: str
    scored_with: str
    """What was trained, in words."""
    accuracy: float
    """Of the reference."""
    formats: dict[str, FormatCost]


def measure(config: Config, dtypes: Sequence[str], num_images: int) -> Measurement:
    """Encode a sample in every format and score it.

    The sample is drawn from `evaluate.split` by a hash of the keys. Scores are those of `masp evaluate`, with the
    aspect modules and the soft prompt of the run where there are any.

    Args:
        config: Run configuration.
        dtypes: Values of `cache.dtype`.
        num_images: Number of images, at most.

    Raises:
        InputError: unknown formats, no images, or what was trained does not fit. DataError: the disk does not answer.
    """
    check_options("--dtype", dtypes, tuple(TORCH_NAMES), num_images)
    categories, samples = _sample(config, num_images)
    device = pick_device(config.extract.device, "extract.device")
    torch.set_num_threads(config.extract.num_threads)
    encoders = {
        name: load_vision_half(config.vlm.path, torch_dtype(name), device, config.vlm.attention)
        for name in {REFERENCE, *(encoder_dtype(d, device) for d in dtypes)}
    }
    config = with_what_is_there(config)
    trained = load_trained(config, encoders[REFERENCE].hidden_size, model_part(config))
    config = replace(config, evaluate=replace(config.evaluate, scoring="likelihood"))
    scorer_device = pick_device(config.engine.device, "engine.device")
    scorer = TargetScorer(config, trained, questions_of(config), categories, scorer_device)
    tallies = {dtype: _Tally() for dtype in dtypes}
    count, tokens, norm, deep_norm, correct, size = 0, 0, 0.0, 0.0, 0, 0
    for images, labels in _chunks(config, samples):
        layouts = [p.layout for p in images]
        made = {name: _encode(config, encoder, images) for name, encoder in encoders.items()}
        exact = [f.moved(lambda tensor: tensor.float().cpu()) for f in made[REFERENCE]]
        wanted = scorer.score([ScoreRequest(f, layout) for f, layout in zip(exact, layouts, strict=True)])
        count, tokens = count + len(exact), tokens + sum(len(f.tokens) for f in exact)
        norm += sum(_squares(f.tokens) for f in exact)
        deep_norm += sum(_squares(f.deep) for f in exact if f.deep is not None)
        correct += sum(w.prediction == label for w, label in zip(wanted, labels, strict=True))
        size += sum(len(encode_features(store(f, "bf16"))) for f in exact)
        for dtype, tally in tallies.items():
            kept = [_kept(f, dtype, tally) for f in made[encoder_dtype(dtype, device)]]
            good = {i: f for i, f in enumerate(kept) if f is not None}
            scores = scorer.score([ScoreRequest(f, layouts[i]) for i, f in good.items()]) if good else []
            for (i, features), score in zip(good.items(), scores, strict=True):
                _compare(tally, exact[i], features, wanted[i], score, labels[i])
    if not count:
        raise InputError(f"evaluate.split = {shown(config.evaluate.split)}: none of its images can be read")
    return Measurement(
        num_images=count,
        num_tokens=tokens,
        hidden_size=encoders[REFERENCE].hidden_size,
        split=config.evaluate.split,
        scored_with=in_words(trained),
        accuracy=correct / count,
        formats={
            dtype: _cost(tally, encoder_dtype(dtype, device), count, tokens, (norm, deep_norm), size)
            for dtype, tally in tallies.items()
        },
    )


def report(config: Config, dtypes: Sequence[str] | None, num_images: int, as_json: bool = False) -> Measurement:
    """Measure and print; `dtypes` None for all formats."""
    result = measure(config, list(dtypes or TORCH_NAMES), num_images)
    show(*(json.dumps(asdict(result)) if as_json else table(result)).split("\n"))
    return result


def table(result: Measurement) -> str:
    """The result of `measure` as text."""
    lines = [
        f"{result.num_images:,} images of {result.split}, {result.num_tokens:,} tokens of "
        f"{result.hidden_size}, scored with {result.scored_with}.",
        f"Compared with the encoder in {REFERENCE}, nothing rounded: accuracy {result.accuracy:.2%}.",
        "",
        f"{'format':<7}{'encoder':<9}{'kB/image':>9}{'of bf16':>9}{'cosine':>10}{'lowest':>10}{'error':>9}"
        f"{'score change':>14}{'largest':>9}{'predictions changed':>21}{'accuracy':>10}",
    ]
    for name, row in result.formats.items():
        changed = f"{row.num_changed} ({row.changed_fraction:.2%})"
        lines.append(
            f"{name:<7}{row.encoder_dtype:<9}{row.bytes_per_image / 1e3:>9.1f}{row.size_of_bf16:>9.3f}"
            f"{row.cosine_mean:>10.6f}{row.cosine_min:>10.6f}{row.relative_error:>9.2%}"
            f"{row.score_change_mean:>14.4f}{row.score_change_max:>9.4f}{changed:>21}{row.accuracy:>10.2%}"
        )
        if row.deep_relative_error is not None:
            lines.append(f"       error of the deep maps {row.deep_relative_error:.2%}")
        if row.num_not_finite:
            lines.append(f"       {row.num_not_finite} images have values that {name} cannot hold")
    return "\n".join(lines)


def _sample(config: Config, num_images: int) -> tuple[tuple[str, ...], list[Sample]]:
    dataset = dataset_of(config)
    broken = quarantined_keys(cache_directory(config))
    good = np.array([key not in broken for key in dataset.samples.keys], dtype=bool)
    dataset, _ = label_dataset(config, replace(dataset, samples=dataset.samples[good]))
    by_key = {s.key: s for s in dataset.samples if s.split == config.evaluate.split and s.category}
    if not by_key:
        raise InputError(no_image(config, str(dataset.root)))
    return dataset.categories, [by_key[key] for key in in_order_of_digests(by_key)[:num_images]]


def check_options(option: str, values: Sequence[str], valid: Sequence[str], num_images: int) -> None:
    """Refuse options of a measurement on a sample of images.

    Args:
        option: Option that says what is measured.
        values: What was given to it.
        valid: What may be.
        num_images: What was given to `--num-images`.

    Raises:
        InputError: An unknown value, or no images.
    """
    if unknown := [value for value in values if value not in valid]:
        raise InputError(f"{option} {shortened(unknown[0])}: must be one of {', '.join(valid)}")
    if num_images < 1:
        raise InputError(f"--num-images {num_images}: must be at least 1")


def with_what_is_there(config: Config) -> Config:
    """The configuration for scoring with what this run has trained so far, or nothing: a part is done without."""
    checkpoint = config.checkpoint
    if checkpoint.aspect is None and not default_aspect_path(config).is_file():
        checkpoint = replace(checkpoint, aspect=NONE)
    if checkpoint.soft_prompt is None and not default_soft_prompt_path(config).is_file():
        checkpoint = replace(checkpoint, soft_prompt=NONE)
    return replace(config, checkpoint=checkpoint)


def in_words(trained: Trained) -> str:
    """What was trained."""
    parts = [n for n, p in (("aspect modules", trained.aspects), ("soft prompt", trained.soft_prompt)) if p is not None]
    return " and ".join(parts) or "nothing trained (zero-shot)"


def _chunks(config: Config, samples: Sequence[Sample]) -> Iterator[tuple[list[PreparedImage], list[str]]]:
    """Readable images and their labels, `evaluate.batch_size` at a time."""
    preprocessor = load_preprocessor(config.vlm.path, config.vlm.min_pixels, config.vlm.max_pixels)
    images = ImageDataset(samples, preprocessor, config.vlm)
    device = pick_device(config.extract.device, "extract.device")
    with image_stream(images, config.extract.num_workers, "extract.num_workers", device) as stream:
        for start in range(0, len(samples), config.evaluate.batch_size):
            part = samples[start : start + config.evaluate.batch_size]
            pairs = [(next(stream), sample.category) for sample in part]
            if failed := next((p.failure for p, _ in pairs if p.failure), None):
                raise DataError(f"{failed}; run the same command again when it can be read")
            if good := [(p, label) for p, label in pairs if not p.reason]:
                yield [p for p, _ in good], [label for _, label in good]


def _encode(config: Config, encoder: VisionHalf, images: Sequence[PreparedImage]) -> list[Features]:
    return [
        features
        for batch in batches(images, config.extract.batch_tokens)
        for features in encoder.encode([p.inputs for p in batch], [p.layout for p in batch])
    ]


def _squares(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def _kept(features: Features, dtype: str, tally: _Tally) -> Features | None:
    """Features as the cache would give them back, on the CPU; None if the format cannot hold them."""
    if not is_finite(features):
        tally.num_not_finite += 1
        return None
    stored = {name: tensor.cpu() for name, tensor in store(features, dtype).items()}
    tally.num_bytes += len(encode_features(stored))
    return restore(stored).moved(Tensor.float)


def _compare(tally: _Tally, exact: Features, kept: Features, wanted: Score, score: Score, label: str) -> None:
    cosine = torch.cosine_similarity(exact.tokens, kept.tokens, dim=1)
    tally.cosine_sum += float(cosine.double().sum())
    tally.cosine_min = min(tally.cosine_min, float(cosine.min()))
    tally.error += _squares(exact.tokens.double() - kept.tokens.double())
    if exact.deep is not None and kept.deep is not None:
        tally.deep_error += _squares(exact.deep.double() - kept.deep.double())
    assert wanted.scores is not None and score.scores is not None  # scoring is by likelihood
    tally.changes.append(max(abs(a - b) for a, b in zip(wanted.scores, score.scores, strict=True)))
    tally.num_changed += score.prediction != wanted.prediction
    tally.num_correct += score.prediction == label


def _cost(tally: _Tally, encoder: str, count: int, tokens: int, norms: tuple[float, float], size: int) -> FormatCost:
    """The cost of a format; `norms` are the squared norms of features and deep maps, 0 where there are none."""
    norm, deep_norm = norms
    good = count - tally.num_not_finite
    changed = tally.num_changed + tally.num_not_finite
    return FormatCost(
        encoder_dtype=encoder,
        bytes_per_image=tally.num_bytes / max(good, 1),
        size_of_bf16=tally.num_bytes / size,
        cosine_mean=tally.cosine_sum / tokens,
        cosine_min=tally.cosine_min,
        relative_error=(tally.error / norm) ** 0.5,
        deep_relative_error=(tally.deep_error / deep_norm) ** 0.5 if deep_norm else None,
        score_change_mean=sum(tally.changes) / max(good, 1),
        score_change_max=max(tally.changes, default=0.0),
        num_changed=changed,
        changed_fraction=changed / count,
        accuracy=tally.num_correct / count,
        num_not_finite=tally.num_not_finite,
    )
