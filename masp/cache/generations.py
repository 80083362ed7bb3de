"""The generations of a cache: which samples it began with, and which were added to it later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from masp.cache.layout import Shard, assign


def shards_of(layout: dict | None, samples: Sequence[Any], num_shards: int) -> list[Shard]:
    """All shards of a cache, in the order of their numbers.

    Later generations hold the samples whose keys the layout lists for them; all others are of the first. Whether the
    samples are still the ones that the layout counted is for the caller to compare.

    Args:
        layout: of the folder; None if there is none yet.
        samples: the dataset's, with `.key` and `.split`.
        num_shards: `cache.num_shards`, for the first generation.
    """
    added = added_keys(layout)
    shards = assign([sample for sample in samples if sample.key not in added], num_shards)
    for number, generation in enumerate(layout["generations"][1:] if layout else (), 1):
        members = [sample for sample in samples if added.get(sample.key) == number]
        shards += assign(members, generation["num_shards"], number, len(shards))
    return shards


def added_keys(layout: dict | None) -> dict[str, int]:
    """Key -> generation, of all samples that were added after the first."""
    if layout is None:
        return {}
    return {key: number for number, g in enumerate(layout["generations"][1:], 1) for key in g["keys"]}


def make_generation(layout: dict, samples: Sequence[Any]) -> dict:
    """The layout's entry for a generation that is added: as many samples to a shard as the first one has.

    Its keys are listed, since a later dataset does not tell what was there when.

    Args:
        layout: of the cache.
        samples: the new ones, at least one.
    """
    number, first = len(layout["generations"]), layout["generations"][0]
    num_shards = max(1, round(len(samples) * len(first["shards"]) / sum(first["shards"].values())))
    shards = assign(samples, num_shards, number)
    return {
        "num_shards": num_shards,
        "shards": {shard.name: len(shard.samples) for shard in shards},
        "keys": sorted(sample.key for sample in samples),
    }
