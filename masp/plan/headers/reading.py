"""The sizes of many images, read from their files' headers by several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from masp.data.image_files.stored import Location
from masp.data.images import UnreadableImage, image_size
from masp.files.remembered import examine
from masp.files.text import reason
from masp.plan.headers.memory import HeaderMemory
from masp.runtime.process_pool import default_processes, map_ahead, process_pool

_CHUNK = 512
_ALONE = 1000
"""So few images are read faster than processes start."""
_EXAMINED_ALONE = 50_000
"""So few files are examined faster than processes start."""

R = TypeVar("R")

_Measured = tuple[np.ndarray, list[tuple[int, str]]]
"""Sizes of some images, int32 `[n, 2]`, zeros where they cannot be read; and the places of those, each with the
reason."""


def read_sizes(
    images: Sequence[Location], max_side: int | None, num_processes: int | None = None, memory: Path | None = None
) -> tuple[np.ndarray, list[tuple[Location, str]]]:
    """Read the headers of images.

    Args:
        images: Where the images are; they are asked for in slices, several times.
        max_side: `vlm.max_side`, see `masp.data.images.limited_size`.
        num_processes: Number of processes that read; None for `default_processes()`, 1 for this one alone.
        memory: File in which sizes are remembered, see `masp.plan.headers.memory`; only what it does not know is read.
            None reads every header.

    Returns:
        Width and height of each image in pixels as the image processor will get it, int32 `[N, 2]`, zeros if it cannot
        be read; and the images that cannot be read, each with the reason.
    """
    num_processes = default_processes() if num_processes is None else num_processes
    if memory is None:
        remembered, sizes = None, np.zeros((len(images), 2), dtype=np.int32)
        unknown = np.arange(len(images))
    else:
        remembered = _remember(images, max_side, num_processes, memory)
        sizes, unknown = remembered.sizes, np.flatnonzero(~remembered.is_known)
    broken: list[tuple[Location, str]] = []
    with tqdm(total=len(unknown), desc="headers", unit="image", delay=1.0, leave=False, disable=None) as bar:
        chunks = [unknown[start : start + _CHUNK] for start in range(0, len(unknown), _CHUNK)]
        work = ((_some(images, chunk), max_side) for chunk in chunks)
        found = _by_processes(_measure, work, len(unknown) > _ALONE, num_processes)
        for chunk, (measured, reasons) in zip(chunks, found, strict=True):
            sizes[chunk] = measured
            broken += [(images[int(chunk[place])], why) for place, why in reasons]
            bar.update(len(chunk))
    if remembered is not None:
        remembered.save()
    return np.ascontiguousarray(sizes), broken


def _some(images: Sequence[Location], places: np.ndarray) -> Sequence[Location]:
    """The images at some places, in ascending order; mostly they are all of a slice."""
    start, stop = int(places[0]), int(places[-1]) + 1
    if stop - start == len(places):
        return images[start:stop]
    return [images[place] for place in places.tolist()]


def _remember(images: Sequence[Location], max_side: int | None, num_processes: int, memory: Path) -> HeaderMemory:
    """What is remembered of the files, which are examined."""
    slices = (images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK))
    ids = np.zeros((len(images), 2), dtype="<u8")
    settled = np.zeros(len(images), dtype=bool)
    start = 0
    for some_ids, are_settled in _by_processes(examine, slices, len(images) > _EXAMINED_ALONE, num_processes):
        stop = start + len(some_ids)
        ids[start:stop], settled[start:stop] = some_ids, are_settled
        start = stop
    return HeaderMemory(memory, max_side, (ids, settled))


def _by_processes(function: Callable[..., R], work: Iterable[object], many: bool, num_processes: int) -> Iterator[R]:
    """Call a function for each chunk of files, in several processes where there are many.

    Processes, because Pillow parses headers in Python and its warnings are silenced per process.
    """
    if num_processes == 1 or not many:
        yield from map(function, work)
        return
    with process_pool(num_processes, "--processes", "reads image headers") as pool:
        yield from map_ahead(pool, num_processes, function, work)


def _measure(work: tuple[Sequence[Location], int | None]) -> _Measured:
    """Read the headers of some images."""
    images, max_side = work
    sizes = np.zeros((len(images), 2), dtype=np.int32)
    broken: list[tuple[int, str]] = []
    for place, image in enumerate(images):
        try:
            sizes[place] = image_size(image, max_side)
        except UnreadableImage as error:
            broken.append((place, error.reason))
        except OSError as error:  # the disk is at fault, not the image; extraction would try again and then stop
            broken.append((place, f"the disk does not answer: {reason(error)}"))
    return sizes, broken
