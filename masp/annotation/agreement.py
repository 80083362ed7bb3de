"""How far the answers that `masp annotate` gives agree with those of people, on images that these annotated.

The answers are given by the same procedure, and compared; nothing of them is stored among the annotations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from masp.annotation.asking import Answer, VlmAnnotator
from masp.annotation.job import answered, open_own_cache, progress
from masp.annotation.units import UnitReader, units_of
from masp.annotation.wanted import aspects_to_annotate, open_samples
from masp.cache.annotations.manifest import annotations_directory
from masp.cache.annotations.source import AnswerSource, answer_source
from masp.cache.layout import plain_write_errors
from masp.cache.reader import Cache
from masp.config import Config
from masp.config.aspects import FROM_PIXELS, Aspect
from masp.data.questions import Questions, questions_of
from masp.errors import InputError, StoppedEarly
from masp.files.atomic import write_bytes
from masp.files.sealed import sealed
from masp.results.agreement import Agreement, agreement
from masp.runtime.log import show
from masp.runtime.prefetch import ReadAhead
from masp.runtime.stop import StopFlag

FILE = "_agreement.json"
"""In the directory of the annotations; its name begins with `_`, so that the directory still reads as one table."""


@dataclass(frozen=True)
class AspectAgreement:
    """The agreement about one aspect, and how the answers were given."""

    agreement: Agreement
    source: AnswerSource


@dataclass(frozen=True)
class AgreementFile:
    """`annotations/_agreement.json`."""

    format_version: Literal[1]
    aspects: dict[str, AspectAgreement]


def measure_agreement(config: Config, num_images: int) -> Path:
    """Answer images that people annotated, compare, print a table and write `_agreement.json`.

    Args:
        config: Run configuration, as for `masp.annotation.job.annotate`.
        num_images: Largest number of images per aspect, chosen by a hash of their keys.

    Returns:
        The file.

    Raises:
        InputError: No finished cache of this VLM, no image that people annotated, or the file cannot be written.
        StoppedEarly: On request; nothing is written.
    """
    if num_images < 1:
        raise InputError(f"--agreement {num_images}: must be at least 1")
    aspects, (cache, model), questions = aspects_to_annotate(config), open_own_cache(config), questions_of(config)
    own = cache.answers()
    keys = cache.index.keys
    chosen: dict[Aspect, Sequence[int]] = {}
    for aspect in aspects:
        if aspect.name in own.columns:
            rows = [row for row, number in enumerate(own.columns[aspect.name].numbers.tolist()) if number >= 0]
            rows.sort(key=lambda row: hashlib.sha256(keys[row].encode()).digest())
            chosen[aspect] = tuple(sorted(rows[:num_images]))
    if not chosen:
        raise InputError(
            f"cache.dir: {cache.directory}: people annotated none of {', '.join(a.name for a in aspects)}; there is "
            "nothing to agree with"
        )
    answers = _answers(config, cache, questions, chosen)
    found = {}
    for aspect, asked in chosen.items():
        column = own.columns[aspect.name]
        theirs = [column.texts[column.numbers[row]] for row in asked]
        given = [answers[aspect.name][row].text for row in asked]
        source = answer_source(config, aspect, questions.aspect_first(aspect.name), model)
        found[aspect.name] = AspectAgreement(agreement(theirs, given, aspect.kind == "list", config.seed), source)
    path = annotations_directory(cache.directory) / FILE
    with plain_write_errors(path.parent):
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, sealed(AgreementFile(1, found), omit_none=True))
    show(*_table(found), f"agreement: {path}")
    return path


def _answers(
    config: Config, cache: Cache, questions: Questions, chosen: Mapping[Aspect, Sequence[int]]
) -> Mapping[str, Mapping[int, Answer]]:
    samples = open_samples(config) if any(aspect.annotate in FROM_PIXELS for aspect in chosen) else None
    images = None if samples is None else dict(zip(samples.keys, samples.images, strict=True))
    units = units_of(cache, 0, chosen, config.annotate.batch_size)
    found: dict[str, dict[int, Answer]] = {aspect.name: {} for aspect in chosen}
    reader, threads = UnitReader(cache, units, images, config.vlm.transparency), torch.get_num_threads()
    torch.set_num_threads(config.annotate.num_threads)
    try:
        with (
            StopFlag() as stop,
            ReadAhead(reader, range(len(units)), config.annotate.num_workers, "annotate.num_workers") as stream,
            progress(sum(map(len, chosen.values()))) as bar,
        ):
            # after the workers, which are forked before there are threads
            vlm = None if all(unit.from_pixels for unit in units) else VlmAnnotator(config, questions)
            for unit, item in zip(units, stream, strict=True):
                for name, given in answered(unit, item, vlm).items():
                    found[name].update(zip(unit.rows, given, strict=True))
                bar.update(len(unit.rows) * len(unit.aspects))
                if stop:
                    raise StoppedEarly("stopped on request; an agreement is measured as a whole, so nothing is written")
    finally:
        torch.set_num_threads(threads)
    return found


def _table(found: Mapping[str, AspectAgreement]) -> list[str]:
    width = max(len("aspect"), *map(len, found))
    lines = [f"{'aspect':<{width}} {'images':>7}  {'accuracy':<22}  {'kappa':<22}  token F1"]
    for name, each in found.items():
        values = each.agreement
        cells = [
            _cell(value, interval)
            for value, interval in (
                (values.accuracy, values.accuracy_ci95),
                (values.kappa, values.kappa_ci95),
                (values.token_f1, values.token_f1_ci95),
            )
        ]
        lines.append(f"{name:<{width}} {values.num_images:>7,}  {cells[0]:<22}  {cells[1]:<22}  {cells[2]}".rstrip())
    return lines


def _cell(value: float | None, interval: tuple[float, float] | None) -> str:
    return "" if value is None or interval is None else f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
