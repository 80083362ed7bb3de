"""The job cache -> answers of the VLM: what lacks an aspect, asking shard by shard, merging."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from masp.annotation.asking import Answer, VlmAnnotator
from masp.annotation.units import Unit, UnitReader, units_of
from masp.annotation.wanted import Lack, aspects_to_annotate, lacks_of, open_samples, whole_digest
from masp.cache.annotations.manifest import (
    DIRECTORY,
    LOCK,
    Origin,
    StoredAspect,
    annotations_directory,
    read_stored,
    write_stored,
)
from masp.cache.annotations.parts import Part, agree_on_source, forget, read_part, write_part
from masp.cache.annotations.source import AnswerSource, answer_source, check_source
from masp.cache.annotations.table import StoredAnswer, is_whole, table_bytes, write_table
from masp.cache.fingerprint import Fields, model_part
from masp.cache.layout import FINISHING, plain_write_errors
from masp.cache.manifest import read_manifest
from masp.cache.reader import Cache, open_cache
from masp.config import Config
from masp.config.aspects import FROM_PIXELS, Aspect
from masp.config.feature_source import cache_directory
from masp.data.questions import Questions, questions_of
from masp.data.sample import Samples
from masp.data.sources.containers.arrow_columns import require_pyarrow
from masp.errors import InputError, StoppedEarly
from masp.extraction.job import holding
from masp.files.locks import locked
from masp.runtime.log import show
from masp.runtime.prefetch import ReadAhead
from masp.runtime.stop import StopFlag

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What a call starts from."""

    config: Config
    cache: Cache
    questions: Questions
    sources: Mapping[Aspect, AnswerSource]
    """Aspect -> what its answers depend on."""
    lacks: Mapping[str, Sequence[Lack]]
    """Name of an aspect -> per shard the images that lack it."""
    samples: Samples | None
    """The images of the dataset, where they are needed and there."""

    @property
    def directory(self) -> Path:
        """Directory of the cache."""
        return self.cache.directory

    @property
    def shards(self) -> list[str]:
        """Names of the shards, in the order of their numbers."""
        return [shard.name for shard in self.cache.manifest.shards]

    @property
    def index(self) -> str:
        """Digest of the cache's index."""
        return self.cache.manifest.index.sha256


def open_own_cache(config: Config) -> tuple[Cache, Fields]:
    """The cache of a configuration with the annotations of people alone, and the model part of its fingerprint.

    Raises:
        InputError: No cache, an unfinished one, or one of another VLM, another dataset or other aspects.
    """
    cache, model = open_cache(cache_directory(config)), model_part(config)
    cache.check_model(model)
    cache.check_dataset(config)
    cache.check_aspects(config)
    return cache, model


def prepare(config: Config) -> Job:
    """Open the cache and determine which images lack which aspects.

    Raises:
        InputError: No finished cache of this VLM, an aspect that is not defined, or stored answers that depend on
            something else.
    """
    require_pyarrow("annotate")
    aspects = aspects_to_annotate(config)
    cache, model = open_own_cache(config)
    questions = questions_of(config)
    sources = {aspect: answer_source(config, aspect, questions.aspect_first(aspect.name), model) for aspect in aspects}
    is_new = any(aspect.name not in cache.manifest.aspects for aspect in aspects)
    samples = open_samples(config) if is_new or any(a.annotate in FROM_PIXELS for a in aspects) else None
    lacks = lacks_of(config, cache, cache.answers(), samples if is_new else None, aspects)
    return Job(config, cache, questions, sources, lacks, samples)


def annotate(config: Config, *, num_tasks: int = 1, task_index: int = 0, stop: StopFlag | None = None) -> Path:
    """Answer what images lack, or what is missing of it.

    Args:
        config: Run configuration; `vlm`, `dataset`, `cache`, `aspects`, `annotate` and `engine.precision` matter.
        num_tasks: Number of calls over which the shards are divided.
        task_index: Index of this call, from 0; it does the shards whose number is `task_index` modulo `num_tasks`. The
            call that finds the answers of all shards writes the files.
        stop: Looked at between batches; None lets SIGTERM, SIGUSR2 and SIGINT stop the job.

    Returns:
        The directory of the answers.

    Raises:
        InputError: See `prepare`; or the answers are being written by another process, or cannot be written.
        StoppedEarly: On request; the answers of finished shards are kept.
    """
    if not 0 <= task_index < num_tasks:
        raise InputError(f"--task-index {task_index}: must be at least 0 and below --num-tasks, which is {num_tasks}")
    job, alone = prepare(config), num_tasks == 1
    directory = annotations_directory(job.directory)
    mine = range(len(job.shards))[task_index::num_tasks]
    with plain_write_errors(directory):
        directory.mkdir(exist_ok=True)
    task = "" if alone else f" (task {task_index} of {num_tasks})"
    ranges = [(0, FINISHING)] if alone else [(number, 1) for number in mine]
    with holding(directory, ranges, task, LOCK, "annotation"):
        missing = [aspect for aspect in job.sources if not _is_complete(job, aspect)]
        with plain_write_errors(directory):
            for aspect in missing:
                agree_on_source(job.directory, aspect.name, job.sources[aspect])
        todo = {number: _to_do(job, missing, number) for number in mine}
        if any(todo.values()):
            with nullcontext(stop) if stop is not None else StopFlag() as flag:
                _ask(job, todo, flag)
    unfinished = [aspect.name for aspect in missing if not _merge(job, aspect)]
    if unfinished:
        show(f"task {task_index} of {num_tasks} is done; other shards of {', '.join(unfinished)} are still missing")
        return directory
    show(*_summary(job))
    return directory


def forget_answers(config: Config, aspects: Sequence[str]) -> None:
    """Delete the stored answers to some aspects; what people annotated stays.

    Raises:
        InputError: No cache, or the answers are being written.
    """
    cache = cache_directory(config)
    read_manifest(cache)
    directory = annotations_directory(cache)
    with plain_write_errors(directory):
        directory.mkdir(exist_ok=True)
    with holding(directory, [(0, FINISHING)], "", LOCK, "annotation"), plain_write_errors(directory):
        found = forget(cache, aspects)
    for aspect in aspects:
        show(f"{directory}: {aspect}: " + ("answers deleted" if aspect in found else "there were no answers"))


def _is_complete(job: Job, aspect: Aspect) -> bool:
    """Whether the answers to an aspect are there for the whole cache.

    Raises:
        InputError: They are there and depend on something else.
    """
    stored = read_stored(job.directory).get(aspect.name)
    if stored is None:
        return False
    here = job.sources[aspect]
    what = f"{job.directory / DIRECTORY}: aspect {aspect.name}"
    remedy = f"give the old value, or forget the answers with `masp annotate --forget {aspect.name}`"
    is_done = stored.index == job.index and stored.wanted == whole_digest(job.lacks[aspect.name])
    found = stored.source
    if is_done:  # no new answers meet the old ones, so the machine makes no difference
        found = AnswerSource(found.definition, found.vlm, found.settings, here.machine)
    check_source(found, here, what, remedy)
    return is_done and is_whole(job.directory, aspect.name, stored)


def _to_do(job: Job, aspects: Sequence[Aspect], shard: int) -> dict[Aspect, Lack]:
    """Aspects whose answers this shard lacks."""
    lacks = {aspect: job.lacks[aspect.name][shard] for aspect in aspects}
    name = job.shards[shard]
    return {
        aspect: lack
        for aspect, lack in lacks.items()
        if read_part(job.directory, aspect.name, job.sources[aspect], name, lack.digest) is None
    }


def _ask(job: Job, todo: Mapping[int, Mapping[Aspect, Lack]], stop: StopFlag) -> None:
    """Answer shard after shard; every part that is finished stays, whatever happens to the next.

    Raises:
        InputError: See `VlmAnnotator` and `UnitReader`, or memory ran out.
        StoppedEarly: As `stop` asked.
    """
    config, threads = job.config, torch.get_num_threads()
    units = [u for number, found in todo.items() for u in _units(job, number, found)]
    images = None if job.samples is None else dict(zip(job.samples.keys, job.samples.images, strict=True))
    reader = UnitReader(job.cache, units, images, config.vlm.transparency)
    torch.set_num_threads(config.annotate.num_threads)
    try:
        # workers are forked before there are threads
        with (
            ReadAhead(reader, range(len(units)), config.annotate.num_workers, "annotate.num_workers") as stream,
            progress(sum(len(unit.rows) * len(unit.aspects) for unit in units)) as bar,
        ):
            vlm = None if all(unit.from_pixels for unit in units) else VlmAnnotator(config, job.questions)
            waiting = iter(units)
            for number, found in todo.items():
                answers: dict[str, dict[int, Answer]] = {aspect.name: {} for aspect in found}
                for _ in _units(job, number, found):
                    unit, item = next(waiting), next(stream)
                    for name, given in answered(unit, item, vlm).items():
                        answers[name].update(zip(unit.rows, given, strict=True))
                    bar.update(len(unit.rows) * len(unit.aspects))
                    if stop:
                        raise StoppedEarly(
                            f"stopped on request; {annotations_directory(job.directory)} keeps the answers of finished "
                            "shards, the same command resumes"
                        )
                with plain_write_errors(annotations_directory(job.directory)):
                    for aspect, lack in found.items():
                        part = _part(job, aspect, number, lack, answers[aspect.name])
                        write_part(job.directory, aspect.name, job.sources[aspect], part)
    except torch.OutOfMemoryError:
        raise InputError(
            f"annotate.batch_size = {config.annotate.batch_size}: a batch does not fit into the GPU's memory; give a "
            "smaller value and, since answers depend on it, forget those that were begun with --forget"
        ) from None
    finally:
        torch.set_num_threads(threads)


def _units(job: Job, shard: int, todo: Mapping[Aspect, Lack]) -> list[Unit]:
    rows = {aspect: lack.asked for aspect, lack in todo.items()}
    return units_of(job.cache, shard, rows, job.config.annotate.batch_size)


@contextmanager
def progress(total: int) -> Iterator[tqdm]:
    """A bar that counts answers and says how much time is left."""
    pause_s = 0.1 if sys.stderr.isatty() else 30.0  # a log file is not a screen
    with tqdm(total=total, unit="answer", desc="annotate", mininterval=pause_s) as bar:
        yield bar


def answered(unit: Unit, item: Any, vlm: VlmAnnotator | None) -> Mapping[str, Sequence[Answer]]:
    """Aspect -> answer to each image of a unit, of which `UnitReader` gave an item."""
    if unit.from_pixels:
        return {name: [Answer(text, 1.0) for text in texts] for name, texts in item.items()}
    assert vlm is not None, "a unit of the VLM needs it"
    return vlm.answer(item, unit.aspects)


def _part(job: Job, aspect: Aspect, shard: int, lack: Lack, answers: Mapping[int, Answer]) -> Part:
    keys = job.cache.index.keys
    asked: Origin = "pixels" if aspect.annotate in FROM_PIXELS else "vlm"
    found = []
    for row, text in zip(lack.rows.tolist(), lack.given, strict=True):
        if text is not None:
            found.append(StoredAnswer(keys[row], text, 1.0, "dataset"))
        else:
            found.append(StoredAnswer(keys[row], answers[row].text, answers[row].confidence, asked))
    return Part(job.shards[shard], lack.digest, job.sources[aspect].digest, tuple(found))


def _merge(job: Job, aspect: Aspect) -> bool:
    """Write the file of an aspect unless another task was first; whether all its parts are there.

    Raises:
        InputError: It cannot be written, or the cache has changed meanwhile.
    """
    directory, source = job.directory, job.sources[aspect]
    lock = annotations_directory(directory) / LOCK
    with locked(lock, [(FINISHING, 1), (0, FINISHING)], key="cache.dir", wait=True):
        if _is_complete(job, aspect):
            return True
        answers: list[StoredAnswer] = []
        for name, lack in zip(job.shards, job.lacks[aspect.name], strict=True):
            part = read_part(directory, aspect.name, source, name, lack.digest)
            if part is None:
                return False
            answers += part.answers
        if read_manifest(directory).index.sha256 != job.index:
            raise InputError(f"cache.dir: {directory} changed while it was annotated; run the same command again")
        from_pixels = aspect.annotate in FROM_PIXELS
        question = None if from_pixels else job.questions.aspect_first(aspect.name)
        vlm = None if from_pixels else job.cache.manifest.fingerprint.digest
        data = table_bytes(aspect.name, answers, question, vlm)
        with plain_write_errors(annotations_directory(directory)):
            sha256 = write_table(directory, aspect.name, data)
            counts = dict.fromkeys(("vlm", "pixels", "dataset"), 0)
            for each in answers:
                counts[each.origin] += each.answer is not None
            stored = StoredAspect(
                index=job.index,
                wanted=whole_digest(job.lacks[aspect.name]),
                bytes=len(data),
                sha256=sha256,
                num_answers={origin: count for origin, count in counts.items() if count},  # type: ignore[misc]
                num_absent=sum(each.answer is None for each in answers),
                source=source,
            )
            write_stored(directory, {**read_stored(directory), aspect.name: stored})
    return True


def _summary(job: Job) -> list[str]:
    """What is stored now, and what to do next."""
    directory, stored = annotations_directory(job.directory), read_stored(job.directory)
    lines = []
    for aspect in job.sources:
        found = stored[aspect.name]
        by = ", ".join(f"{count:,} {_WHO[origin]}" for origin, count in found.num_answers.items()) or "no answers"
        absent = f", {found.num_absent:,} images without it" if found.num_absent else ""
        lines.append(f"annotate: {aspect.name}: {by}{absent}")
    lines.append(
        f"annotations: {directory}; next: `masp annotate --review FILE.html` shows them, `masp train --stage stage1` "
        "learns from them"
    )
    return lines


_WHO = {"vlm": "by the VLM", "pixels": "from pixels", "dataset": "by people"}
