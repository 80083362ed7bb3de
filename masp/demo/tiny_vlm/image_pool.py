"""The images that the tiny VLM is pretrained on, drawn and kept in memory."""

from __future__ import annotations

import numpy as np

from masp.demo.world.draw import draw_image, world_rng
from masp.demo.world.factors import draw_scene

_REPORT_EVERY = 250


def draw_pool(
    count: int, name: str = "pretraining", report=lambda *_: None
) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
    """Draw images.

    Args:
        count: Number of images.
        name: First part of the name of every image's generator; that of the demo data is `demo`.
        report: Called with the number of images drawn and the total.

    Returns:
        Size `(h, w)` -> pixels `[n, h, w, 3]` uint8 and labels `[n, 7]` int8, in the order of `FACTORS`.
    """
    found: dict[tuple[int, int], tuple[list, list]] = {}
    for index in range(count):
        rng = world_rng(name, index)
        scene = draw_scene(rng)
        image = draw_image(scene, rng).pixels
        pixels, labels = found.setdefault(image.shape[:2], ([], []))
        pixels.append(image)
        labels.append(scene.labels)
        if (index + 1) % _REPORT_EVERY == 0 or index + 1 == count:
            report(index + 1, count)
    return {
        size: (np.stack(pixels), np.array(labels, dtype=np.int8)) for size, (pixels, labels) in sorted(found.items())
    }
