"""From an image file to the encoder's input, in DataLoader workers: read, digest, decode, preprocess."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from masp.data.images import UnreadableImage, decode_image, read_image_file
from masp.files.text import first_line, reason
from masp.runtime.prefetch import ReadAhead
from masp.vlm.vision import Preprocessor

BLANK = (224, 224)
"""Size of what stands for an image that cannot be read. One size for all: a broken header may claim any."""


@dataclass
class Picture:
    """What a worker made of one image."""

    pixel_values: torch.Tensor | None
    """`[P, F]` fp32; of a blank if `reason` is given, None if `failure` is."""
    grid: tuple[int, int, int]
    num_tokens: int
    image_size: tuple[int, int]
    """Width and height as given to the image processor."""
    source: dict
    """Of the image file: `bytes`, `mtime_ns`, `sha256`; each None if it could not be read."""
    reason: str | None = None
    """Why the image goes to quarantine."""
    failure: str | None = None
    """Why the job must stop: the file system did not answer, which says nothing about the image."""

    @property
    def pixels(self) -> torch.Tensor:
        """`pixel_values` of an image without `failure`."""
        assert self.pixel_values is not None, self.failure
        return self.pixel_values

    def pin_memory(self) -> Picture:
        """With pixel values in page-locked memory. A DataLoader calls this."""
        return self if self.pixel_values is None else replace(self, pixel_values=self.pixel_values.pin_memory())


class Pictures(Dataset):
    """The images of samples, in their order."""

    def __init__(self, samples: Sequence[Any], preprocessor: Preprocessor, max_side: int | None):
        self.samples, self.preprocessor, self.max_side = samples, preprocessor, max_side

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> Picture:
        path = self.samples[position].image_path
        source: dict[str, int | str | None] = {"bytes": None, "mtime_ns": None, "sha256": None}
        try:
            # the time first: if the file is replaced meanwhile, the difference will show
            mtime_ns = os.stat(path).st_mtime_ns if os.path.exists(path) else None
            data = read_image_file(path)
            # digested and decoded are the same bytes
            source = {"bytes": len(data), "mtime_ns": mtime_ns, "sha256": hashlib.sha256(data).hexdigest()}
            image = decode_image(data, self.max_side)
            pixel_values, grid = self.preprocessor(image)
        except UnreadableImage as error:
            return self._blank(source, error.reason)
        except OSError as error:
            return Picture(None, (0, 0, 0), 0, (0, 0), source, failure=f"{path}: {reason(error)}")
        except ValueError as error:
            return self._blank(source, f"refused by the image processor: {first_line(error)}")
        return Picture(pixel_values, grid, self._num_tokens(grid), image.size, source)

    def _blank(self, source: dict, reason: str) -> Picture:
        pixel_values, grid = self.preprocessor(Image.new("RGB", BLANK))
        return Picture(pixel_values, grid, self._num_tokens(grid), BLANK, source, reason=reason)

    def _num_tokens(self, grid: tuple[int, int, int]) -> int:
        return grid[0] * grid[1] * grid[2] // self.preprocessor.merge_size**2


def picture_stream(pictures: Pictures, num_workers: int, setting: str, device: str) -> ReadAhead:
    """All pictures in order, any number of workers gives the same.

    Args:
        pictures: of some samples.
        num_workers: processes that read them.
        setting: where their number comes from.
        device: `cpu` or `cuda`, where they go next.
    """
    return ReadAhead(pictures, range(len(pictures)), num_workers, setting, prefetch=4, pin_memory=device == "cuda")


def batches(pictures: Iterable[Picture], batch_tokens: int) -> Iterator[list[Picture]]:
    """Cut a shard's pictures into the encoder's batches: consecutive ones, as many as fit in `batch_tokens`.

    The encoder packs images of any size without padding, so there is nothing to gain from sorting them. Where a batch
    ends depends on the shard's pictures alone; a picture with more tokens is a batch of its own.
    """
    batch: list[Picture] = []
    tokens = 0
    for picture in pictures:
        if batch and tokens + picture.num_tokens > batch_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(picture)
        tokens += picture.num_tokens
    if batch:
        yield batch
