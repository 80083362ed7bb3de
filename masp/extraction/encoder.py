"""The encoder applied to images as extraction does it, for whoever needs features without a cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from masp.cache.codec import as_read, is_finite
from masp.config import Config
from masp.errors import DataError
from masp.extraction.image_stream import HasImage, ImageDataset, PreparedImage, batches, image_stream
from masp.runtime.devices import encoder_dtype, pick_device, torch_dtype
from masp.runtime.prefetch import ReadAhead
from masp.vlm.features import Features
from masp.vlm.preprocessor import load_preprocessor
from masp.vlm.vision import VisionHalf, load_vision_half


class Encoder:
    """The vision half with its preprocessing, as extraction runs it.

    Args:
        config: Run configuration.
        vision: The vision half, if it is in memory already; None loads it.
    """

    def __init__(self, config: Config, vision: VisionHalf | None = None):
        self.config = config
        self.preprocessor = load_preprocessor(config.vlm.path, config.vlm.min_pixels, config.vlm.max_pixels)
        self.device = pick_device(config.extract.device, "extract.device")
        dtype = torch_dtype(encoder_dtype(config.cache.dtype, self.device))
        self.vision = vision or load_vision_half(config.vlm.path, dtype, self.device, config.vlm.attention)

    def stream(self, samples: Sequence[HasImage], num_workers: int, order: Iterable[int] | None = None) -> ReadAhead:
        """Preprocessed images of samples, in their order, or in another one that is taken as it is needed."""
        images = ImageDataset(samples, self.preprocessor, self.config.vlm)
        return image_stream(images, num_workers, "evaluate.num_workers", self.device, order)

    def prepare(self, sample: HasImage) -> PreparedImage:
        """The preprocessed image of one sample."""
        prepared = ImageDataset([sample], self.preprocessor, self.config.vlm)[0]
        return prepared.pin_memory() if self.device == "cuda" else prepared

    def encode(self, images: Sequence[PreparedImage]) -> list[Features]:
        """Features of any number of images as a cache would return them.

        On as many threads as extraction uses.
        """
        extract, threads = self.config.extract, torch.get_num_threads()
        torch.set_num_threads(extract.num_threads)
        try:
            return [
                as_read(features, self.config.cache.dtype)
                for batch in batches(images, extract.batch_tokens)
                for features in self.vision.encode([i.inputs for i in batch], [i.layout for i in batch])
            ]
        finally:
            torch.set_num_threads(threads)


def check_finite_features(features: Sequence[Features], images: Sequence[str], dtype: str) -> None:
    """Refuse features that were encoded now, and are not finite, before anything is made of them.

    Args:
        features: Features of some images.
        images: What the error names each by.
        dtype: `cache.dtype`.

    Raises:
        DataError: Names the first such image.
    """
    for image, found in zip(images, features, strict=True):
        if not is_finite(found):
            cause = "the weights of vlm.path are damaged"
            if dtype != "fp32":
                cause += f", or {dtype} cannot hold them: try cache.dtype=fp32, with what was trained on such features"
            raise DataError(f"{image}: the features are not finite in {dtype}; {cause}")
