"""From the sizes of images to their grids and numbers of vision tokens."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from masp.cache.codec import SampleRecord, encode_record
from masp.data.sample import Sample
from masp.vlm.vision import Preprocessor

_DIGEST = "0" * 64
"""As long as the digest that the cache's record of an image will hold."""


@dataclass(frozen=True)
class PlannedImage:
    """A sample whose image has a readable header."""

    sample: Sample
    size: tuple[int, int]
    """Width and height as the image processor gets them, in pixels."""
    grid: tuple[int, int, int]
    """Patches in time, height and width."""
    num_tokens: int
    """Vision tokens."""

    @functools.cached_property
    def record_bytes(self) -> int:
        """Bytes of the image's record in the cache; all of it is known but a digest, whose length is."""
        sample, answers = self.sample, dict(self.sample.answers)
        record = SampleRecord(sample.key, sample.split, sample.category, answers, self.size, self.grid, _DIGEST)
        return len(encode_record(record))


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
    return [
        PlannedImage(sample, size, grids[size], grids[size][0] * grids[size][1] * grids[size][2] // merge)
        for sample, size in zip(samples, sizes, strict=True)
        if size is not None
    ]


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
