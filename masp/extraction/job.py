"""The job dataset -> vision half -> cache: which shards to do, doing them, finishing the cache."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from masp.cache.findings import read_findings, record_findings
from masp.cache.fingerprint import Fields, compare, machine_part, model_fields
from masp.cache.layout import (
    FINISHING,
    LAYOUT,
    LOCK,
    MANIFEST,
    QUARANTINE,
    SHARDS,
    Layout,
    Shard,
    agree_on_layout,
    make_layout,
    plain_write_errors,
    read_layout,
    shards_of,
    sidecar_path,
)
from masp.cache.manifest import finalize, read_manifest, write_quarantine
from masp.cache.shard_state import (
    BadImages,
    changes_in,
    dataset_changed,
    finished_sidecar,
    finished_sidecars,
    missing_shards,
    same_keys,
    samples_changed,
    unfinished,
)
from masp.config import Config
from masp.data.datasets import Dataset, read_dataset
from masp.data.findings import log_findings
from masp.errors import FilesInUse, InputError
from masp.extraction.encode_shards import encode_shards
from masp.files.locks import locked
from masp.files.regular import exists
from masp.files.text import reason
from masp.runtime.stop import StopFlag
from masp.vlm.families import resolve_directory
from masp.vlm.vision import load_preprocessor

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What every call that writes to a cache starts from."""

    config: Config
    directory: Path
    dataset: Dataset
    model: Fields
    shards: list[Shard]
    """Shards of all generations, in the order of their numbers."""


def prepare(config: Config) -> Job:
    """Read the dataset, make the directory and determine which shards the cache has.

    Raises:
        InputError: No images, no VLM, or the directory cannot be made.
    """
    dataset = read_dataset(config.dataset)
    if not dataset.samples:
        raise InputError(f"dataset.root: {dataset.root} holds no images")
    model = model_fields(resolve_directory(config.vlm.path), config.vlm, config.cache.dtype)
    directory = Path(config.cache.dir)
    try:
        (directory / SHARDS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cache.dir: {directory} cannot be made: {reason(error)}") from None
    layout = read_layout(directory)
    return Job(config, directory, dataset, model, shards_of(layout, dataset.samples, config.cache.num_shards))


def extract(
    config: Config,
    *,
    num_tasks: int = 1,
    task_index: int = 0,
    redo: Collection[str] | None = None,
    stop: StopFlag | None = None,
) -> Path:
    """Make the feature cache of a dataset, or what is missing of it.

    Args:
        config: Configuration of the run; `vlm`, `dataset`, `cache` and `extract` matter.
        num_tasks: Number of calls over which the shards are divided.
        task_index: Index of this call, from 0; it does the shards whose number is `task_index` modulo `num_tasks`.
            The call that finds all shards finished writes index and manifest.
        redo: Names of finished shards to do again, and merge the sidecars again in any case (repair).
        stop: Looked at between batches; None lets SIGTERM and SIGINT stop the job.

    Returns:
        The directory of the cache.

    Raises:
        InputError: The directory belongs to another configuration, dataset or machine, is in use, or cannot be written.
        DataError: Too many images are broken, or the encoder gave values that are not finite.
        StoppedEarly: SIGTERM or SIGINT; finished shards are kept.
    """
    if not 0 <= task_index < num_tasks:
        raise InputError(f"--task-index {task_index}: must be at least 0 and below --num-tasks, which is {num_tasks}")
    job = prepare(config)
    if task_index == 0:
        log_findings(job.dataset.record().findings, LOG)
    directory, alone = job.directory, num_tasks == 1
    mine = job.shards[task_index::num_tasks]
    task = "" if alone else f" (task {task_index} of {num_tasks})"
    with holding(directory, [(0, FINISHING)] if alone else [(shard.number, 1) for shard in mine], task):
        if alone:
            _forget_unused_layout(directory)
        layout = agree(job)
        todo = to_do(job, mine, layout, redo or ())
        if not todo and redo is None and exists(directory / MANIFEST, key="cache.dir"):
            if read_findings(directory, read_manifest(directory)) is None:  # of a cache from before they were kept
                _record_findings(job, layout)
            print(f"{directory} is complete: {_summary(directory)}")
            return directory
        if todo:
            check_machine(job, layout)
        with plain_write_errors(directory):
            if todo or redo is not None:
                (directory / MANIFEST).unlink(missing_ok=True)  # what it says is no longer so
            for shard in todo:  # from here on a stopped job cannot take an old shard for a finished one
                sidecar_path(directory, shard.name).unlink(missing_ok=True)
        try:
            if todo:
                _encode(job, todo, layout, stop)
        finally:
            if alone:
                with plain_write_errors(directory):
                    write_quarantine(directory, finished_sidecars(directory, layout))
    if missing := missing_shards(directory, layout):
        print(f"task {task_index} of {num_tasks} is done; {len(missing)} shards of {directory} are still missing")
        return directory
    _merge(job, layout, checked=mine)
    print(f"cache: {directory}: {_summary(directory)}")
    return directory


def finish(config: Config) -> Path:
    """Merge the sidecars of finished shards into index and manifest; encode nothing.

    Returns:
        The directory of the cache.

    Raises:
        InputError: Shards are missing, named, or the directory belongs to another configuration or dataset.
        DataError: Too many images are broken.
    """
    layout = read_layout(Path(config.cache.dir))
    if layout is None:
        raise InputError(f"cache.dir: {config.cache.dir} is not a feature cache; make one with `masp extract`")
    job = prepare(config)
    agree(job)
    if missing := missing_shards(job.directory, layout):
        raise unfinished(job.directory, missing, len(job.shards))
    _merge(job, layout, checked=())
    print(f"cache: {job.directory}: {_summary(job.directory)}")
    return job.directory


@contextmanager
def holding(directory: Path, ranges: Sequence[tuple[int, int]], who: str = "") -> Iterator[None]:
    """Keep everyone else from writing these shards.

    Whoever is merging the sidecars holds all of them for a moment, and is waited for.

    Args:
        directory: Directory of the cache.
        ranges: Ranges of the lock file.
        who: What this process is, for the error.

    Raises:
        FilesInUse: Another process is writing them.
    """
    while True:
        with locked(directory / LOCK, ranges, key="cache.dir") as free:
            if free:
                yield
                return
        with locked(directory / LOCK, [(FINISHING, 1)], key="cache.dir") as nobody_merges:
            if nobody_merges:
                what = f"the shards of this task{who}" if who else "there"
                raise FilesInUse(
                    f"cache.dir: {directory}: another extraction is writing {what}; wait for it or stop it"
                    + (", and give every task an index of its own" if who else "")
                )
        with locked(directory / LOCK, [(FINISHING, 1)], key="cache.dir", wait=True):
            pass


def to_do(job: Job, mine: Sequence[Shard], layout: Layout, redo: Collection[str] = ()) -> list[Shard]:
    """Which of `mine` are to do; the finished ones are compared with the dataset.

    Args:
        job: What this call starts from.
        mine: Some of its shards.
        layout: Layout of the cache.
        redo: Names of shards that are to do in any case.

    Raises:
        InputError: Samples came, went or changed; names them.
    """
    todo: list[Shard] = []
    changes: list[str] = []
    for shard in mine:
        sidecar = finished_sidecar(job.directory, shard.name, layout)
        if sidecar is not None and not same_keys(shard, sidecar):
            raise samples_changed(job.directory, layout, (sample.key for sample in job.dataset.samples))
        found, keeps = ([], False) if sidecar is None else changes_in(shard, sidecar)
        changes += found
        if not keeps or shard.name in redo:
            todo.append(shard)
    if layout.num_samples != {shard.name: len(shard.samples) for shard in job.shards}:
        raise samples_changed(job.directory, layout, (sample.key for sample in job.dataset.samples))
    if changes:
        raise dataset_changed(job.directory, changes)
    return todo


def agree(job: Job) -> Layout:
    """Write the directory's layout if there is none; returns the directory's.

    Raises:
        InputError: The directory belongs to another configuration or dataset; names the field and both values.
    """
    config, begun = job.config, read_layout(job.directory)
    if begun is None:
        # what cannot work is refused before anything is written
        load_preprocessor(config.vlm.path, config.vlm.min_pixels, config.vlm.max_pixels)
    machine = begun.machine if begun else machine_part(config)
    num_shards, dataset = config.cache.num_shards, job.dataset
    first = [shard for shard in job.shards if not shard.generation]
    return agree_on_layout(
        job.directory, make_layout(dataset.name, dataset.categories, num_shards, first, job.model, machine)
    )


def check_machine(job: Job, layout: Layout) -> None:
    """Refuse to add features that another machine or library would make differently.

    Raises:
        InputError: Names the field and both values.
    """
    remedy = "go on in the environment that began it, or extract into a new cache.dir"
    compare(layout.machine.fields, machine_part(job.config).fields, f"cache.dir: {job.directory}", remedy)


def _forget_unused_layout(directory: Path) -> None:
    """Nothing was finished under the layout, so it binds nobody (a wrong setting, noticed and stopped at once)."""
    if not exists(directory / MANIFEST, key="cache.dir") and not any((directory / SHARDS).glob("*.json")):
        with plain_write_errors(directory):
            (directory / LAYOUT).unlink(missing_ok=True)


def _encode(job: Job, todo: Sequence[Shard], layout: Layout, stop: StopFlag | None) -> None:
    bad = _bad_images(job, todo, layout)
    with nullcontext(stop) if stop is not None else StopFlag() as flag:
        encode_shards(job.config, job.directory, todo, layout, flag, bad)


def _merge(job: Job, layout: Layout, checked: Sequence[Shard]) -> None:
    """Write index and manifest unless another task was first; `checked` shards were compared with the dataset."""
    directory, names = job.directory, {shard.name for shard in checked}
    with locked(directory / LOCK, [(FINISHING, 1), (0, FINISHING)], key="cache.dir", wait=True):
        if exists(directory / MANIFEST, key="cache.dir"):
            return
        # other tasks may have seen other data
        if again := to_do(job, [shard for shard in job.shards if shard.name not in names], layout):
            raise unfinished(directory, [shard.name for shard in again], len(job.shards))
        _bad_images(job, (), layout)
        with plain_write_errors(directory):
            finalize(directory, layout)
        _record_findings(job, layout)


def _record_findings(job: Job, layout: Layout) -> None:
    """Keep what is known of the dataset in the cache, and say what only the images' bytes tell."""
    with plain_write_errors(job.directory):
        record = record_findings(job.directory, layout, job.dataset)
    log_findings(record.findings[len(job.dataset.findings) :], LOG)


def _bad_images(job: Job, todo: Sequence[Shard], layout: Layout) -> BadImages:
    """Those in the finished shards that stay; raises DataError if they are too many already."""
    again = {shard.name for shard in todo}
    bad = BadImages(job.directory, len(job.dataset.samples), job.config.extract.max_bad_fraction)
    bad.add(sum(len(s.quarantined) for s in finished_sidecars(job.directory, layout) if s.name not in again))
    return bad


def _summary(directory: Path) -> str:
    manifest = read_manifest(directory)
    num_bad = manifest.quarantine.num_samples
    bad = f", {num_bad} in quarantine ({directory / QUARANTINE})" if num_bad else ", none in quarantine"
    return f"{manifest.num_samples:,} images in {len(manifest.shards)} shards, {manifest.num_bytes / 1e9:.2f} GB{bad}"
