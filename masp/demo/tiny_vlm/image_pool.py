"""The images that the tiny VLM is pretrained on, drawn by several processes and kept in memory."""

from __future__ import annotations

import contextlib
import multiprocessing

import numpy as np

from masp.demo.world.draw import draw_image, world_rng
from masp.demo.world.factors import draw_scene

CHUNK = 250


def draw_pool(
    count: int, name: str = "pretraining", processes: int = 1, report=lambda *_: None
) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
    """Draw images; the result does not depend on the number of processes.

    Args:
        count: Number of images.
        name: First part of the name of every image's generator; that of the demo data is `demo`.
        processes: Number of processes.
        report: Called with the number of images drawn and the total.

    Returns:
        Size `(h, w)` -> pixels `[n, h, w, 3]` uint8 and labels `[n, 7]` int8, in the order of `FACTORS`.
    """
    found: dict[tuple[int, int], tuple[list, list]] = {}
    chunks = [(name, start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    with contextlib.ExitStack() as stack:
        draw = map if processes == 1 else stack.enter_context(multiprocessing.get_context("spawn").Pool(processes)).imap
        for number, chunk in enumerate(draw(_draw_chunk, chunks), 1):
            for pixels, labels in chunk:
                group = found.setdefault(pixels.shape[:2], ([], []))
                group[0].append(pixels)
                group[1].append(labels)
            report(min(number * CHUNK, count), count)
    return {
        size: (np.stack(pixels), np.array(labels, dtype=np.int8)) for size, (pixels, labels) in sorted(found.items())
    }


def _draw_chunk(chunk: tuple[str, int, int]) -> list[tuple[np.ndarray, tuple[int, ...]]]:
    name, start, stop = chunk
    found = []
    for index in range(start, stop):
        rng = world_rng(name, index)
        scene = draw_scene(rng)
        found.append((draw_image(scene, rng).pixels, scene.labels))
    return found
