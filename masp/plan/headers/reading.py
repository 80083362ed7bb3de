"""The sizes of many images, read from their files' headers by several processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from masp.data.image_files.stored import Location
from masp.data.images import UnreadableImage, image_size
from masp.files.text import reason
from masp.plan.headers.memory import HeaderMemory, Size
from masp.runtime.process_pool import default_processes, process_pool

_CHUNK = 256
_ALONE = 1000
"""So few images are read faster than processes start."""


def read_sizes(
    images: Sequence[Location], max_side: int | None, num_processes: int | None = None, memory: Path | None = None
) -> tuple[list[Size | None], list[tuple[Location, str]]]:
    """Read the headers of images.

    Args:
        images: Where the images are.
        max_side: `vlm.max_side`, see `masp.data.images.limited_size`.
        num_processes: Number of processes that read; None for `default_processes()`, 1 for this one alone.
        memory: File in which sizes are remembered, see `masp.plan.headers.memory`; only what it does not know is read.
            None reads every header.

    Returns:
        Per image its width and height in pixels as the image processor will get it, None if it cannot be read; and the
        images that cannot be read, each with the reason.
    """
    num_processes = default_processes() if num_processes is None else num_processes
    remembered = None if memory is None else HeaderMemory(memory, max_side, images)
    unknown: Sequence[int] = range(len(images)) if remembered is None else np.flatnonzero(~remembered.is_known).tolist()
    sizes: list[Size | None] = [None] * len(images)
    equal: dict[Size, Size] = {}  # millions of images have thousands of sizes
    if remembered is not None:
        for number in np.flatnonzero(remembered.is_known).tolist():
            size = remembered[number]
            sizes[number] = equal.setdefault(size, size)
    broken: list[tuple[Location, str]] = []
    for number, entry in zip(unknown, _read_all(images, unknown, max_side, num_processes), strict=True):
        if isinstance(entry, str):
            broken.append((images[number], entry))
            continue
        sizes[number] = equal.setdefault(entry, entry)
        if remembered is not None:
            remembered[number] = entry
    if remembered is not None:
        remembered.save()
    return sizes, broken


def _read_all(
    images: Sequence[Location], numbers: Sequence[int], max_side: int | None, num_processes: int
) -> Iterator[Size | str]:
    """Size of each of the images with these numbers, or the reason why it cannot be read."""
    starts = range(0, len(numbers), _CHUNK)
    chunks = [[images[number] for number in numbers[start : start + _CHUNK]] for start in starts]
    with tqdm(total=len(numbers), desc="headers", unit="image", delay=1.0, leave=False, disable=None) as bar:
        if num_processes == 1 or len(numbers) <= _ALONE:
            for chunk in chunks:
                yield from _measure(chunk, max_side)
                bar.update(len(chunk))
        else:
            # Processes, because Pillow parses headers in Python and its warnings are silenced per process.
            with process_pool(num_processes, "--processes", "reads image headers") as pool:
                for found in pool.map(_measure, chunks, [max_side] * len(chunks)):
                    yield from found
                    bar.update(len(found))


def _measure(images: Sequence[Location], max_side: int | None) -> list[Size | str]:
    """Return per image its size, or the reason why it cannot be read."""
    found: list[Size | str] = []
    for image in images:
        try:
            found.append(image_size(image, max_side))
        except UnreadableImage as error:
            found.append(error.reason)
        except OSError as error:  # the disk is at fault, not the image; extraction would try again and then stop
            found.append(f"the disk does not answer: {reason(error)}")
    return found
