"""A real feature cache without a VLM: random features, three shards, one image in quarantine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch

from masp.cache.codec import store
from masp.cache.fingerprint import FORMAT_VERSION, OWN_FIELDS, Machine, this_machine
from masp.cache.layout import LAYOUT, SHARDS, assign, layout_bytes, make_layout
from masp.cache.merge import finalize
from masp.cache.shard_state import Source, fingerprint_of
from masp.cache.writer import ShardWriter
from masp.data.sample import Sample
from masp.vlm.features import Features, ImageLayout

CATEGORIES = ("awe", "fear")
HIDDEN_SIZE = 8
PLACEHOLDER = 7


def model_part(dtype: str = "fp32") -> dict:
    """A model part of a fingerprint."""
    own = {**dict.fromkeys(OWN_FIELDS), "format_version": FORMAT_VERSION, "weights": "0" * 64, "dtype": dtype}
    return {**own, "attention": "sdpa", "quantisation": "none", "config.model_type": "none", "processor.scale": 0.5}


def machine_part() -> Machine:
    """A machine part of a fingerprint."""
    return this_machine("cpu", "fp32", 64, 1)


def _draw(shape: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
    """Numbers that are the same on every machine."""
    return torch.randint(-64, 64, shape, generator=random) / 16


def make_small_cache(
    directory: Path,
    num_train: int = 5,
    num_test: int = 2,
    dtype: str = "fp32",
    num_deep_maps: int = 0,
    separator: int | None = None,
    machine: Machine | None = None,
    votes: Callable[[int], tuple[float, ...] | None] = lambda number: None,
) -> Path:
    """Write a cache; the first training sample is in quarantine.

    Args:
        directory: Directory of the cache.
        num_train: Number of training samples.
        num_test: Number of test samples.
        dtype: `cache.dtype`.
        num_deep_maps: K of a VLM with DeepStack; 0 for one without.
        separator: Token id that the processor writes before the last placeholder, for a VLM without a grid.
        machine: Machine part of the fingerprint; None for this machine's.
        votes: Distribution over the categories of the sample with a number.
    """
    (directory / SHARDS).mkdir(parents=True)
    samples = [
        Sample(f"{split}/{CATEGORIES[n % 2]}/{n:03d}%2Ejpg", split, Path("none"), CATEGORIES[n % 2], answers, votes(n))
        for split, count in (("train", num_train), ("test", num_test))
        for n in range(count)
        for answers in [{"scene": "sea side", "brightness": "low"} if n % 3 else {}]
    ]
    shards = assign(samples, 3)
    cache_layout = make_layout("folder", CATEGORIES, 3, shards, model_part(dtype), machine or machine_part())
    (directory / LAYOUT).write_bytes(layout_bytes(cache_layout))
    random = torch.Generator().manual_seed(0)
    for shard in shards:
        writer = ShardWriter(directory, shard, fingerprint_of(cache_layout))
        for number, sample in enumerate(shard.samples):
            if sample.key.endswith("000%2Ejpg") and sample.split == "train":
                writer.quarantine(sample, "train/awe/000.jpg", "file not found", Source(None, None, None))
                continue
            count = number + 2
            tokens = _draw((count, HIDDEN_SIZE), random)
            deep = _draw((num_deep_maps, count, HIDDEN_SIZE), random) if num_deep_maps else None
            layout = ImageLayout(count, (1, 2, 2 * count))
            if separator is not None:
                layout = ImageLayout(count, None, ((PLACEHOLDER, count - 1), (separator, 1), (PLACEHOLDER, 1)))
            stored, source = store(Features(tokens, deep), dtype), Source(9, 10, "1" * 64)
            writer.add(sample, stored, image_size=(40, 30), layout=layout, source=source)
        writer.finish()
    finalize(directory, cache_layout)
    return directory


def reseal(path: Path, key: str, spelling: str) -> None:
    """Give a key of a sealed file a value as it is spelled in JSON, under a right digest."""
    value = json.loads(path.read_bytes())
    del value["digest"]
    value[key] = "@@"
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":")).replace('"@@"', spelling)
    value["digest"] = hashlib.sha256(canonical.encode()).hexdigest()
    path.write_text(json.dumps(value, sort_keys=True, indent=1).replace('"@@"', spelling) + "\n")


SPELLINGS = {
    "deep": "[" * 50_000 + "]" * 50_000,
    "NaN": "NaN",
    "too large for a float": "1e999",
    "a number of 400 digits": "1" + "0" * 400,
    "a number of 9,000 digits": "9" * 9_000,
    "null": "null",
    "an object": '{"a": 1}',
    "a string": '"x"',
    "a long string": '"' + "x" * 100_000 + '"',
}
"""Values that no file of a cache has where they are tried."""
