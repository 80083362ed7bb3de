"""What would make the cache smaller, and by how much."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from masp.config import Config
from masp.errors import InputError
from masp.plan.disk import Shards, tar_sizes
from masp.plan.tokens import PlannedImages, layouts_of
from masp.plan.work import extraction_flops
from masp.vlm.cost.flops import Encoder
from masp.vlm.preprocessor import Preprocessor, load_preprocessor

TOKEN_LIMITS = (1024, 512, 256, 128)
"""Vision tokens that `vlm.max_pixels` may be set to allow."""


@dataclass(frozen=True)
class Lever:
    """A setting that makes the cache smaller."""

    setting: str
    """As on the command line: `key=value`."""
    mean_tokens: float
    """Vision tokens per image with it."""
    bytes: int
    """Bytes of the cache with it."""
    extraction_flops: float
    """FLOP of the encoder with it."""


def pixel_levers(
    config: Config,
    vision: Encoder,
    images: PlannedImages,
    shards: Shards,
    hidden_size: int,
    num_deep_maps: int = 0,
) -> list[Lever]:
    """Compute what lower values of `vlm.max_pixels` would save.

    Args:
        config: Run configuration.
        vision: Sizes of the encoder.
        images: Images with readable headers, at least one.
        shards: Which of them are in which shard.
        hidden_size: Hidden size D of the language model.
        num_deep_maps: Number K of the deep maps of a VLM with DeepStack.

    Returns:
        One for each limit below the largest image; none where the image processor has no such limit.
    """
    largest = max(p.num_tokens for p, _ in images.groups)
    original = load_preprocessor(config.vlm.path)
    if not original.has_pixel_limits:
        return []
    side = _token_side(original)
    levers = []
    for limit in (limit for limit in TOKEN_LIMITS if limit < largest):
        try:
            preprocessor = load_preprocessor(config.vlm.path, config.vlm.min_pixels, limit * side**2)
        except InputError:  # below the smallest number of pixels
            break
        layouts = layouts_of([size for size, _ in images.kinds], preprocessor)
        kept = images.is_planned(layouts)
        place_of = np.cumsum(kept) - 1
        smaller = images.again(layouts)[kept]
        left = {name: place_of[places[kept[places]]] for name, places in shards.items()}
        levers.append(
            Lever(
                setting=f"vlm.max_pixels={limit * side**2}",
                mean_tokens=int(smaller.num_tokens.sum()) / len(smaller),
                bytes=sum(tar_sizes(smaller, left, hidden_size, config.cache.dtype, num_deep_maps).values()),
                extraction_flops=extraction_flops(vision, smaller),
            )
        )
    return levers


def _token_side(preprocessor: Preprocessor) -> int:
    """Pixels per side of a vision token."""
    return preprocessor.image_processor.patch_size * preprocessor.image_processor.merge_size
