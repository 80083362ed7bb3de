"""A copy of a finished cache whose samples have distributions over the categories, by the cache's own writer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from masp.cache.codec import store
from masp.cache.layout import LAYOUT, SHARDS, Shard, layout_bytes, split_of
from masp.cache.merge import finalize
from masp.cache.reader import open_cache
from masp.cache.shard_state import fingerprint_of, read_sidecar
from masp.cache.writer import ShardWriter
from masp.data.sample import Sample, Samples

Votes = Callable[[str, Sequence[str]], tuple[float, ...] | None]


def drawn_votes(key: str, categories: Sequence[str]) -> tuple[float, ...] | None:
    """Ten votes that depend on the key alone; every fifth sample or so has none."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
    if seed % 5 == 0:
        return None
    counts = np.random.default_rng(seed).multinomial(10, np.full(len(categories), 1 / len(categories)))
    return tuple(int(count) / 10 for count in counts)


def cache_with_votes(source: Path, target: Path, votes: Votes = drawn_votes) -> Path:
    """Write the cache.

    A sample with a distribution has the category with the largest probability, the first of equals.

    Args:
        source: A finished cache; not changed.
        target: Directory of the copy.
        votes: Gives the distribution of a sample, from its key and the categories; None where it has none.
    """
    cache = open_cache(source)
    layout, categories = cache.manifest.layout, cache.categories
    (target / SHARDS).mkdir(parents=True)
    (target / LAYOUT).write_bytes(layout_bytes(layout))

    def sample(entry, split: str) -> Sample:
        found = votes(entry.key, categories)
        category = entry.category if found is None else categories[found.index(max(found))]
        return Sample(entry.key, split, "none", category, entry.answers, found)

    for number, name in enumerate(layout.shard_names):
        split, sidecar = split_of(name), read_sidecar(source, name)
        samples = Samples.of([sample(entry, split) for entry in sidecar.entries])
        writer = ShardWriter(target, Shard(number, name, split, 0, samples), fingerprint_of(layout))
        for each, entry in zip(samples, sidecar.samples, strict=False):
            read = cache.read(cache.row_of(entry.key))
            writer.add(
                each, store(read.features, cache.manifest.dtype), image_size=read.image_size, layout=read.layout,
                source=entry.source,
            )  # fmt: skip
        for entry in sidecar.quarantined:
            writer.quarantine(sample(entry, split), entry.path, entry.reason, entry.source)
        writer.finish()
    finalize(target, layout)
    return target
