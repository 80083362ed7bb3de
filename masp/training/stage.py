"""What every training stage has: the steps it is trained in, its model around the language half, its identity.

`masp.training.stages` has the two of the method.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from masp.artifacts.store import Kind, Lineage, TargetLineage, safe_name
from masp.artifacts.trained import quantization_notes
from masp.cache.annotations.reading import Origins
from masp.cache.fingerprint import Fields, fingerprint_digest, layout_notes
from masp.cache.reader import Cache, CachedSample
from masp.config import Config
from masp.config.schema import Stage1Config, Stage2Config, StageName
from masp.data.findings import DatasetRecord
from masp.data.questions import Questions
from masp.data.target.find_labels import with_a_label
from masp.errors import InputError
from masp.extraction.encoder import Encoder
from masp.extraction.live.images import LiveImages
from masp.files.sealed import digest_file
from masp.files.text import reason
from masp.models.forward import Stage1Model, Stage2Model
from masp.models.restarts import RestartModel
from masp.models.sequence import Batch
from masp.runtime.devices import torch_dtype
from masp.training.schedule import Rows, Schedule, TrainingCache, draw_held_out, make_schedule
from masp.vlm.language import LanguageHalf, load_language_half
from masp.vlm.loading import Partition
from masp.vlm.prompt import Prompt, load_prompt
from masp.vlm.quantized.rounding import require_library

TrainedModel = Stage1Model | RestartModel | Stage2Model

COURSE = ("num_epochs", "learning_rate", "warmup_ratio", "weight_decay", "max_grad_norm", "global_batch_size", "layout")
"""Settings of both stages that decide the course of training."""
VALIDATION_COURSE = ("validate_every", "validation_size", "patience")
"""The same where there is validation: it decides what is held out, when training ends, and which step is the result."""


@dataclass(frozen=True)
class Sources:
    """What a stage is trained on, by digest."""

    model: Fields
    """Model part of the fingerprint of the features."""
    machine: Fields
    """Machine part of it."""
    cache: str | None
    """Digest of the cache's index; None where features are computed live."""
    hidden_size: int
    """D."""
    dataset: str | None = None
    """Digest of the dataset, where features are computed live: no index stands for it."""
    answers: Mapping[str, Origins] = field(default_factory=dict)
    """Aspect -> who gave its answers, where some are not of people and the stage learns from them."""


class Stage(ABC):
    """A stage of a run. `open_stage` makes one that can be trained.

    Args:
        config: Run configuration.
        cache: Feature cache that the stage learns from, or the images where there is none.
        questions: Templates of the questions.
    """

    name: ClassVar[StageName]
    """Key of the stage's settings, and the name of its directory."""
    kind: ClassVar[Kind]
    """Kind of its artifact."""
    has_target: ClassVar[bool] = False
    """Whether it learns the target; aspect modules do not depend on it."""
    course: ClassVar[tuple[str, ...]] = COURSE
    """Settings of the stage that decide the course of training."""
    settings: Stage1Config | Stage2Config
    sources: Sources
    """Set by `open_stage`."""
    record: DatasetRecord | None = None
    """What is known of the dataset; set by `open_stage`, None where the cache does not say."""
    live: LiveImages | None = None
    """The images, where features are computed live; set by `open_stage`."""
    num_quarantined = 0
    """Training images that extraction could not read."""
    aspect_digest: str | None = None
    """Digest of the frozen aspect modules that the stage builds on."""

    def __init__(self, config: Config, cache: TrainingCache, questions: Questions):
        self.config, self.cache, self.questions = config, cache, questions
        self.directory = Path(config.output_dir) / self.name

    @property
    @abstractmethod
    def aspects(self) -> tuple[str, ...]:
        """Aspects whose modules run, in order."""

    @property
    @abstractmethod
    def artifact(self) -> Path:
        """The file that the stage leaves."""

    @classmethod
    def check_settings(cls, config: Config, device: str) -> None:
        """Refuse what can be seen from the configuration alone.

        Raises:
            InputError: It does not fit the stage or the device, or nothing would be trained.
        """
        if not getattr(config, cls.name).learning_rate:
            raise InputError(
                f"{cls.name}.learning_rate = 0: nothing would be trained; give a number above 0, or evaluate without "
                "training with checkpoint.aspect=none and checkpoint.soft_prompt=none"
            )
        if device == "cpu" and config.engine.precision == "fp16":
            raise InputError("engine.precision = 'fp16': needs a GPU; valid on a CPU are bf16 and fp32")
        require_library(config.vlm.quantization)
        if config.vlm.quantization != "none" and config.engine.zero_stage == 3:
            raise InputError(
                f"vlm.quantization = {config.vlm.quantization!r}: not with engine.zero_stage=3, with which DeepSpeed "
                "divides no integers; give engine.zero_stage=2 or less, or vlm.quantization=none"
            )

    def notes(self) -> list[str]:
        """What the user should know before training starts."""
        return [
            *(f"answers to {aspect}: {origins.text}" for aspect, origins in self.sources.answers.items()),
            *layout_notes(self.settings.layout, self.sources.model),
            *quantization_notes(self.config.vlm.quantization, self.inputs()),
        ]

    @property
    def order_seed(self) -> int:
        """Seed of the order of the images."""
        return self.config.seed if self.config.order_seed is None else self.config.order_seed

    @property
    def init_seed(self) -> int:
        """Seed of the initial values."""
        return self.config.seed

    @property
    def num_restarts(self) -> int:
        """Initial values that are trained in the same pass."""
        return 1

    @property
    def holds_out(self) -> bool:
        """Whether images are held out, to measure the loss on them."""
        return self.settings.validate_every is not None

    @property
    def where(self) -> str:
        """Where the stage's images come from, for errors: the setting and its value."""
        config = self.config
        return f"dataset.root: {config.dataset.root}" if config.cache.dir is None else f"cache.dir: {config.cache.dir}"

    def inputs(self) -> tuple[Lineage, ...]:
        """Lineage of the artifacts that the stage builds on."""
        return ()

    @property
    def target(self) -> TargetLineage | None:
        """What the stage learns, if not the emotion by the labels of the dataset; None for stage 1, which has no
        target."""
        return None

    @abstractmethod
    def load_inputs(self, cache: Cache | None) -> None:
        """Load what the stage builds on beside its features.

        Args:
            cache: The cache that the stage learns from; None where features are computed live.

        Raises:
            InputError: It is missing or does not fit.
        """

    @abstractmethod
    def draw_inputs(self, hidden_size: int) -> None:
        """Take random values for what `load_inputs` would load: enough to measure how long training takes."""

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The steps of training.

        Raises:
            InputError: There is nothing to learn from, or all of it would be held out.
        """
        if "train" not in self.cache.splits or not len(self.cache.rows("train")):
            bad = f"; {self.num_quarantined} are in quarantine" if self.num_quarantined else ""
            labeled = "" if self.cache.labels is None else with_a_label(self.config.target)
            raise InputError(f"{self.where} has no training image{labeled}{bad}")
        train = self._rows("train")
        val = self._rows("val") if self.holds_out else None
        return make_schedule(self.cache.index, train, val, self.settings, self.name, self.order_seed, self._positions)

    @functools.cached_property
    def compared_rows(self) -> Rows:
        """Images by whose loss runs are compared before their ends: those that validation holds out, or without it as
        many of the split `val`, chosen in the same way.

        Raises:
            InputError: There are none.
        """
        if self.schedule.held_out is not None:
            return self.schedule.held_out
        val, settings = self._rows("val"), self.settings
        if not len(val.rows):
            raise InputError(
                f"{self.where} has no validation split, and {self.name}.validate_every = null holds no images out, so "
                f"runs cannot be compared before their ends; give {self.name}.validate_every"
            )
        return val.only(draw_held_out(self.cache.index, val.rows, settings.validation_size, self.order_seed))

    def _positions(self, images: Rows) -> Rows:
        """The positions of training that its images make: each is one, unless the stage divides them."""
        return images

    def check_samples(self) -> None:
        """Refuse to train what no sample would teach anything.

        Raises:
            InputError: There is nothing to learn from, or not for all that is trained; names it and what to change.
        """
        _ = self.schedule

    @abstractmethod
    def untrained(self, state: dict[str, Tensor]) -> tuple[str, ...]:
        """What never received a gradient, in words; such a thing is not saved as trained.

        Args:
            state: Trained tensors and their moments, after the last step.
        """

    def _rows(self, split: str) -> Rows:
        """The images of a split that the stage can use."""
        rows = self.cache.rows(split) if split in self.cache.splits else np.zeros(0, dtype=np.int64)
        return self._usable(rows, self.cache.index.num_tokens[rows].astype(np.int64))

    @abstractmethod
    def _usable(self, rows: np.ndarray, num_tokens: np.ndarray) -> Rows:
        """Those of some rows that the stage can use, given their numbers of vision tokens."""

    @abstractmethod
    def absent_parts(self, positions: Rows) -> tuple[str, ...]:
        """Parts of the model, see `parts()`, that a step over these positions does not ask for."""

    @abstractmethod
    def batch(
        self,
        prompt: Prompt,
        rows: Sequence[int],
        samples: Sequence[CachedSample],
        weights: Sequence[float],
        epoch: int | None,
        aspects: Sequence[int] | None = None,
    ) -> Batch:
        """What the language model is asked about some images.

        Args:
            prompt: Chat template of the VLM.
            rows: Rows of the images in the cache's index.
            samples: The images, as the cache holds them.
            weights: Weight of each image; 0 for padding.
            epoch: Number of the epoch, from 0: questions are drawn anew in each. None asks those of evaluation.
            aspects: The one aspect that each image is asked about, by number; None: all.
        """

    def load_encoder(self) -> Encoder | None:
        """Load the encoder where features are computed live; None where they come from a cache."""
        return None if self.live is None else Encoder(self.config)

    def build(self, device: str, partition: Partition | None = None) -> tuple[TrainedModel, Prompt]:
        """Load the language half, and put what is trained around it, with initial values drawn from the seed.

        Args:
            device: `cpu` or `cuda`.
            partition: Divides the language half over the ranks while it is loaded; all ranks call this then.
        """
        vlm, engine = self.config.vlm, self.config.engine
        prompt = load_prompt(vlm.path)
        dtype = torch_dtype(engine.precision)
        language = load_language_half(vlm.path, dtype, device, vlm.attention, partition, vlm.quantization)
        if engine.gradient_checkpointing:
            language.recompute_layers()
        torch.manual_seed(self.init_seed)
        return self.around(language, prompt, device, partition), prompt

    @abstractmethod
    def around(
        self, language: LanguageHalf, prompt: Prompt, device: str, partition: Partition | None = None
    ) -> TrainedModel:
        """Put what is trained around the language half, with initial values drawn from torch's generator."""

    def identity(self) -> dict[str, Any]:
        """All that decides the course of training; another number of ranks, workers or micro-batches does not."""
        config, settings = self.config, self.settings
        identity = {
            "stage": self.name,
            "seed": config.seed,
            "aspects": list(self.aspects),
            "vlm": fingerprint_digest(self.sources.model),
            "cache": self.sources.cache,
            "categories": list(self.cache.categories),
            "questions": digest_file(Path(config.questions)),
            "engine.precision": config.engine.precision,
            "aspect_module.num_queries": config.aspect_module.num_queries,
            **self._own_identity(),
        }
        names = (*self.course, *VALIDATION_COURSE) if self.holds_out else self.course
        identity |= {f"{self.name}.{name}": getattr(settings, name) for name in names}
        if settings.schedule != "linear":  # only then: runs from before there was a choice resume
            identity[f"{self.name}.schedule"] = settings.schedule
        if config.order_seed is not None:
            identity["order_seed"] = config.order_seed
        if self.cache.subset is not None:
            identity |= self.cache.subset.identity()
        if config.vlm.quantization != "none":
            identity["vlm.quantization"] = config.vlm.quantization
        if self.sources.dataset is not None:  # what the index of a cache stands for otherwise
            identity |= {"dataset": self.sources.dataset, "cache.num_shards": config.cache.num_shards}
            identity["dataset.augment"] = config.dataset.augment
        for aspect, origins in self.sources.answers.items():  # what people annotated is part of the index
            identity[f"answers.{aspect}"] = [origins.file, origins.min_confidence]
        return identity | {"num_steps": self.schedule.num_steps}

    @abstractmethod
    def _own_identity(self) -> dict[str, Any]:
        """What decides the course of this stage alone, beside `course`."""

    def export(self, state: dict[str, Tensor], identity: dict[str, Any]) -> None:
        """Write the artifact.

        Args:
            state: Trained tensors in fp32 by name; moments in it are ignored.
            identity: Identity of the run, for the record.

        Raises:
            InputError: It cannot be written.
        """
        lineage = Lineage(
            kind=self.kind,
            origin="trained",
            aspects=self.aspects,
            aspect_digest=self.aspect_digest,
            model=self.sources.model,
            machine=self.sources.machine,
            categories=self.cache.categories,
            cache=self.sources.cache,
            dataset_digest=self.sources.dataset,
            dataset=safe_name(self.config.dataset.name),
            layout=self.settings.layout,
            settings=identity,
            answers={aspect: asdict(origins) for aspect, origins in self.sources.answers.items()},
            target=self.target,
        )
        try:
            self._save(state, lineage)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save raises the last
            raise InputError(
                f"output_dir: {self.artifact} cannot be written: {reason(error)}; the checkpoint is kept, the same "
                "command writes it again"
            ) from None

    @staticmethod
    def _never_moved(state: dict[str, Tensor], prefix: str) -> bool:
        """Whether all first moments of the tensors with a prefix are zero, or there are none: no gradient ever came."""
        moments = [t for name, t in state.items() if name.startswith(prefix) and name.endswith("#exp_avg")]
        return not any(bool(moment.any()) for moment in moments)

    @abstractmethod
    def _save(self, state: dict[str, Tensor], lineage: Lineage) -> None: ...
