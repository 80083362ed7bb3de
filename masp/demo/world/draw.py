"""Draws an image with given aspects, then sets its brightness and colorfulness and measures both from the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from PIL import Image, ImageDraw

from masp.demo.world.factors import LEVELS, WEATHER, Scene, level_word
from masp.demo.world.scenes import scene as draw_background
from masp.demo.world.scenes import weather as draw_weather
from masp.demo.world.sprites import OBJECTS, WHITE, Box, face, figure

SIZES = ((112, 112), (140, 112), (112, 140))
"""Widths and heights in pixels: 16 or 20 vision tokens of 28 x 28 pixels."""
FULL_CHROMA = 0.25
"""Mean difference between the largest and smallest channel of a pixel that counts as colorfulness 1."""


@dataclass(frozen=True)
class DrawnImage:
    """A drawn image and its measured brightness and colorfulness."""

    pixels: np.ndarray
    """`[h, w, 3]` uint8."""
    brightness: float
    """Mean of all channels, 0 to 1, in steps of 0.1."""
    colorfulness: float
    """Mean channel difference divided by `FULL_CHROMA`, at most 1, in steps of 0.1."""


def draw_image(scene: Scene, rng: np.random.Generator) -> DrawnImage:
    """Draw `scene`; everything that it leaves open is drawn from `rng`.

    The measured brightness and colorfulness always have the levels of `scene`: an image that misses them is redrawn.
    """
    wanted = (scene.shown("brightness"), scene.shown("colorfulness"))
    while True:
        background, drawn = _draw_shapes(scene, rng)
        pixels = _set_tone(background, drawn, LEVELS.index(wanted[0]), LEVELS.index(wanted[1]), rng)
        brightness, colorfulness = measure(pixels)
        if (level_word(brightness), level_word(colorfulness)) == wanted:
            return DrawnImage(pixels, brightness, colorfulness)


def measure(pixels: np.ndarray) -> tuple[float, float]:
    """Brightness and colorfulness of `[h, w, 3]` uint8 pixels, each rounded to 0.1."""
    brightness = pixels.mean() / 255
    colorfulness = min(1.0, _chroma(pixels.transpose(2, 0, 1).astype(np.float32) / 255) / FULL_CHROMA)
    return round(float(brightness), 1), round(float(colorfulness), 1)


def _draw_shapes(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The background alone, and the complete drawing: `[h, w, 3]` uint8 each."""
    w, h = SIZES[rng.integers(len(SIZES))]
    image = Image.new("RGB", (w, h))
    draw = ImageDraw.Draw(image)
    draw_background(draw, scene.shown("scene"), w, h, rng)
    draw_weather(draw, scene.shown(WEATHER), w, h, rng)
    background = np.array(image)
    cells = rng.permutation(4)
    for cell, aspect in zip(cells[:3], ("object", "human_action", "facial_expression"), strict=True):
        size = rng.uniform(49, 54) if aspect != "facial_expression" else rng.uniform(44, 51)
        x = (cell % 2) * w / 2 + rng.uniform(0.5, w / 2 - size - 0.5)
        y = (cell // 2) * h / 2 + rng.uniform(0.5, h / 2 - size - 0.5)
        box = Box(draw, x, y, size, flip=bool(rng.random() < 0.5))
        label = scene.label(aspect)
        if label is None:
            continue
        if aspect == "object":
            OBJECTS[label](box)
        elif aspect == "human_action":
            figure(box, label, rng)
        else:
            face(box, label, rng)
    drawn = np.array(image)
    drawn[_rim((background != drawn).any(-1))] = WHITE
    return background, drawn


def _rim(mask: np.ndarray) -> np.ndarray:
    """The pixels just outside a mask `[h, w]`."""
    wide = mask.copy()
    for axis in (0, 1):
        wide |= np.roll(wide, 1, axis) | np.roll(wide, -1, axis)
    return wide & ~mask


def _chroma(x: np.ndarray) -> float:
    """Mean difference between the largest and smallest channel of `[3, ...]`."""
    spread = np.maximum(np.maximum(x[0], x[1]), x[2]) - np.minimum(np.minimum(x[0], x[1]), x[2])
    return float(spread.mean())


def _set_tone(
    background: np.ndarray, drawn: np.ndarray, brightness: int, colorfulness: int, rng: np.random.Generator
) -> np.ndarray:
    """Set the levels of brightness (with a tone curve) and colorfulness (by blending with the grayscale image).

    The curve is bent less for the foreground than for the background, so that it remains visible in the dark.
    """
    # Well inside the range of the level, which after rounding to 0.1 is 0.2 wide and starts at 0.2 * level - 0.05.
    bright = (0.12, 0.26, 0.45, 0.64, 0.8)[brightness] + rng.uniform(-0.025, 0.025)
    color = (0.08, 0.25, 0.45, 0.65, 0.88)[colorfulness] + rng.uniform(-0.05, 0.05)
    low, high = max(0.0, 0.9 * bright - 0.45), min(1.0, 0.4 + 1.1 * bright)
    front = (background != drawn).any(-1)
    counts = [np.bincount(drawn[mask].ravel(), minlength=256) / drawn.size for mask in (~front, front)]
    level = np.linspace(0, 1, 256)

    def curves(bend: float) -> list[np.ndarray]:
        return [low + (high - low) * level ** np.exp(bend * share) for share in (1.0, 0.7)]

    target, wanted_chroma = bright, color * FULL_CHROMA
    for _ in range(2):  # blending clips, which changes the brightness a little: iterate twice
        bend = _solve(lambda b: -sum(c @ n for c, n in zip(curves(b), counts, strict=True)), -target, -4.0, 4.0)
        behind, before = (curve.astype(np.float32) for curve in curves(bend))
        toned = np.where(front[..., None], before[drawn], behind[drawn]).transpose(2, 0, 1)
        gray = toned.mean(0)
        mix = wanted_chroma / max(1e-3, _chroma(toned))
        for _ in range(6):
            mixed = np.clip(gray + mix * (toned - gray), 0, 1)
            if mix <= 1:  # nothing clips
                break
            mix *= min(2.0, wanted_chroma / max(1e-3, _chroma(mixed)))
        target += bright - float(mixed.mean())
    return (mixed.transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8)


def _solve(function, target: float, low: float, high: float) -> float:
    """The argument at which an increasing function equals `target`, by bisection."""
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < target else (low, middle)
    return (low + high) / 2


def world_rng(*names: str | int) -> np.random.Generator:
    """A separate generator for every combination of names, for example `("demo", seed, "test", 7)`.

    The demo data and the images of the VLM's pretraining start with different names, so they share no image under any
    seed.
    """
    digest = blake2b("\0".join(map(str, names)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
