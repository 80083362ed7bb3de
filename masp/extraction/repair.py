"""Repairing a damaged cache: verify it, and redo the shards that are damaged."""

from __future__ import annotations

from pathlib import Path

from masp.cache.layout import LAYOUT, layout_bytes, plain_write_errors
from masp.cache.manifest import read_manifest
from masp.cache.verify import Problem, verify_cache
from masp.config import Config
from masp.config.feature_source import cache_directory
from masp.errors import DataError, InputError
from masp.extraction.job import extract
from masp.files.atomic import write_bytes


def repair(config: Config) -> list[Problem]:
    """Verify the cache of a configuration and redo its damaged shards, which come out byte for byte as they were.

    Returns:
        The problems that were found; the cache no longer has any of them.

    Raises:
        InputError: The configuration, dataset or machine is not the cache's; nothing has been touched.
        DataError: A shard came out with other bytes than it once had.
    """
    directory = cache_directory(config)
    problems = verify_cache(directory)
    if strange := next((p for p in problems if p.is_stranger), None):
        raise InputError(f"cache.dir: {directory}: {strange}")
    if not problems:
        return problems
    if any(problem.file == LAYOUT for problem in problems):
        with plain_write_errors(directory):
            write_bytes(directory / LAYOUT, layout_bytes(read_manifest(directory).layout))
    names = sorted({problem.shard for problem in problems if problem.shard})
    before = _tar_digests(directory)
    extract(config, redo=names)
    after = _tar_digests(directory)
    if changed := [name for name in names if before.get(name, after[name]) != after[name]]:
        raise DataError(
            f"cache.dir: {directory}: shard {changed[0]} was rebuilt, but with other bytes than it had; an image in it"
            " has changed: extract into a new cache.dir if what was trained on the old bytes matters"
        )
    return problems


def _tar_digests(directory: Path) -> dict[str, str]:
    """Digest of each tar as the manifest says it; nothing if the manifest is damaged."""
    try:
        return {shard.name: shard.sha256 for shard in read_manifest(directory).shards}
    except DataError:
        return {}
