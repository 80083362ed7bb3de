"""Adding new images to a finished cache: a generation of shards of their own; the old ones are not touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from masp.cache.layout import (
    FINISHING,
    LAYOUT,
    MANIFEST,
    Layout,
    layout_bytes,
    make_generation,
    plain_write_errors,
    read_layout,
    shards_of,
)
from masp.cache.shard_state import absent_shards, finished_sidecar, unfinished
from masp.config import Config
from masp.config.feature_source import cache_directory
from masp.data.splits.division import record_division
from masp.errors import InputError
from masp.extraction.changes import known_keys
from masp.extraction.job import (
    Job,
    agree,
    check_machine,
    check_task,
    extract_job,
    holding,
    is_complete,
    prepare,
    to_do,
)
from masp.files.atomic import write_bytes
from masp.files.locks import locked
from masp.runtime.log import show

EXTENDING = ".extending"
"""Locked by whoever decides about a new generation."""


def extend(config: Config, *, num_tasks: int = 1, task_index: int = 0) -> Path:
    """Encode the images that the dataset has gained since its cache was made.

    Interrupted, the same command goes on. With several tasks, the first that comes writes down the new generation, the
    others find it.

    Args:
        config: Configuration that the cache was made with; its dataset as it is now.
        num_tasks: Number of calls over which the new shards are divided.
        task_index: Index of this call, from 0.

    Returns:
        The directory of the cache.

    Raises:
        InputError: No finished cache exists; samples of it went or changed, named; or the configuration
            or the machine is not the cache's. Nothing has been touched then.
        DataError, StoppedEarly: As `masp.extraction.job.extract`.
    """
    check_task(num_tasks, task_index)
    directory = cache_directory(config)
    if read_layout(directory) is None:
        raise InputError(f"cache.dir: {directory} is not a feature cache; make one with `masp extract`")
    job = prepare(config)
    with locked(directory / EXTENDING, [(0, 1)], key="cache.dir", wait=True):
        job = _with_generation(job)
    return extract_job(job, num_tasks, task_index)


def _with_generation(job: Job) -> Job:
    """Write the new samples into the layout, unless they are there already; returns the job with all shards."""
    directory, samples = job.directory, job.dataset.samples
    written = read_layout(directory)
    assert written is not None, f"{directory} had a layout a moment ago"
    layout = _without_unused(directory, written)
    num_shards, first = job.config.cache.num_shards, layout.generations[0].shards.keys()
    if first.isdisjoint(absent_shards(directory, layout)):
        shards = job.shards if layout is written else shards_of(layout, samples, num_shards)
        if layout.num_samples == {shard.name: len(shard.samples) for shard in shards}:
            # nothing came: each of many tasks must not read all sidecars to learn that
            return job if layout is written else replace(job, shards=shards_of(written, samples, num_shards))
    job.dataset.whole()
    missing, known = known_keys(directory, layout)
    # only sidecars tell which samples were there at first
    if not first.isdisjoint(missing):
        raise unfinished(directory, sorted(missing), len(layout.shard_names))
    is_known = np.array([key in known for key in samples.keys], dtype=bool)
    old = replace(job, shards=shards_of(layout, samples[is_known], num_shards))
    agree(old)
    to_do(old, old.shards, layout)  # names what went or changed
    new = samples[~is_known]
    if not len(new):
        return replace(job, shards=shards_of(written, samples, num_shards))
    check_machine(job, layout)
    extended = replace(layout, generations=(*layout.generations, make_generation(layout, new)))
    with holding(directory, [(0, FINISHING)], waits=lambda: is_complete(directory)), plain_write_errors(directory):
        record_division(directory, job.dataset.division, grown=True)
        (directory / MANIFEST).unlink(missing_ok=True)  # what it says is no longer so
        write_bytes(directory / LAYOUT, layout_bytes(extended))
    show(f"cache: {directory}: {len(new):,} new images form generation {len(layout.generations)}")
    return replace(job, shards=shards_of(extended, samples, num_shards))


def _without_unused(directory: Path, layout: Layout) -> Layout:
    """The layout but for a last generation of which no shard was finished: the dataset may have gone another way."""
    *others, last = layout.generations
    if not others or any(finished_sidecar(directory, name, layout) for name in last.shards):
        return layout
    return replace(layout, generations=tuple(others))
