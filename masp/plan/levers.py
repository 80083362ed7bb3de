"""What would make the cache smaller, and by how much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from masp.config import Config
from masp.errors import InputError
from masp.plan.disk import Planned, tar_sizes
from masp.plan.work import extraction_flops
from masp.vlm.flops import VisionShape
from masp.vlm.vision import load_preprocessor

TOKEN_LIMITS = (1024, 512, 256, 128)
"""Vision tokens that `vlm.max_pixels` may be set to allow."""


def plan_images(samples: Sequence, sizes: Sequence[tuple[int, int] | None], preprocessor) -> list[Planned]:
    """Grid and tokens of every image whose header can be read, without looking at it.

    Args:
        samples: of the dataset.
        sizes: width and height of each, None where the header is broken.
        preprocessor: `masp.vlm.vision.Preprocessor`.
    """
    merge = preprocessor.merge_size**2
    grids = {size: preprocessor.grid(*size) for size in {size for size in sizes if size is not None}}
    return [
        Planned(sample, size, grids[size], grids[size][0] * grids[size][1] * grids[size][2] // merge)
        for sample, size in zip(samples, sizes, strict=True)
        if size is not None
    ]


def pixel_levers(config: Config, vision: VisionShape, shards: dict[str, list[Planned]], hidden_size: int) -> list[dict]:
    """Lower values of `vlm.max_pixels`: tokens, bytes of the cache and FLOP of the encoder with each.

    Args:
        config: of the run.
        vision: sizes of the encoder.
        shards: the images by shard.
        hidden_size: D.
    """
    largest = max(p.num_tokens for members in shards.values() for p in members)
    side = _token_side(load_preprocessor(config.vlm.path))
    levers = []
    for limit in (limit for limit in TOKEN_LIMITS if limit < largest):
        try:
            preprocessor = load_preprocessor(config.vlm.path, config.vlm.min_pixels, limit * side**2)
        except InputError:  # below the smallest number of pixels: no lever
            break
        smaller = {
            name: plan_images([p.sample for p in members], [p.size for p in members], preprocessor)
            for name, members in shards.items()
        }
        images = [p for members in smaller.values() for p in members]
        levers.append(
            {
                "setting": f"vlm.max_pixels={limit * side**2}",
                "mean_tokens": sum(p.num_tokens for p in images) / len(images),
                "bytes": sum(tar_sizes(smaller, hidden_size, config.cache.dtype).values()),
                "extraction_flops": extraction_flops(vision, images),
            }
        )
    return levers


def _token_side(preprocessor) -> int:
    """Pixels per side of a vision token."""
    return preprocessor.processor.patch_size * preprocessor.merge_size


def token_statistics(images: Sequence[Planned]) -> dict:
    """Distribution of vision tokens."""
    counts = Counter(p.num_tokens for p in images)
    total, ordered = len(images), sorted(counts)

    def quantile(share: float) -> int:
        """The smallest number of tokens that so large a share of the images does not exceed."""
        seen = 0
        for tokens in ordered:
            seen += counts[tokens]
            if seen >= share * total:
                return tokens
        return ordered[-1]

    num_tokens = sum(tokens * count for tokens, count in counts.items())
    return {
        "min": ordered[0],
        "median": quantile(0.5),
        "mean": num_tokens / total,
        "p95": quantile(0.95),
        "max": ordered[-1],
        "total": num_tokens,
    }
