"""The job dataset -> vision half -> cache: which shards to do, doing them, finishing the cache."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from masp.cache.fingerprint import Fields, compare, model_fields
from masp.cache.layout import (
    FINISHING,
    LAYOUT,
    LOCK,
    MANIFEST,
    QUARANTINE,
    SHARDS,
    Shard,
    agree_on_layout,
    make_layout,
    plain_write_errors,
    read_layout,
    shard_names,
    shards_of,
    sidecar_path,
)
from masp.cache.manifest import finalize, write_quarantine
from masp.cache.shard_state import (
    BadImages,
    changes_in,
    dataset_changed,
    finished_sidecar,
    read_manifest,
    same_keys,
    samples_changed,
    unfinished,
)
from masp.config import Config
from masp.data.datasets import Dataset, read_dataset
from masp.errors import FilesInUse, InputError
from masp.extraction.encode_shards import encode_shards
from masp.extraction.provenance import machine_part
from masp.files.locks import locked
from masp.runtime.stop import StopFlag
from masp.vlm.families import resolve_folder
from masp.vlm.vision import load_preprocessor


@dataclass(frozen=True)
class Job:
    """What every call that writes to a cache starts from."""

    config: Config
    folder: Path
    dataset: Dataset
    model: Fields
    shards: list[Shard]
    """Of all generations, in the order of their numbers."""


def prepare(config: Config) -> Job:
    """Read the dataset, make the folder and say which shards the cache has.

    Raises:
        InputError: no images, no VLM, or the folder cannot be made.
    """
    dataset = read_dataset(config.dataset)
    if not dataset.samples:
        raise InputError(f"dataset.root: {dataset.root} holds no images")
    model = model_fields(resolve_folder(config.vlm.path), config.vlm, config.cache.dtype)
    folder = Path(config.cache.dir)
    try:
        (folder / SHARDS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cache.dir: {folder} cannot be made: {error.strerror}") from None
    layout = read_layout(folder)
    return Job(config, folder, dataset, model, shards_of(layout, dataset.samples, config.cache.num_shards))


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
        config: of the run; `vlm`, `dataset`, `cache` and `extract` matter.
        num_tasks: over how many calls the shards are divided.
        task_index: which one this is, from 0; it does the shards whose number is `task_index` modulo `num_tasks`.
            The call that finds all shards finished writes index and manifest.
        redo: names of finished shards to do again, and merge the sidecars again in any case (repair).
        stop: looked at between batches; None lets SIGTERM and SIGINT stop the job.

    Returns:
        The cache's folder.

    Raises:
        InputError: the folder belongs to another configuration, dataset or machine, is in use, or cannot be written.
        DataError: too many images are broken, or the encoder gave values that are not finite.
        StoppedEarly: SIGTERM or SIGINT; finished shards are kept.
    """
    if not 0 <= task_index < num_tasks:
        raise InputError(f"--task-index {task_index}: must be at least 0 and below --num-tasks, which is {num_tasks}")
    job = prepare(config)
    folder, alone = job.folder, num_tasks == 1
    mine = job.shards[task_index::num_tasks]
    task = "" if alone else f" (task {task_index} of {num_tasks})"
    with holding(folder, [(0, FINISHING)] if alone else [(shard.number, 1) for shard in mine], task):
        if alone:
            _forget_unused_layout(folder)
        layout = agree(job)
        todo = to_do(job, mine, layout, redo or ())
        if not todo and redo is None and (folder / MANIFEST).exists():
            print(f"{folder} is complete: {_summary(folder, layout)}")
            return folder
        if todo:
            check_machine(job, layout)
        if todo or redo is not None:
            (folder / MANIFEST).unlink(missing_ok=True)  # what it says is no longer so
        for shard in todo:  # from here on a stopped job cannot take an old shard for a finished one
            sidecar_path(folder, shard.name).unlink(missing_ok=True)
        try:
            if todo:
                _encode(job, todo, layout, stop)
        finally:
            if alone:
                with plain_write_errors(folder):
                    write_quarantine(folder, _found(folder, layout))
    if missing := _missing(folder, layout):
        print(f"task {task_index} of {num_tasks} is done; {len(missing)} shards of {folder} are still missing")
        return folder
    _merge(job, layout, checked=mine)
    print(f"cache: {folder}: {_summary(folder, layout)}")
    return folder


def finish(config: Config) -> Path:
    """Merge the sidecars of finished shards into index and manifest; encode nothing.

    Returns:
        The cache's folder.

    Raises:
        InputError: shards are missing, named, or the folder belongs to another configuration or dataset.
        DataError: too many images are broken.
    """
    layout = read_layout(Path(config.cache.dir))
    if layout is None:
        raise InputError(f"cache.dir: {config.cache.dir} is no feature cache; make one with `masp extract`")
    job = prepare(config)
    agree(job)
    if missing := _missing(job.folder, layout):
        raise unfinished(job.folder, missing, len(job.shards))
    _merge(job, layout, checked=())
    print(f"cache: {job.folder}: {_summary(job.folder, layout)}")
    return job.folder


@contextmanager
def holding(folder: Path, ranges: Sequence[tuple[int, int]], who: str = "") -> Iterator[None]:
    """Keep everyone else from writing these shards.

    Whoever is merging the sidecars holds all of them for a moment, and is waited for.

    Args:
        folder: the cache.
        ranges: of the lock file.
        who: what this process is, for the error.

    Raises:
        FilesInUse: another process is writing them.
    """
    while True:
        with locked(folder / LOCK, ranges, key="cache.dir") as free:
            if free:
                yield
                return
        with locked(folder / LOCK, [(FINISHING, 1)], key="cache.dir") as nobody_merges:
            if nobody_merges:
                what = f"the shards of this task{who}" if who else "there"
                raise FilesInUse(
                    f"cache.dir: {folder}: another extraction is writing {what}; wait for it or stop it"
                    + (", and give every task an index of its own" if who else "")
                )
        with locked(folder / LOCK, [(FINISHING, 1)], wait=True, key="cache.dir"):
            pass


def to_do(job: Job, mine: Sequence[Shard], layout: dict, redo: Collection[str] = ()) -> list[Shard]:
    """Which of `mine` are to do; the finished ones are compared with the dataset.

    Args:
        job: of this call.
        mine: some of its shards.
        layout: of the folder.
        redo: names of shards that are to do in any case.

    Raises:
        InputError: samples came, went or changed; names them.
    """
    todo, changes = [], []
    for shard in mine:
        sidecar = finished_sidecar(job.folder, shard.name, layout)
        if sidecar is not None and not same_keys(shard, sidecar):
            raise samples_changed(job.folder, layout, (sample.key for sample in job.dataset.samples))
        found, keeps = ([], False) if sidecar is None else changes_in(shard, sidecar)
        changes += found
        if not keeps or shard.name in redo:
            todo.append(shard)
    counts = {name: count for generation in layout["generations"] for name, count in generation["shards"].items()}
    if counts != {shard.name: len(shard.samples) for shard in job.shards}:
        raise samples_changed(job.folder, layout, (sample.key for sample in job.dataset.samples))
    if changes:
        raise dataset_changed(job.folder, changes)
    return todo


def agree(job: Job) -> dict:
    """Write the folder's layout if there is none; returns the folder's.

    Raises:
        InputError: the folder belongs to another configuration or dataset; names the field and both values.
    """
    config, begun = job.config, read_layout(job.folder)
    if begun is None:
        # what cannot work is refused before anything is written
        load_preprocessor(config.vlm.path, config.vlm.min_pixels, config.vlm.max_pixels)
    machine = begun["machine"] if begun else machine_part(config)
    num_shards, dataset = config.cache.num_shards, job.dataset
    first = [shard for shard in job.shards if not shard.generation]
    return agree_on_layout(
        job.folder, make_layout(dataset.name, dataset.categories, num_shards, first, job.model, machine)
    )


def check_machine(job: Job, layout: dict) -> None:
    """Refuse to add features that another machine or library would make differently.

    Raises:
        InputError: names the field and both values.
    """
    remedy = "go on in the environment that began it, or extract into a new cache.dir"
    compare(layout["machine"], machine_part(job.config), f"cache.dir: {job.folder}", remedy)


def _forget_unused_layout(folder: Path) -> None:
    """Nothing was finished under the layout, so it binds nobody (a wrong setting, noticed and stopped at once)."""
    if not (folder / MANIFEST).exists() and not any((folder / SHARDS).glob("*.json")):
        (folder / LAYOUT).unlink(missing_ok=True)


def _encode(job: Job, todo: Sequence[Shard], layout: dict, stop: StopFlag | None) -> None:
    bad = _bad_images(job, todo, layout)
    with nullcontext(stop) if stop is not None else StopFlag() as flag:
        encode_shards(job.config, job.folder, todo, layout, flag, bad)


def _merge(job: Job, layout: dict, checked: Sequence[Shard]) -> None:
    """Write index and manifest unless another task was first; `checked` shards were compared with the dataset."""
    folder, names = job.folder, {shard.name for shard in checked}
    with locked(folder / LOCK, [(FINISHING, 1), (0, FINISHING)], wait=True, key="cache.dir"):
        if (folder / MANIFEST).exists():
            return
        # other tasks may have seen other data
        if again := to_do(job, [shard for shard in job.shards if shard.name not in names], layout):
            raise unfinished(folder, [shard.name for shard in again], len(job.shards))
        _bad_images(job, (), layout)
        with plain_write_errors(folder):
            finalize(folder, layout)


def _missing(folder: Path, layout: dict) -> list[str]:
    return [name for name in shard_names(layout) if finished_sidecar(folder, name, layout) is None]


def _found(folder: Path, layout: dict) -> Iterator[dict]:
    """Sidecars of the shards that are finished so far."""
    for name in shard_names(layout):
        if sidecar := finished_sidecar(folder, name, layout):
            yield sidecar


def _bad_images(job: Job, todo: Sequence[Shard], layout: dict) -> BadImages:
    """Those in the finished shards that stay; raises DataError if they are too many already."""
    again = {shard.name for shard in todo}
    bad = BadImages(job.folder, len(job.dataset.samples), job.config.extract.max_bad_fraction)
    bad.add(sum(len(s["quarantined"]) for s in _found(job.folder, layout) if s["name"] not in again))
    return bad


def _summary(folder: Path, layout: dict) -> str:
    manifest = read_manifest(folder)
    num_samples = sum(split["num_samples"] for split in manifest["splits"].values())
    num_bytes = sum(shard["bytes"] for shard in manifest["shards"])
    num_bad = manifest["quarantine"]["num_samples"]
    bad = f", {num_bad} in quarantine ({folder / QUARANTINE})" if num_bad else ", none in quarantine"
    return f"{num_samples:,} images in {len(shard_names(layout))} shards, {num_bytes / 1e9:.2f} GB{bad}"
