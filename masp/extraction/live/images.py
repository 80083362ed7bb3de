"""Images for training and evaluation without a cache, prepared for the encoder and in the order of a cache.

The index has the rows that the index of a fresh cache would have, so that training sees the same samples in the same
order: shards are those of `masp.cache.layout.assign`, and what cannot be read is left out.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from masp.cache.fingerprint import Fields, model_part
from masp.cache.layout import QUARANTINE, assign
from masp.cache.manifest import QuarantineLine
from masp.cache.merge import content_of, dataset_digest
from masp.cache.reader import CachedSample
from masp.config import Config
from masp.data.datasets import dataset_of
from masp.data.findings import Contents, DatasetRecord, content_findings
from masp.data.sample import Dataset, Samples
from masp.data.splits.subset import has_subset, subset_of
from masp.data.target.find_labels import label_dataset
from masp.data.target.labels import Labels
from masp.errors import DataError, InputError
from masp.extraction.image_stream import ImageDataset, PreparedImage
from masp.extraction.live.augmentation import Change
from masp.extraction.live.checking import CheckedImages, check_images, named
from masp.files.atomic import write_bytes
from masp.files.typed import encode
from masp.runtime.stop import StopFlag
from masp.vlm.cost.counting import encoder_amount, encoder_curve, image_flops, known_encoder
from masp.vlm.cost.flops import Encoder
from masp.vlm.families import load_config, num_deep_maps, resolve_directory
from masp.vlm.features import Features
from masp.vlm.preprocessor import load_preprocessor
from masp.vlm.processor import blank

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiveIndex:
    """What the index of a cache of the same images would say, `[N]` each."""

    num_tokens: np.ndarray
    """int32: vision tokens of each sample."""
    shard: np.ndarray
    """int32: number of each sample's shard."""
    keys: Sequence[str]
    """Sample keys."""


@dataclass(frozen=True, kw_only=True)
class LiveSample(CachedSample):
    """A sample whose features are still to be computed.

    Its `features` have the shapes that they will have, on the meta device, so that whatever needs their numbers fails.
    """

    image: PreparedImage
    """What the encoder takes."""
    encoder_flops: float
    """Floating-point operations that the encoder takes for it."""


class LiveImages:
    """The images of a dataset that can be read, as training reads them; `open_live` makes one.

    Workers are forked with it: it holds no file and no weights.

    Args:
        config: Run configuration.
        dataset: The dataset, with its annotations.
        checked: What the pass over its images found, in the order of its samples.
        images: The images, in the order of its samples.
        model: Model part of the fingerprint.
        has_target: Whether the labels of `config.target` count; False for stage 1, which has no target.

    Raises:
        InputError: See `masp.data.target.find_labels`.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        checked: CheckedImages,
        images: ImageDataset,
        model: Fields,
        has_target: bool = True,
    ):
        self.config, self.dataset, self.checked, self.images, self.model = config, dataset, checked, images, model
        shards = assign(dataset.samples, config.cache.num_shards)
        place_of_row = np.empty(len(dataset.samples.table.keys), dtype=np.int64)
        place_of_row[dataset.samples.rows] = np.arange(len(dataset.samples))
        places = np.concatenate([place_of_row[shard.samples.rows] for shard in shards])
        numbers = np.repeat([shard.number for shard in shards], [len(shard.samples) for shard in shards])
        is_good = checked.is_good[places]
        self._places = places[is_good]
        """Place in the dataset of each row of the index."""
        self.samples: Samples = dataset.samples[self._places]
        self.labels: Labels | None = None
        """Those of the target, in the order of `samples`, where it has others than the dataset."""
        self.categories = dataset.categories
        seen, labels = replace(dataset, samples=self.samples), None
        if has_target or has_subset(config.dataset):  # see `masp.cache.reader`
            seen, labels = label_dataset(config, seen)
        if has_target:
            self.samples, self.categories, self.labels = seen.samples, seen.categories, labels
        self.subset = subset_of(config.dataset, seen.samples)
        """What training sees of the training split; None for all."""
        self.index = LiveIndex(checked.num_tokens[self._places], numbers[is_good].astype(np.int32), self.samples.keys)
        self.splits = tuple(sorted({shard.split for shard in shards}))
        self.hidden_size = images.preprocessor.family.hidden_size
        self._num_deep = num_deep_maps(load_config(resolve_directory(config.vlm.path)))
        self.digest, self.record = self._described()
        if self.labels is not None:
            self.record = self.labels.record(self.record, self.samples.table.splits, self.samples.split)
        if self.subset is not None:
            self.record = self.subset.record(self.record)

    def __len__(self) -> int:
        return len(self._places)

    @cached_property
    def encoder_cost(self) -> Encoder:
        """What the encoder takes for an image; whoever starts workers that read asks for it before, since it may have
        to be counted."""
        path = resolve_directory(self.config.vlm.path)
        return known_encoder(load_config(path)) or encoder_curve(path, self._amounts(), self._prepared)

    def rows(self, split: str) -> np.ndarray:
        """Rows of a split that have a label, ascending, int64; of the training split those that training sees.

        Raises:
            InputError: The dataset has no such split.
        """
        if split not in self.splits:
            raise InputError(
                f"dataset.root: {self.dataset.root} has no split {split!r}; it has {', '.join(self.splits)}"
            )
        is_in = self.samples.is_in(split)
        if split == "train" and self.subset is not None:
            is_in = is_in & self.subset.is_in
        return np.flatnonzero(is_in if self.labels is None else is_in & (self.labels.category >= 0))

    def has_answer(self, rows: np.ndarray, aspect: str) -> np.ndarray:
        """Which of these rows are annotated with an aspect, bool."""
        table = self.samples.table
        has = np.array([aspect in (label.aspects or ()) for label in table.labels], dtype=bool)
        return has[table.label[self.samples.rows[rows]]]

    def has_distribution(self, rows: np.ndarray) -> np.ndarray:
        """Which of these rows have a distribution over the categories, bool."""
        table = self.samples.table
        has = np.array([label.distribution is not None for label in table.labels], dtype=bool)
        return has[table.label[self.samples.rows[rows]]]

    def num_quarantined(self, split: str) -> int:
        """Images of a split that cannot be read."""
        samples = self.dataset.samples
        return Counter(samples[place].split for place in self.checked.reasons)[split]

    def unreadable_keys(self) -> set[str]:
        """Sample keys of the images that cannot be read."""
        return {self.dataset.samples[place].key for place in self.checked.reasons}

    def read(self, row: int, *, epoch: int | None = None) -> LiveSample:
        """Read and preprocess the image of a sample.

        Args:
            row: Row of the index.
            epoch: Epoch of training that `dataset.augment` changes the image for; None leaves it as it is.

        Raises:
            DataError: It cannot be read now.
            InputError: It is another than the one that was there when this run began.
        """
        sample, place = self.samples[row], int(self._places[row])
        kind, change = self.config.dataset.augment, None
        if epoch is not None and kind != "none":
            change = Change(kind, self.config.seed, epoch, sample.key)
        image = self.images.prepare(place, change)
        if why := image.failure or image.reason:
            raise DataError(
                f"sample {sample.key}: {self.dataset.samples[place].image} can no longer be read: {why}; the same "
                "command goes on when it can, from the last checkpoint"
            )
        if image.source.sha256 != self.checked.digest(place):
            raise InputError(
                f"sample {sample.key}: {self.dataset.samples[place].image} has changed since this run began; "
                "restore it, or train on the new images with another output_dir"
            )
        shape = image.layout.num_tokens, self.hidden_size
        tokens = torch.empty(shape, device="meta")
        deep = torch.empty((self._num_deep, *shape), device="meta") if self._num_deep else None
        return LiveSample(
            key=sample.key,
            split=sample.split,
            category=sample.category,
            answers=dict(sample.answers),
            distribution=sample.distribution,
            features=Features(tokens, deep),
            layout=image.layout,
            image_size=image.image_size,
            image=image,
            encoder_flops=image_flops(self.encoder_cost, image.layout),
        )

    def log(self) -> None:
        """Say where features come from, and which images are left out."""
        LOG.info("cache.dir = null: the encoder runs in training, on images from %s", self.dataset.root)
        if self.checked.reasons:
            images = self.dataset.samples.images
            LOG.warning(
                "%d of %d images cannot be read and are left out: %s",
                *(len(self.checked.reasons), len(images), named(self.checked, images)),
            )

    def save_quarantine(self, directory: Path) -> None:
        """Write which images cannot be read, as a cache lists them, to `quarantine.jsonl`; no file where all can.

        Raises:
            OSError: It cannot be written.
        """
        path, samples, root = directory / QUARANTINE, self.dataset.samples, self.dataset.root
        lines = []
        for place in sorted(self.checked.reasons):
            image = Path(str(samples[place].image))
            shown = image.relative_to(root) if image.is_relative_to(root) else image
            lines.append(encode(QuarantineLine(samples[place].key, str(shown), self.checked.reasons[place])))
        if lines:
            write_bytes(path, b"\n".join(lines) + b"\n")
        else:
            path.unlink(missing_ok=True)

    def _amounts(self) -> list[tuple[float, tuple[int, int]]]:
        """How much the encoder gets of images, and their sizes: of each size of an image once."""
        sizes = {(int(width), int(height)) for width, height in np.unique(self.checked.sizes[self._places], axis=0)}
        planned = self.images.preprocessor.planned
        return [(encoder_amount(planned(*size)), size) for size in sorted(sizes)]

    def _prepared(self, width: int, height: int):
        return self.images.preprocessor(blank(width, height))

    def _described(self) -> tuple[str, DatasetRecord]:
        """The digest that a cache of this dataset would have, and what is known of the dataset."""
        dataset, samples, checked = self.dataset, self.dataset.samples, self.checked
        keys = samples.keys
        digests = b"".join(
            content_of(sample.category, sample.answers, checked.digest(place), sample.distribution)
            for place, sample in enumerate(samples)
        )
        digest = dataset_digest(
            np.frombuffer("".join(keys).encode(), dtype=np.uint8),
            np.cumsum([0, *map(len, keys)], dtype=np.int64),
            np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32),
        )
        known = np.flatnonzero(checked.digests.any(1))
        number_of: dict[str, int] = {}
        category_of_label = np.array(
            [number_of.setdefault(label.category, len(number_of)) for label in samples.table.labels]
        )
        contents = Contents(
            checked.digests[known],
            samples.split[known],
            category_of_label[samples.table.label[samples.rows[known]]],
            samples.table.splits,
            lambda place: samples[int(known[place])].key,
        )
        return digest, dataset.record(digest, content_findings(contents))


def open_live(
    config: Config, model: Fields | None = None, stop: StopFlag | None = None, has_target: bool = True
) -> LiveImages:
    """List the dataset of a configuration without a cache, and find out which of its images can be read.

    Args:
        config: Run configuration.
        model: Model part of its fingerprint, where it is known already.
        stop: Looked at while images are examined; None for no request to stop.
        has_target: See `LiveImages`.

    Raises:
        InputError: There are no images, or no VLM; or see `LiveImages`.
        DataError: Too many images cannot be read, or the file system does not answer.
        StoppedEarly: As `stop` asked.
    """
    model = model_part(config) if model is None else model
    dataset = dataset_of(config)
    if not dataset.samples:
        raise InputError(f"dataset.root: {dataset.root} holds no images")
    preprocessor = load_preprocessor(config.vlm.path, config.vlm.min_pixels, config.vlm.max_pixels)
    images = ImageDataset(dataset.samples, preprocessor, config.vlm)
    checked = check_images(config, images, dataset.samples.images, model, stop)
    return LiveImages(config, dataset, checked, images, model, has_target)
