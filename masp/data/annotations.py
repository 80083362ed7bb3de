"""Reading the annotation files of a dataset: a few by threads, millions by processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tqdm import tqdm

from masp.config.aspects import Aspects
from masp.data.answers import read_annotation
from masp.data.findings import meant_aspect
from masp.errors import InputError
from masp.files.text import reason
from masp.runtime.process_pool import default_processes, process_pool

# Annotations are small files, often on a network disk: threads wait for many at a time.
_NUM_THREADS = 8
_THREAD_CHUNK = 256
_PROCESS_CHUNK = 2048
_MANY = 20_000
"""So many are read faster by processes, although these take a second to start."""

Answers = tuple[tuple[str, ...], tuple[str, ...]]
"""Annotated aspects and their answers."""


@dataclass
class Chunk:
    """What some annotation files say."""

    numbers: list[int] = field(default_factory=list)
    """Per file its place in `answers`; -1 if there is none."""

    answers: list[Answers] = field(default_factory=list)
    """Each once: images have few different ones."""

    misspelled: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Key that is nearly an aspect, and that aspect -> number of files that have the key and not the aspect itself."""


def read_annotations(root: str, paths: Sequence[str | None], aspects: Aspects) -> Iterator[Chunk]:
    """Read annotation files, in their order.

    Args:
        root: Directory of the dataset, with a slash at its end.
        paths: Annotation files, relative to the root; None where an image has none.
        aspects: Aspects to read.

    Raises:
        DataError: One is damaged. InputError: One cannot be read.
    """
    many = len(paths) > _MANY
    size = _PROCESS_CHUNK if many else _THREAD_CHUNK
    chunks = [paths[start : start + size] for start in range(0, len(paths), size)]
    with tqdm(total=len(paths), desc="annotations", unit="image", delay=1.0, leave=False, disable=None) as progress:
        for chunk in (_by_processes if many else _by_threads)(root, chunks, aspects):
            yield chunk
            progress.update(len(chunk.numbers))


def _by_processes(root: str, chunks: list[Sequence[str | None]], aspects: Aspects) -> Iterator[Chunk]:
    with process_pool(default_processes(), None, "reads annotations") as pool:
        yield from pool.map(_read_chunk, [root] * len(chunks), chunks, [aspects] * len(chunks))


def _by_threads(root: str, chunks: list[Sequence[str | None]], aspects: Aspects) -> Iterator[Chunk]:
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        try:
            yield from pool.map(_read_chunk, [root] * len(chunks), chunks, [aspects] * len(chunks))
        except BaseException:
            # Without this, one broken file is reported only after all others have been read.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _read_chunk(root: str, paths: Sequence[str | None], aspects: Aspects) -> Chunk:
    chunk = Chunk()
    places: dict[Answers, int] = {}
    for path in paths:
        chunk.numbers.append(-1 if path is None else _read_one(root + path, aspects, chunk, places))
    chunk.answers = list(places)
    return chunk


def _read_one(path: str, aspects: Aspects, chunk: Chunk, places: dict[Answers, int]) -> int:
    """Read a file; returns the place of its answers, -1 if it does not exist."""
    try:
        annotation = read_annotation(path, aspects)
    except (FileNotFoundError, NotADirectoryError):
        return -1
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None
    answers, known = annotation.answers, tuple(aspects)
    for name in annotation.other_keys:
        if (aspect := meant_aspect(name, known)) and aspect not in answers:
            chunk.misspelled[name, aspect] += 1
    return places.setdefault((tuple(answers), tuple(answers.values())), len(places))
