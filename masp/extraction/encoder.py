"""The encoder applied to images as extraction does it, for whoever needs features without a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from masp.cache.codec import as_read
from masp.config import Config
from masp.extraction.image_stream import Picture, Pictures, batches, picture_stream
from masp.runtime.devices import encoder_dtype, pick_device, torch_dtype
from masp.runtime.prefetch import ReadAhead
from masp.vlm.vision import load_preprocessor, load_vision_half


class Encoder:
    """The vision half with its preprocessing, as extraction runs it."""

    def __init__(self, config: Config):
        self.config = config
        self.preprocessor = load_preprocessor(config.vlm.path, config.vlm.min_pixels, config.vlm.max_pixels)
        self.device = pick_device(config.extract.device, "extract.device")
        dtype = torch_dtype(encoder_dtype(config.cache.dtype, self.device))
        self.vision = load_vision_half(config.vlm.path, dtype, self.device, config.vlm.attention)

    def stream(self, samples: Sequence[Any], num_workers: int) -> ReadAhead:
        """Preprocessed pictures of samples (anything with an `image_path`), in order."""
        pictures = Pictures(samples, self.preprocessor, self.config.vlm.max_side)
        return picture_stream(pictures, num_workers, "evaluate.num_workers", self.device)

    def encode(self, pictures: Sequence[Picture]) -> list[Tensor]:
        """Features of any number of pictures as the cache would give them back, each `[T, D]`.

        On as many threads as extraction uses.
        """
        extract, threads = self.config.extract, torch.get_num_threads()
        torch.set_num_threads(extract.num_threads)
        try:
            return [
                as_read(tensor, self.config.cache.dtype)
                for batch in batches(pictures, extract.batch_tokens)
                for tensor in self.vision.encode([p.pixels for p in batch], [p.grid for p in batch])
            ]
        finally:
            torch.set_num_threads(threads)
