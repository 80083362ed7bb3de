"""Where features come from: a cache, or the encoder, which without a cache runs wherever they are needed."""

from __future__ import annotations

from pathlib import Path

from masp.config.schema import Config, Source
from masp.errors import InputError


def cache_directory(config: Config) -> Path:
    """The directory of the cache, for what cannot do without one.

    Raises:
        InputError: The configuration has no cache.
    """
    if config.cache.dir is None:
        raise InputError(
            "cache.dir = null: this run has no cache, its features are computed where they are needed; give cache.dir "
            "a directory for this command"
        )
    return Path(config.cache.dir)


def evaluation_source(config: Config) -> Source:
    """Where evaluation takes features from: `evaluate.source`, or without a cache always the encoder."""
    return "live" if config.cache.dir is None else config.evaluate.source
