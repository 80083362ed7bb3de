"""The sidecars of all shards of a cache: a few are read one after another, thousands by processes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from masp.cache.layout import Layout
from masp.cache.shard_state import Sidecar, SidecarFingerprint, digested_sidecar, fingerprint_of
from masp.runtime.process_pool import default_processes, process_pool

A = TypeVar("A")
R = TypeVar("R")

_MANY = 300
"""So many are read faster by processes, although these take a second to start."""
_CHUNK = 16


def map_shards(function: Callable[[A], R], shards: Sequence[A]) -> Iterator[R]:
    """Call a function for each of many shards, in other processes where they are many.

    Args:
        function: Can be pickled, as can what it returns.
        shards: What it is called with.

    Yields:
        What it returns, in the order of the shards.
    """
    if len(shards) < _MANY:
        yield from map(function, shards)
        return
    with process_pool(default_processes(), None, "reads the sidecars of a cache") as pool:
        yield from pool.map(function, shards, chunksize=_CHUNK)


def map_sidecars(
    function: Callable[[Sidecar], R], directory: Path, layout: Layout, names: Sequence[str] | None = None
) -> Iterator[R | None]:
    """Call a function with the sidecar of each finished shard; see `map_shards`.

    Args:
        function: Can be pickled, as can what it returns.
        directory: Directory of the cache.
        layout: Layout of the cache.
        names: Names of the shards; None for all, in the order of their numbers.

    Yields:
        What it returns; None for a shard that is not finished.
    """
    call = functools.partial(_call, function, directory, fingerprint_of(layout))
    yield from map_shards(call, layout.shard_names if names is None else names)


def _call(function: Callable[[Sidecar], R], directory: Path, fingerprint: SidecarFingerprint, name: str) -> R | None:
    found = digested_sidecar(directory, name, fingerprint)
    return None if found is None else function(found[0])


def missing_shards(directory: Path, layout: Layout) -> list[str]:
    """Names of the shards that are not finished."""
    found = map_sidecars(_is_there, directory, layout)
    return [name for name, there in zip(layout.shard_names, found, strict=True) if not there]


def _is_there(sidecar: Sidecar) -> bool:
    return True


def num_quarantined(sidecar: Sidecar) -> int:
    """How many images of a shard are in quarantine."""
    return len(sidecar.quarantined)


def keys_of(sidecar: Sidecar) -> list[str]:
    """Keys of all samples of a shard."""
    return [entry.key for entry in sidecar.entries]
