"""Mending a damaged cache: verify it, and redo the shards that are damaged."""

from __future__ import annotations

from pathlib import Path

from masp.cache.layout import LAYOUT, plain_write_errors
from masp.cache.manifest import layout_of
from masp.cache.shard_state import read_manifest
from masp.cache.verify import Problem, verify_cache
from masp.config import Config
from masp.errors import DataError, InputError
from masp.extraction.job import extract
from masp.files.atomic import write_bytes
from masp.files.sealed import sealed


def repair(config: Config) -> list[Problem]:
    """Verify the cache of a configuration and redo its damaged shards, which come out byte for byte as they were.

    Returns:
        The problems that were found; the cache has none of them any more.

    Raises:
        InputError: the configuration, dataset or machine is not the cache's; nothing has been touched.
        DataError: a shard came out with other bytes than it once had.
    """
    folder = Path(config.cache.dir)
    problems = verify_cache(folder)
    if strange := next((p for p in problems if p.is_stranger), None):
        raise InputError(f"cache.dir: {folder}: {strange}")
    if not problems:
        return problems
    if any(problem.file == LAYOUT for problem in problems):
        with plain_write_errors(folder):
            write_bytes(folder / LAYOUT, sealed(layout_of(read_manifest(folder))))
    names = sorted({problem.shard for problem in problems if problem.shard})
    before = _tar_digests(folder)
    extract(config, redo=names)
    after = _tar_digests(folder)
    if changed := [name for name in names if before.get(name, after[name]) != after[name]]:
        raise DataError(
            f"cache.dir: {folder}: shard {changed[0]} was rebuilt, but with other bytes than it had; an image in it"
            " has changed: extract into a new cache.dir if what was trained on the old bytes matters"
        )
    return problems


def _tar_digests(folder: Path) -> dict[str, str]:
    """Digest of each tar as the manifest says it; nothing if the manifest is damaged."""
    try:
        return {shard["name"]: shard["sha256"] for shard in read_manifest(folder)["shards"]}
    except DataError:
        return {}
