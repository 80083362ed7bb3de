"""Reading the annotation files of a dataset: a few by threads, millions by processes."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tqdm import tqdm

from masp.config.aspects import Aspects
from masp.data.answers import read_annotation
from masp.data.findings import meant_aspect
from masp.data.sample import annotation_path
from masp.errors import InputError
from masp.files.text import reason
from masp.runtime.process_pool import default_processes, map_ahead, process_pool

# Annotations are small files, often on a network disk: threads wait for many at a time.
_NUM_THREADS = 8
_THREAD_CHUNK = 256
_PROCESS_CHUNK = 8192
_MANY = 20_000
"""So many are read faster by processes, although these take a second to start."""

Answers = tuple[tuple[str, ...], tuple[str, ...]]
"""Annotated aspects and their answers."""

_Work = tuple[Sequence[str], Sequence[str | None]]
"""Keys and annotations of some images, of which whoever reads them makes paths."""


@dataclass
class Chunk:
    """What some annotation files say."""

    numbers: list[int] = field(default_factory=list)
    """Per file its place in `answers`; -1 if there is none."""

    answers: list[Answers] = field(default_factory=list)
    """Each once: images have few different ones."""

    misspelled: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Key that is nearly an aspect, and that aspect -> number of files that have the key and not the aspect itself."""


def read_annotations(
    root: str, keys: Sequence[str], annotations: Sequence[str | None], aspects: Aspects
) -> Iterator[Chunk]:
    """Read the annotation files of images, in their order.

    Args:
        root: Directory of the dataset, with a slash at its end.
        keys: Sample keys of the images.
        annotations: Where their annotations are, as `Entries.annotations` has it.
        aspects: Aspects to read.

    Raises:
        DataError: One is damaged. InputError: One cannot be read.
    """
    many = len(keys) > _MANY
    size = _PROCESS_CHUNK if many else _THREAD_CHUNK
    work = ((keys[start : start + size], annotations[start : start + size]) for start in range(0, len(keys), size))
    read = functools.partial(_read_chunk, root, aspects)
    with tqdm(total=len(keys), desc="annotations", unit="image", delay=1.0, leave=False, disable=None) as progress:
        for chunk in (_by_processes if many else _by_threads)(read, work):
            yield chunk
            progress.update(len(chunk.numbers))


def _by_processes(read: Callable[[_Work], Chunk], work: Iterable[_Work]) -> Iterator[Chunk]:
    num_processes = default_processes()
    with process_pool(num_processes, None, "reads annotations") as pool:
        yield from map_ahead(pool, num_processes, read, work)


def _by_threads(read: Callable[[_Work], Chunk], work: Iterable[_Work]) -> Iterator[Chunk]:
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        try:
            yield from pool.map(read, work)
        except BaseException:
            # Without this, one broken file is reported only after all others have been read.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _read_chunk(root: str, aspects: Aspects, work: _Work) -> Chunk:
    chunk = Chunk()
    places: dict[Answers, int] = {}
    for path in map(annotation_path, *work):
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
