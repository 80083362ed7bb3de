"""The emotion of images that a user names, with the probability of every category."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from masp.artifacts.trained import Trained, load_trained
from masp.cache.fingerprint import layout_notes, machine_part, model_part
from masp.config import Config
from masp.data.image_files.stored import Location
from masp.data.questions import questions_of
from masp.data.reading import opened
from masp.distributed.ranks import read_ranks
from masp.errors import InputError
from masp.evaluation.emotions import machine_notes
from masp.evaluation.partitioned import joined, load_for_scoring
from masp.evaluation.scorers import EmotionScorer, ScoreRequest
from masp.extraction.encoder import Encoder, check_finite_features
from masp.files.text import reason
from masp.results.metrics import softmax
from masp.runtime.devices import pick_device
from masp.taxonomy import CATEGORY_SETS, normalize_category
from masp.vlm.families import family_of
from masp.vlm.language import LanguageHalf


@dataclass(frozen=True)
class Prediction:
    """What was predicted for one image."""

    image: str
    """Path as it was given."""
    prediction: str
    """The likeliest category."""
    probabilities: dict[str, float]
    """Category -> probability, in the order of the question."""
    attention: dict[str, np.ndarray] = field(default_factory=dict)
    """Aspect -> `[height, width]` over the image's vision tokens, fp32, sum one; empty unless asked for."""


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be read."""

    image: str
    reason: str


@dataclass(frozen=True)
class _Named:
    image: Location


def check_images(images: Sequence[str]) -> None:
    """Look for the images before anything is loaded.

    Raises:
        InputError: There is none of them.
    """
    reasons = [(image, _why_unreadable(image)) for image in images]
    if all(why for _, why in reasons):
        named = ", ".join(f"{image} ({why})" for image, why in reasons)
        raise InputError(f"{len(reasons)} of {len(reasons)} images cannot be read: {named}")


def _why_unreadable(image: str) -> str:
    """Why a path cannot be that of an image, from the path alone; empty where it can."""
    try:
        with opened(image):
            return ""
    except FileNotFoundError:
        return "file not found"
    except IsADirectoryError:
        return "a directory; name the image files in it"
    except (OSError, ValueError) as error:
        return reason(error)


class Predictor:
    """What was trained around the VLM; its halves are loaded by `predict`.

    Args:
        config: Run configuration: names the VLM, the checkpoints and the categories.

    Raises:
        InputError: A file is missing or does not fit the VLM, or nothing says what the categories are.
    """

    def __init__(self, config: Config):
        self.config = config
        self.questions = questions_of(config)
        hidden_size = family_of(config.vlm.path).hidden_size
        model = model_part(config)
        self.trained: Trained = load_trained(config, hidden_size, model)
        self.categories = _categories(config, self.trained)
        self.notes = [
            *machine_notes(self.trained, machine_part(config).fields),
            *layout_notes(self.trained.layout, model),
            *self.trained.quantization_notes(config),
        ]
        """How the features differ from those of training and of the published code."""

    def predict(self, images: Sequence[str], attention: bool = False) -> Iterator[Prediction | Unreadable]:
        """Predict the emotion of each image in turn; where ranks share the VLM, on rank 0.

        Args:
            images: Paths.
            attention: Whether to keep where each aspect looks; needs aspect modules.

        Raises:
            InputError: The VLM cannot be loaded.
            DataError: The features of an image are not finite.
        """
        config = self.config
        config.evaluate.scoring = "likelihood"
        device = pick_device(config.engine.device, "engine.device")
        with joined(config):
            passes = load_for_scoring(config, device)
            with passes.scoring():
                if passes.partition is None or read_ranks().is_rank_0:  # the others lend their parts of the VLM
                    yield from self._predict(images, attention, device, passes.language)

    def _predict(
        self, images: Sequence[str], attention: bool, device: str, language: LanguageHalf
    ) -> Iterator[Prediction | Unreadable]:
        config, categories, encoder = self.config, self.categories, Encoder(self.config)
        scorer = EmotionScorer(config, self.trained, self.questions, categories, device, language=language)
        stream = encoder.stream([_Named(image) for image in images], num_workers=0)
        for path, image in zip(images, stream, strict=True):
            if why := image.reason or image.failure:
                yield Unreadable(path, why)
                continue
            (features,) = encoder.encode([image])
            check_finite_features([features], [path], config.cache.dtype)
            request = ScoreRequest(features, image.layout, name=path)
            (score,) = scorer.score([request])
            assert score.scores is not None and score.prediction is not None  # likelihoods were compared
            probabilities = dict(zip(categories, softmax([score.scores])[0].tolist(), strict=True))
            maps = dict(zip(config.aspects, scorer.attention([request])[0], strict=True)) if attention else {}
            yield Prediction(path, score.prediction, probabilities, maps)


def _categories(config: Config, trained: Trained) -> tuple[str, ...]:
    """What to choose from: as configured, as trained, or the named dataset's."""
    if config.dataset.categories:
        return tuple(normalize_category(category) for category in config.dataset.categories)
    if trained.soft_prompt_lineage and trained.soft_prompt_lineage.categories:
        return trained.soft_prompt_lineage.categories
    if config.dataset.name in CATEGORY_SETS:
        return CATEGORY_SETS[config.dataset.name]
    raise InputError(
        "dataset.categories = null: neither the soft prompt nor the dataset's name says what the categories are; "
        "give a list such as dataset.categories=[joy,fear]"
    )
