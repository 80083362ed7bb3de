"""From an image file to the encoder's input, in DataLoader workers: read, digest, decode, preprocess."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from PIL import Image
from torch.utils.data import Dataset

from masp.cache.shard_state import Source
from masp.config.schema import VlmConfig
from masp.data.image_files.stored import Location, image_status
from masp.data.images import UnreadableImage, decode_image, read_image_file
from masp.files.text import reason
from masp.runtime.prefetch import ReadAhead
from masp.vlm.features import ImageLayout
from masp.vlm.preprocessor import Preprocessor, RefusedImage

BLANK = (224, 224)
"""Size of what replaces an image that cannot be read. One size for all: a broken header may claim any."""


@dataclass
class PreparedImage:
    """What a worker made of one image."""

    inputs: dict[str, torch.Tensor]
    """What the encoder takes, by name; of a blank if `reason` is given, empty if `failure` is."""
    layout: ImageLayout
    image_size: tuple[int, int]
    """Width and height as given to the image processor."""
    source: Source
    reason: str | None = None
    """Why the image goes to quarantine."""
    failure: str | None = None
    """Why the job must stop: the file system did not answer, which says nothing about the image."""
    repair: str | None = None
    """What kind of damage was repaired to read the image."""

    def pin_memory(self) -> PreparedImage:
        """With its inputs in page-locked memory. A DataLoader calls this."""
        return replace(self, inputs={name: tensor.pin_memory() for name, tensor in self.inputs.items()})


class HasImage(Protocol):
    """Anything with an image, such as a `masp.data.sample.Sample`."""

    @property
    def image(self) -> Location:
        """Where the image is."""


class ImageDataset(Dataset):
    """The images of samples, in their order.

    Args:
        samples: Whatever has an image.
        preprocessor: Image processor of the VLM.
        vlm: Section `vlm` of the configuration (max_side, transparency).
    """

    def __init__(self, samples: Sequence[HasImage], preprocessor: Preprocessor, vlm: VlmConfig):
        self.samples, self.preprocessor, self.vlm = samples, preprocessor, vlm

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> PreparedImage:
        return self.prepare(position)

    def prepare(self, position: int, change: Callable[[Image.Image], Image.Image] | None = None) -> PreparedImage:
        """Read and prepare the image of a sample.

        Args:
            position: Number of the sample.
            change: What is done to the decoded image before it is preprocessed, see
                `masp.extraction.live.augmentation`; None for nothing.
        """
        place = self.samples[position].image
        source = Source(None, None, None)
        repairs: list[str] = []
        try:
            # the time first: if the file is replaced meanwhile, the difference will show
            mtime_ns = _modified_ns(place)
            data = read_image_file(place)
            # digested and decoded are the same bytes
            source = Source(len(data), mtime_ns, hashlib.sha256(data).hexdigest())
            image = decode_image(data, self.vlm.max_side, transparency=self.vlm.transparency, repairs=repairs)
            inputs, layout = self.preprocessor(image if change is None else change(image))
        except UnreadableImage as error:
            return self._blank(source, error.reason)
        except OSError as error:
            return PreparedImage({}, ImageLayout(0), (0, 0), source, failure=f"{place}: {reason(error)}")
        except RefusedImage as error:
            return self._blank(source, str(error))
        repair = repairs[0] if repairs else None
        return PreparedImage(inputs, layout, image.size, source, repair=repair)

    def _blank(self, source: Source, reason: str) -> PreparedImage:
        inputs, layout = self.preprocessor(Image.new("RGB", BLANK))
        return PreparedImage(inputs, layout, BLANK, source, reason=reason)


def _modified_ns(image: Location) -> int | None:
    """Modification time of an image's file (ns); None if it cannot be examined, and reading it will say why."""
    try:
        return image_status(image).mtime_ns
    except OSError:
        return None


def image_stream(
    images: ImageDataset, num_workers: int, setting: str, device: str, order: Iterable[int] | None = None
) -> ReadAhead:
    """All images in order; any number of workers gives the same.

    Args:
        images: Images of some samples.
        num_workers: Processes that read them.
        setting: Setting that gives their number.
        device: `cpu` or `cuda`, where they go next.
        order: Numbers of the images; None for all.
    """
    numbers = range(len(images)) if order is None else order
    return ReadAhead(images, numbers, num_workers, setting, prefetch=4, pin_memory=device == "cuda")


def batches(images: Iterable[PreparedImage], batch_tokens: int) -> Iterator[list[PreparedImage]]:
    """Cut a shard's images into the encoder's batches: consecutive ones, as many as fit in `batch_tokens`.

    The encoder packs images of any size without padding, so there is nothing to gain from sorting them. Where a batch
    ends depends on the shard's images alone; an image with more tokens is a batch of its own.
    """
    batch: list[PreparedImage] = []
    tokens = 0
    for image in images:
        if batch and tokens + image.layout.num_tokens > batch_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(image)
        tokens += image.layout.num_tokens
    if batch:
        yield batch
