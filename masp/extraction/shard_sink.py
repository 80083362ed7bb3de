"""The last stage of an extraction: encoded batches into tars, on a thread of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from masp.cache.codec import all_finite, store
from masp.cache.layout import Layout, Shard
from masp.cache.shard_state import fingerprint_of
from masp.cache.writer import ShardWriter
from masp.config import Config
from masp.data.image_files.stored import Location
from masp.data.sample import Sample
from masp.errors import DataError
from masp.extraction.changes import BadImages
from masp.extraction.image_stream import PreparedImage
from masp.extraction.progress import Progress
from masp.files.text import shown
from masp.vlm.features import Features

LOG = logging.getLogger(__name__)

_NAMED = 3
"""How many images of each kind of repair are named."""


@dataclass(frozen=True)
class Encoded:
    """A batch on its way to the tar."""

    shard: Shard
    images: Sequence[PreparedImage]
    features: Sequence[Features]
    """Per image, on the encoder's device."""
    ready: torch.cuda.Event | None
    """On a GPU: when the features are there."""


class Writing:
    """Writes the batches of one shard after another; call it with each, in order."""

    def __init__(self, config: Config, directory: Path, layout: Layout, bad: BadImages, progress: Progress):
        self.config, self.directory, self.bad, self.progress = config, directory, bad, progress
        self._fingerprint = fingerprint_of(layout)
        self._writer: ShardWriter | None = None
        self._samples: Iterator[Sample] = iter(())
        self._left = 0
        self._copies: torch.cuda.Stream | None = None
        self._repaired: dict[str, list[str]] = {}

    def __call__(self, encoded: Encoded) -> None:
        """Write a batch, and finish its shard if it is the last one of it.

        Raises:
            InputError: The cache cannot be written.
            DataError: Too many images cannot be read, or features are not
                finite.
        """
        if self._writer is None:
            self._writer = ShardWriter(self.directory, encoded.shard, self._fingerprint)
            self._samples, self._left = iter(encoded.shard.samples), len(encoded.shard.samples)
        num_bytes = 0
        for image, stored in zip(encoded.images, self._stored(encoded), strict=True):
            sample = next(self._samples)
            if image.reason is not None:
                self._writer.quarantine(sample, self._relative(sample.image), image.reason, image.source)
                continue
            if stored is None:
                raise DataError(
                    f"the features of sample {sample.key} ({sample.image}) are not finite in "
                    f"{self.config.cache.dtype}; try cache.dtype=fp32 in a new cache.dir, or remove the image"
                )
            if image.repair is not None:
                self._repaired.setdefault(image.repair, []).append(self._relative(sample.image))
            num_bytes += self._writer.add(
                sample, stored, image_size=image.image_size, layout=image.layout, source=image.source
            )
        self._left -= len(encoded.images)
        if not self._left:
            sidecar, self._writer = self._writer.finish(), None
            self.bad.add(len(sidecar.quarantined))
        self.progress.wrote(len(encoded.images), num_bytes)

    def say_repairs(self) -> None:
        """Say which images had to be repaired to be read, and how many."""
        for kind, paths in sorted(self._repaired.items()):
            named = ", ".join(shown(path) for path in paths[:_NAMED]) + (", ..." if len(paths) > _NAMED else "")
            LOG.info("repaired on reading: %d images, each a %s: %s", len(paths), kind, named)

    def abandon(self) -> None:
        """Leave nothing of an unfinished shard behind."""
        if self._writer is not None:
            self._writer.abandon()

    def _stored(self, encoded: Encoded) -> list[dict[str, torch.Tensor] | None]:
        """Per image what goes into the tar, on the CPU; None if its features are not finite."""
        if encoded.ready is None:
            return [self._finite(features) for features in encoded.features]
        if self._copies is None:
            self._copies = torch.cuda.Stream(encoded.features[0].tokens.device)
        # a stream of their own: on the encoder's, these copies would wait for the batches that were launched since
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(encoded.ready)
            stored = [self._finite(features) for features in encoded.features]
            return [s and {name: tensor.cpu() for name, tensor in s.items()} for s in stored]

    def _finite(self, features: Features) -> dict[str, torch.Tensor] | None:
        stored = store(features, self.config.cache.dtype)
        return stored if all_finite(stored) else None

    def _relative(self, image: Location) -> str:
        """The image as the user knows it: relative to the dataset's root where it is inside."""
        path, root = Path(str(image)), self.config.dataset.root
        return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
