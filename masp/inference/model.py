"""A trained model in memory: predictions, explanations, aspect tokens and attention for images in any form.

import masp

model = masp.load("outputs/run")
for prediction in model.predict(["photo.jpg"]):
    print(prediction.label, prediction.probabilities)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from masp.artifacts.trained import Trained, load_trained
from masp.cache.fingerprint import layout_notes, machine_part, model_part
from masp.config import Config
from masp.data.questions import questions_of
from masp.distributed.ranks import read_ranks
from masp.errors import DataError, InputError
from masp.evaluation.explain import Explainer
from masp.evaluation.partitioned import is_partitioned, joined, load_for_scoring
from masp.evaluation.scorers import ScoreRequest, TargetScorer, load_language
from masp.evaluation.target import machine_notes
from masp.extraction.encoder import Encoder, check_finite_features
from masp.extraction.image_stream import PreparedImage
from masp.inference.images import ImageInput, NamedImage, named_images
from masp.inference.source import config_of
from masp.results.explanations.explanation import Explanation
from masp.results.metrics import softmax
from masp.runtime.devices import encoder_dtype, pick_device
from masp.taxonomy import CATEGORY_SETS, normalize_category
from masp.vlm.families import family_of, resolve_directory
from masp.vlm.language import LanguageHalf

T = TypeVar("T")

BATCH_SIZE = 16
"""Images that are read, encoded and scored at once."""


@dataclass(frozen=True)
class Prediction:
    """What was predicted for one image."""

    image: str
    """Path as it was given, or `image N` of what has no name."""
    label: str
    """The likeliest category."""
    probabilities: dict[str, float]
    """Category -> probability, in the order of the question: the softmax of `log_likelihoods`."""
    log_likelihoods: dict[str, float]
    """Category -> log-likelihood of its words, nats."""


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be read."""

    image: str
    """As in `Prediction`."""
    reason: str


def load(source: str | Path, device: str | None = None, vlm: str | None = None) -> Model:
    """Load what was trained. The VLM follows when it is first needed, once.

    Args:
        source: Directory of a run; what `masp export` wrote, by its directory or as `hf://owner/name[@revision]`.
        device: `cpu` or `cuda`; None as in training, where `auto` takes a GPU if there is one.
        vlm: Directory of the VLM or its name on the Hugging Face Hub; None as in training.

    Raises:
        InputError: The run does not exist, has not been trained, or does not fit the VLM.
        DataError: A file is damaged.
    """
    return Model(config_of(source, device, vlm))


class Model:
    """What was trained around the VLM, with the VLM. Not safe for several threads at once.

    Args:
        config: Run configuration: names the VLM, the checkpoints and the categories. Neither `cache.dir` nor
            `dataset.root` is used.

    Raises:
        InputError: A file is missing or does not fit the VLM, or nothing says what the categories are.
        DataError: A file is damaged.
    """

    def __init__(self, config: Config):
        self.config = config
        config.evaluate.scoring = "likelihood"
        self.questions = questions_of(config)
        hidden_size = family_of(config.vlm.path).hidden_size
        self.features_of = model = model_part(config)
        """What its features depend on: the model part of their fingerprint."""
        self.trained: Trained = load_trained(config, hidden_size, model)
        self.categories = _categories(config, self.trained)
        """What can be predicted, in the order of the question."""
        self.machine = machine_part(config).fields
        """What makes its features here: the machine part."""
        self.notes = [
            *machine_notes(self.trained, self.machine),
            *layout_notes(self.trained.layout, model),
            *self.trained.quantization_notes(config),
        ]
        """How the features differ from those of training and of the published code."""
        self.device = pick_device(config.engine.device, "engine.device")
        self._given: LanguageHalf | None = None

    @property
    def aspects(self) -> tuple[str, ...]:
        """Names of the aspects, in the order of the prompt; none where the model has no aspect modules."""
        return () if self.trained.aspects is None else self.trained.aspects.aspects

    @cached_property
    def encoder(self) -> Encoder:
        """The VLM's vision half with its preprocessing."""
        return Encoder(self.config)

    @cached_property
    def language(self) -> LanguageHalf:
        """The VLM's language half."""
        return self._given or load_language(self.config, self.device)

    @cached_property
    def scorer(self) -> TargetScorer:
        """Scores the target."""
        return TargetScorer(
            self.config, self.trained, self.questions, self.categories, self.device, language=self.language
        )

    @cached_property
    def explainer(self) -> Explainer:
        """Explains predictions."""
        self._need_aspects("explain predictions with")
        return Explainer(self.config, self.trained, self.questions, self.scorer, self.language)

    def load(self, explains: bool = False) -> None:
        """Load the VLM now instead of when it is first needed; with `explains`, what explanations need too."""
        _ = self.encoder, self.explainer if explains else self.scorer

    def use_vlm_of(self, other: Model) -> None:
        """Use the halves of the VLM that another model has loaded instead of loading them again, as far as they are
        the same: to be called before this model needs them."""
        if _language_of(self.config) == _language_of(other.config):
            self._given = other.language
        if _vision_of(self.config) == _vision_of(other.config):
            self.encoder = Encoder(self.config, other.encoder.vision)

    @contextmanager
    def sharing_vlm(self) -> Iterator[bool]:
        """While entered, the ranks of a launcher share the language half, if `evaluate.partition_vlm` asks for it.

        Yields:
            Whether this process answers; the others lend their parts of the VLM.
        """
        if not is_partitioned(self.config):
            yield True
            return
        with joined(self.config):
            passes = load_for_scoring(self.config, self.device)
            self._given = passes.language
            with passes.scoring():
                yield read_ranks().is_rank_0

    def predict(self, images: Sequence[ImageInput], batch_size: int = BATCH_SIZE) -> list[Prediction]:
        """Predict the target of images.

        Args:
            images: Paths, bytes of image files, PIL images or arrays, see `masp.inference.images.ImageInput`.
            batch_size: Images that are scored at once. Affects memory and speed, not the result beyond rounding.

        Raises:
            DataError: An image cannot be read; `predict_each` goes on with the others.
            InputError: The VLM cannot be loaded, or the form of an image is not known.
        """
        return [_readable(found) for found in self.predict_each(named_images(images), batch_size)]

    def predict_each(
        self, images: Iterable[NamedImage], batch_size: int = BATCH_SIZE
    ) -> Iterator[Prediction | Unreadable]:
        """Predict images one after another, of which there may be any number; see `predict`."""
        for batch in self.requests(images, batch_size):
            found = iter(self.predict_requests(readable(batch)))
            yield from (each if isinstance(each, Unreadable) else next(found) for each in batch)

    def predict_requests(self, requests: Sequence[ScoreRequest]) -> list[Prediction]:
        """Predictions for images that have been encoded."""
        found = []
        for request, score in zip(requests, self.scorer.score(requests) if requests else (), strict=True):
            assert score.scores is not None and score.prediction is not None  # likelihoods were compared
            shares = dict(zip(self.categories, softmax([score.scores])[0].tolist(), strict=True))
            sums = dict(zip(self.categories, score.scores, strict=True))
            found.append(Prediction(request.name, score.prediction, shares, sums))
        return found

    def explain(self, image: ImageInput) -> Explanation:
        """Explain the prediction for an image: per aspect its answer, its contribution, and where it looks.

        Raises:
            InputError: The model has no aspect modules, or as of `predict`.
            DataError: The image cannot be read.
        """
        self._need_aspects("explain predictions with")
        ((request,),) = self.requests(named_images([image]))
        (found,) = self.explainer.explain([_readable(request)])
        return found

    def aspect_tokens(self, images: Sequence[ImageInput], batch_size: int = BATCH_SIZE) -> np.ndarray:
        """The aspect tokens of images: what stands for each aspect in the prompt.

        Returns:
            `[I, A, N, D]` fp32: images, aspects in the order of `aspects`, queries, hidden size of the VLM.

        Raises:
            InputError, DataError: As of `predict`; or the model has no aspect modules.
        """
        self._need_aspects("compute aspect tokens with")
        parts = []
        for batch in self.requests(named_images(images), batch_size):
            tokens = self.scorer.aspect_tokens([_readable(request) for request in batch])
            parts.append(tokens.float().cpu().numpy())
        modules = self.trained.aspects
        assert modules is not None
        empty = np.empty((0, len(modules.aspects), modules.num_queries, modules.hidden_size), dtype=np.float32)
        return np.concatenate([empty, *parts])

    def attention(self, image: ImageInput) -> dict[str, np.ndarray]:
        """Where each aspect looks in an image.

        Returns:
            Aspect -> `[height, width]` over the image's vision tokens, fp32, sum one.

        Raises:
            InputError, DataError: As of `predict`; the model has no aspect modules, or the VLM's vision tokens form no
                grid over the image.
        """
        self._need_aspects("look with")
        ((request,),) = self.requests(named_images([image]))
        (maps,) = self.scorer.attention([_readable(request)])
        return dict(zip(self.aspects, maps, strict=True))

    def features(self, images: Sequence[ImageInput], batch_size: int = BATCH_SIZE) -> list[np.ndarray]:
        """The vision features of images, as the language model gets them.

        Returns:
            Per image `[T, D]` fp32: vision tokens, hidden size of the VLM.

        Raises:
            InputError, DataError: As of `predict`.
        """
        batches = self.requests(named_images(images), batch_size)
        return [_readable(request).features.tokens.float().cpu().numpy() for batch in batches for request in batch]

    def _need_aspects(self, what: str) -> None:
        if self.trained.aspects is None:
            raise InputError(f"this model has no aspect modules to {what}")

    def requests(
        self, images: Iterable[NamedImage], batch_size: int = BATCH_SIZE
    ) -> Iterator[list[ScoreRequest | Unreadable]]:
        """Read and encode images, `batch_size` at a time; see `encode`."""
        if batch_size < 1:
            raise InputError(f"batch_size = {batch_size}: must be 1 or more")
        images = iter(images)
        while batch := list(itertools.islice(images, batch_size)):
            yield self.encode(batch)

    def encode(self, images: Sequence[NamedImage]) -> list[ScoreRequest | Unreadable]:
        """Read and encode a batch of images, ready to be scored; what cannot be read stays in its place.

        Raises:
            DataError: The features of an image are not finite.
        """
        return self.encode_prepared([image.name for image in images], [self.prepare(image) for image in images])

    def prepare(self, image: NamedImage) -> PreparedImage:
        """Read, decode and preprocess an image, which needs neither half of the VLM.

        Safe in any thread beside the one that uses the model, once `encoder` is loaded, and in several at once where
        `encoder.preprocessor.has_plain_block`; the tokenizers of other processors serve one thread at a time.
        """
        return self.encoder.prepare(image)

    def encode_prepared(
        self, names: Sequence[str], prepared: Sequence[PreparedImage]
    ) -> list[ScoreRequest | Unreadable]:
        """Encode a batch of images that have been read, see `prepare` and `Encoder.stream`; as `encode`."""
        good = [image for image in prepared if not (image.reason or image.failure)]
        features = iter(self.encoder.encode(good))
        found: list[ScoreRequest | Unreadable] = []
        for name, image in zip(names, prepared, strict=True):
            if why := image.reason or image.failure:
                found.append(Unreadable(name, why))
                continue
            tokens = next(features)
            check_finite_features([tokens], [name], self.config.cache.dtype)
            found.append(ScoreRequest(tokens, image.layout, name=name))
        return found


def _language_of(config: Config) -> tuple[object, ...]:
    """All that the language half in memory depends on."""
    vlm, engine = config.vlm, config.engine
    device = pick_device(engine.device, "engine.device")
    return resolve_directory(vlm.path), vlm.attention, vlm.quantization, engine.precision, device


def _vision_of(config: Config) -> tuple[object, ...]:
    """All that the vision half in memory depends on."""
    vlm, device = config.vlm, pick_device(config.extract.device, "extract.device")
    return resolve_directory(vlm.path), vlm.attention, encoder_dtype(config.cache.dtype, device), device


def readable(batch: Sequence[T | Unreadable]) -> list[T]:
    """Those of a batch that could be read."""
    return [each for each in batch if not isinstance(each, Unreadable)]


def _readable(found: T | Unreadable) -> T:
    if isinstance(found, Unreadable):
        raise DataError(f"{found.image} cannot be read: {found.reason}")
    return found


def _categories(config: Config, trained: Trained) -> tuple[str, ...]:
    """What to choose from: as configured, as trained, or the named dataset's."""
    target = config.target
    # of labels that are not the dataset's, the soft prompt knows the categories
    chosen = target.categories or (config.dataset.categories if target.labels is None else None)
    if chosen:
        return tuple(normalize_category(category) for category in chosen)
    if trained.soft_prompt_lineage and trained.soft_prompt_lineage.categories:
        return trained.soft_prompt_lineage.categories
    if target.labels is not None:
        raise InputError(
            f"target.categories = null: no soft prompt says what the categories of {target.name} are; "
            "give a list such as target.categories=[spring,autumn]"
        )
    if config.dataset.name in CATEGORY_SETS:
        return CATEGORY_SETS[config.dataset.name]
    raise InputError(
        "dataset.categories = null: neither the soft prompt nor the dataset's name says what the categories are; "
        "give a list such as dataset.categories=[joy,fear]"
    )
