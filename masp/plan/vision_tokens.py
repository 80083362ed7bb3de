"""From the sizes of images to their grids and numbers of vision tokens."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from masp.cache.codec import SampleRecord, encode_record
from masp.data.sample import Sample
from masp.vlm.vision import Preprocessor

_DIGEST = "0" * 64
"""As long as the digest that the cache's record of an image will hold."""


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """A sample whose image has a readable header."""

    sample: Sample
    size: tuple[int, int]
    """Width and height as the image processor gets them, in pixels."""
    grid: tuple[int, int, int]
    """Patches in time, height and width."""
    num_tokens: int
    """Vision tokens."""
    record_bytes: int
    """Bytes of the image's record in the cache; all of it is known but a digest, whose length is."""


@dataclass(frozen=True)
class TokenStatistics:
    """Distribution of the vision tokens of images."""

    min: int
    median: int
    mean: float
    p95: int
    max: int
    total: int


def plan_images(
    samples: Sequence[Sample], sizes: Sequence[tuple[int, int] | None], preprocessor: Preprocessor
) -> list[PlannedImage]:
    """Compute grid and tokens of every image whose header can be read, without decoding it.

    Args:
        samples: Samples of the dataset.
        sizes: Width and height of each image in pixels, None where the header is damaged.
        preprocessor: Image processor of the VLM.
    """
    merge = preprocessor.merge_size**2
    grids = {size: preprocessor.grid(*size) for size in {size for size in sizes if size is not None}}
    tokens = {size: math.prod(grid) // merge for size, grid in grids.items()}
    return [
        PlannedImage(sample, size, grids[size], tokens[size], _record_bytes(sample, size, grids[size]))
        for sample, size in zip(samples, sizes, strict=True)
        if size is not None
    ]


def plan_again(images: Sequence[PlannedImage], preprocessor: Preprocessor) -> list[PlannedImage]:
    """The same images with another image processor, in a fraction of the time of `plan_images`."""
    merge = preprocessor.merge_size**2
    grids = {size: preprocessor.grid(*size) for size in {image.size for image in images}}
    tokens = {size: math.prod(grid) // merge for size, grid in grids.items()}
    return [
        PlannedImage(
            image.sample,
            image.size,
            grids[image.size],
            tokens[image.size],
            image.record_bytes - _digits(image.grid) + _digits(grids[image.size]),
        )
        for image in images
    ]


def _record_bytes(sample: Sample, size: tuple[int, int], grid: tuple[int, int, int]) -> int:
    record = SampleRecord(sample.key, sample.split, sample.category, dict(sample.answers), size, grid, _DIGEST)
    return len(encode_record(record))


@functools.lru_cache(maxsize=1 << 16)
def _digits(grid: tuple[int, int, int]) -> int:
    """What of a record's length depends on the grid."""
    return sum(len(str(number)) for number in grid)


def token_statistics(images: Sequence[PlannedImage]) -> TokenStatistics:
    """Compute the distribution of vision tokens over at least one image."""
    counts = Counter(image.num_tokens for image in images)
    total, ordered = len(images), sorted(counts)

    def quantile(share: float) -> int:
        """The smallest number of tokens that this share of the images does not exceed."""
        seen = 0
        for tokens in ordered:
            seen += counts[tokens]
            if seen >= share * total:
                return tokens
        return ordered[-1]

    num_tokens = sum(tokens * count for tokens, count in counts.items())
    return TokenStatistics(
        min=ordered[0],
        median=quantile(0.5),
        mean=num_tokens / total,
        p95=quantile(0.95),
        max=ordered[-1],
        total=num_tokens,
    )
