"""The job dataset -> vision half -> cache: which shards to do, doing them, finishing the cache."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
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
    cached_aspects,
    make_layout,
    plain_write_errors,
    read_layout,
    shards_of,
    sidecar_path,
)
from masp.cache.manifest import read_manifest
from masp.cache.merge import add_answers, finalize, merge_sidecars, write_quarantine
from masp.cache.shard_state import (
    SidecarFingerprint,
    UnfinishedCache,
    absent_shards,
    digested_sidecar,
    fingerprint_of,
    map_shards,
    map_sidecars,
    num_quarantined,
    remedy,
    unfinished,
)
from masp.config import Config, load_aspects
from masp.config.feature_source import cache_directory
from masp.data.answer_table import load_answers
from masp.data.datasets import Dataset, ListedDataset, list_dataset
from masp.data.findings import Finding, log_findings
from masp.data.sample import Samples
from masp.data.splits.division import record_division
from masp.errors import FilesInUse, InputError, StoppedEarly
from masp.extraction.changes import (
    BadImages,
    Compared,
    compare_shard,
    dataset_changed,
    estimate_quarantined,
    samples_changed,
)
from masp.extraction.encode_shards import encode_shards
from masp.files.locks import locked
from masp.files.regular import exists, is_directory
from masp.files.text import reason
from masp.runtime.log import show
from masp.runtime.stop import StopFlag
from masp.vlm.families import resolve_directory
from masp.vlm.preprocessor import load_preprocessor

LOG = logging.getLogger(__name__)
PAUSE = 0.1
"""Seconds between two looks whether another process is ready."""
MAX_WAIT = 300.0
"""Seconds for which a process is waited for that compares a complete cache with the dataset."""


@dataclass(frozen=True)
class Job:
    """What every call that writes to a cache starts from."""

    config: Config
    directory: Path
    dataset: ListedDataset
    """Whoever compares shards with it has its annotations read first, `read` of their samples or `whole`."""
    model: Fields
    shards: list[Shard]
    """Shards of all generations, in the order of their numbers."""


def prepare(config: Config) -> Job:
    """List the dataset, make the directory and determine which shards the cache has.

    Raises:
        InputError: No images, no VLM, or the directory cannot be made.
    """
    directory = cache_directory(config)
    aspects = load_aspects(config.aspect_definitions)
    begun = read_layout(directory) if is_directory(directory, key="cache.dir") else None
    if begun is not None and _binds(directory):
        aspects = cached_aspects(directory, begun.answer_forms, aspects)
    dataset = list_dataset(config.dataset, aspects, directory)
    if not dataset.samples:
        raise InputError(f"dataset.root: {dataset.root} holds no images")
    model = model_fields(resolve_directory(config.vlm.path), config.vlm, config.cache.dtype)
    try:
        (directory / SHARDS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cache.dir: {directory} cannot be made: {reason(error)}") from None
    layout = read_layout(directory)
    with plain_write_errors(directory):
        record_division(directory, dataset.division)
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
    check_task(num_tasks, task_index)
    return extract_job(prepare(config), num_tasks, task_index, redo, stop)


def extract_job(
    job: Job, num_tasks: int, task_index: int, redo: Collection[str] | None = None, stop: StopFlag | None = None
) -> Path:
    """What `extract` does, from a dataset that has been listed already."""
    directory, alone = job.directory, num_tasks == 1
    if task_index == 0 and (new := _later_aspects(job)):
        LOG.info(
            "%s was begun before %s was defined, and does not hold its answers; `masp annotate` reads them, or extract "
            "into a new cache.dir",
            *(directory, " or ".join(new)),
        )
    mine = job.shards[task_index::num_tasks]
    if task_index == 0:  # one task reads all annotations, so that what is wrong with them is known at once
        log_findings(job.dataset.whole().record().findings, LOG)
    elif mine:
        job.dataset.read(Samples.join([shard.samples for shard in mine]))
    task = "" if alone else f" (task {task_index} of {num_tasks})"
    ranges = [(0, FINISHING)] if alone else [(shard.number, 1) for shard in mine]
    with holding(directory, ranges, task, waits=lambda: is_complete(directory), stop=stop):
        if alone:
            _forget_unused_layout(directory)
        layout = agree(job)
        todo = to_do(job, mine, layout, redo or ())
        if not todo and redo is None and exists(directory / MANIFEST, key="cache.dir"):
            manifest = read_manifest(directory)
            # of a cache from before they were kept
            if read_findings(directory, manifest) is None:
                _record_findings(job, layout, job.dataset.whole())
            if task_index == 0 and load_answers(directory, manifest.index.sha256, remedy(directory)) is None:
                with plain_write_errors(directory):
                    add_answers(directory, layout, manifest.index.sha256)
            show(f"{directory} is complete: {_summary(directory)}")
            return directory
        if todo:
            check_machine(job, layout)
        with plain_write_errors(directory):
            if todo or redo is not None:
                (directory / MANIFEST).unlink(missing_ok=True)  # what it says is no longer so
            for shard in todo:  # from here on a stopped job cannot take an old shard for a finished one
                sidecar_path(directory, shard.name).unlink(missing_ok=True)
        with _listing_quarantined(directory, layout) if alone else nullcontext():
            if todo:
                _encode(job, todo, layout, stop)
    missing: Sequence[str] = absent_shards(directory, layout)
    if not missing:
        try:
            with _listing_quarantined(directory, layout) if alone else nullcontext():
                _merge(job, layout, checked=mine)
        except UnfinishedCache as error:
            missing = error.missing
    if missing:
        show(f"task {task_index} of {num_tasks} is done; {len(missing)} shards of {directory} are still missing")
        return directory
    show(f"cache: {directory}: {_summary(directory)}")
    return directory


def check_task(num_tasks: int, task_index: int) -> None:
    """Refuse a task that there is not.

    Raises:
        InputError: Names the option.
    """
    if not 0 <= task_index < num_tasks:
        raise InputError(f"--task-index {task_index}: must be at least 0 and below --num-tasks, which is {num_tasks}")


def _later_aspects(job: Job) -> list[str]:
    """The aspects that are defined now and were not when the cache was begun."""
    return [name for name in load_aspects(job.config.aspect_definitions) if name not in job.dataset.aspects]


def finish(config: Config) -> Path:
    """Merge the sidecars of finished shards into index and manifest; encode nothing.

    Returns:
        The directory of the cache.

    Raises:
        InputError: Shards are missing, named, or the directory belongs to another configuration or dataset.
        DataError: Too many images are broken.
    """
    directory = cache_directory(config)
    layout = read_layout(directory)
    if layout is None:
        raise InputError(f"cache.dir: {directory} is not a feature cache; make one with `masp extract`")
    job = prepare(config)
    job.dataset.read(job.dataset.samples)
    agree(job)
    if missing := absent_shards(job.directory, layout):
        raise unfinished(job.directory, missing, len(job.shards))
    _merge(job, layout, checked=())
    show(f"cache: {job.directory}: {_summary(job.directory)}")
    return job.directory


def is_complete(directory: Path) -> bool:
    """Whether a cache has a manifest: whoever holds its shards is looking whether there is anything to do.

    Before anything is written, the manifest is removed.
    """
    return exists(directory / MANIFEST, key="cache.dir")


@contextmanager
def holding(
    directory: Path,
    ranges: Sequence[tuple[int, int]],
    who: str = "",
    lock: str = LOCK,
    work: str = "extraction",
    waits: Callable[[], bool] = lambda: False,
    stop: StopFlag | None = None,
) -> Iterator[None]:
    """Keep everyone else from writing these shards.

    Whoever is merging the sidecars holds all of them for a moment, and is waited for.

    Args:
        directory: Directory of the cache.
        ranges: Ranges of the lock file.
        who: What this process is, for the error.
        lock: Lock file in the directory.
        work: What these processes do, for the error.
        waits: Whether another process that holds them is waited for, up to `MAX_WAIT` seconds.
        stop: What ends this waiting.

    Raises:
        FilesInUse: Another process is writing them. StoppedEarly: `stop` was raised while another one was waited for.
    """
    began = time.monotonic()
    told = False
    while True:
        with locked(directory / lock, ranges, key="cache.dir") as free:
            if free:
                yield
                return
        if waits() and time.monotonic() - began < MAX_WAIT:
            if stop:
                raise StoppedEarly(f"cache.dir: {directory}: stopped while waiting for another process")
            if not told:
                LOG.info("%s: waiting for another process that compares the cache with the dataset", directory)
            told = True
            time.sleep(PAUSE)
            continue
        with locked(directory / lock, [(FINISHING, 1)], key="cache.dir") as nobody_merges:
            if nobody_merges:
                what = f"the shards of this task{who}" if who else "there"
                raise FilesInUse(
                    f"cache.dir: {directory}: another {work} is writing {what}; wait for it or stop it"
                    + (", and give every task an index of its own" if who else "")
                )
        with locked(directory / lock, [(FINISHING, 1)], key="cache.dir", wait=True):
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
    comparison = _Comparison(job, layout)
    compare = functools.partial(_compare_finished, job.directory, fingerprint_of(layout))
    for shard, found in zip(mine, map_shards(compare, mine), strict=True):
        if found is None or not comparison.keeps(found) or shard.name in redo:
            todo.append(shard)
    comparison.check()
    return todo


def _compare_finished(directory: Path, fingerprint: SidecarFingerprint, shard: Shard) -> Compared | None:
    """Compare a shard with its sidecar; None if it is not finished."""
    found = digested_sidecar(directory, shard.name, fingerprint)
    return None if found is None else compare_shard(shard, found[0])


class _Comparison:
    """Finished shards against the dataset as it is now, one after another."""

    def __init__(self, job: Job, layout: Layout):
        """Nothing compared yet."""
        self._job, self._layout = job, layout
        self._changes: list[str] = []

    def keeps(self, found: Compared) -> bool:
        """Note what was found of a shard; whether it can stay, which it cannot if an image in quarantine has changed.

        Raises:
            InputError: Other samples belong to it; names them.
        """
        if not found.has_same_keys:
            raise self._samples_changed()
        self._changes += found.changes
        return found.keeps

    def check(self) -> None:
        """Refuse what has changed.

        Raises:
            InputError: Samples came, went or changed; names them.
        """
        if self._layout.num_samples != {shard.name: len(shard.samples) for shard in self._job.shards}:
            raise self._samples_changed()
        if self._changes:
            raise dataset_changed(self._job.directory, self._changes)

    def _samples_changed(self) -> InputError:
        return samples_changed(self._job.directory, self._layout, self._job.dataset.samples.keys)


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
        job.directory,
        make_layout(dataset.name, dataset.categories, num_shards, first, job.model, machine, dataset.aspects),
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
    if not _binds(directory):
        with plain_write_errors(directory):
            (directory / LAYOUT).unlink(missing_ok=True)


def _binds(directory: Path) -> bool:
    """Whether the layout of a cache binds later calls: something was finished under it."""
    return exists(directory / MANIFEST, key="cache.dir") or any((directory / SHARDS).glob("*.json"))


def _encode(job: Job, todo: Sequence[Shard], layout: Layout, stop: StopFlag | None) -> None:
    bad = _bad_images(job, todo, layout)
    with nullcontext(stop) if stop is not None else StopFlag() as flag:
        encode_shards(job.config, job.directory, todo, layout, flag, bad)


@contextmanager
def _listing_quarantined(directory: Path, layout: Layout) -> Iterator[None]:
    """Whatever stops the work inside: write down which images could not be read so far. Merging writes it itself."""
    try:
        yield
    except BaseException:
        with plain_write_errors(directory):
            write_quarantine(directory, layout)
        raise


def _merge(job: Job, layout: Layout, checked: Sequence[Shard]) -> None:
    """Write index and manifest unless another task was first; `checked` shards were compared with the dataset.

    Every sidecar is read once.

    Raises:
        UnfinishedCache: Shards are missing.
        InputError: The dataset has changed.
        DataError: Too many images are in quarantine.
    """
    directory, names = job.directory, {shard.name for shard in checked}
    with locked(directory / LOCK, [(FINISHING, 1), (0, FINISHING)], key="cache.dir", wait=True):
        if exists(directory / MANIFEST, key="cache.dir"):
            return
        dataset = job.dataset.whole()
        comparison = _Comparison(job, layout)
        kept: list[bool] = []
        # other tasks may have seen other data
        others = [None if shard.name in names else shard for shard in job.shards]
        if len(others) != len(layout.shard_names):
            comparison.check()
        merged = merge_sidecars(
            directory, layout, compare_shard, others, lambda found: kept.append(comparison.keeps(found))
        )
        comparison.check()
        if again := [s.name for s, keeps in zip(filter(None, others), kept, strict=True) if not keeps]:
            raise InputError(str(unfinished(directory, again, len(job.shards))))
        num_bad = len(merged.quarantine)
        BadImages(directory, len(job.dataset.samples), job.config.extract.max_bad_fraction).add(num_bad)
        job.dataset.forget_keys()  # what follows takes as much memory again
        found = merged.content_findings()
        with plain_write_errors(directory):
            finalize(directory, layout, merged)
        _record_findings(job, layout, dataset, found)


def _record_findings(job: Job, layout: Layout, dataset: Dataset, found: list[Finding] | None = None) -> None:
    """Keep what is known of the dataset in the cache, and say what only the images' bytes tell."""
    with plain_write_errors(job.directory):
        record = record_findings(job.directory, layout, dataset, found)
    log_findings(record.findings[len(dataset.findings) :], LOG)


def _bad_images(job: Job, todo: Sequence[Shard], layout: Layout) -> BadImages:
    """Those in the finished shards that stay; raises DataError if they are too many already.

    Whole sidecars are read only where their beginnings say that this is so: every task would read those of all others.
    """
    again = {shard.name for shard in todo}
    staying = [name for name in layout.shard_names if name not in again]
    bad = BadImages(job.directory, len(job.dataset.samples), job.config.extract.max_bad_fraction)
    estimate = estimate_quarantined(job.directory, staying)
    if bad.allows(estimate):
        bad.add(estimate)
    else:
        bad.add(sum(filter(None, map_sidecars(num_quarantined, job.directory, layout, staying))))
    return bad


def _summary(directory: Path) -> str:
    manifest = read_manifest(directory)
    num_bad = manifest.quarantine.num_samples
    bad = f", {num_bad} in quarantine ({directory / QUARANTINE})" if num_bad else ", none in quarantine"
    return f"{manifest.num_samples:,} images in {len(manifest.shards)} shards, {manifest.num_bytes / 1e9:.2f} GB{bad}"
