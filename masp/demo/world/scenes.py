"""Draws the places and the weather of the demo world: backgrounds, and what falls or flies in front of them."""

from __future__ import annotations

import numpy as np
from PIL import ImageDraw

Draw = ImageDraw.ImageDraw


def scene(draw: Draw, label: str, w: int, h: int, rng: np.random.Generator) -> None:
    """Fill an image of `w x h` pixels with a place."""
    horizon = h * rng.uniform(0.38, 0.55)

    def bands(sky, ground):
        draw.rectangle([0, 0, w, horizon], fill=_vary(sky, rng))
        draw.rectangle([0, horizon, w, h], fill=_vary(ground, rng))

    if label == "alley":
        draw.rectangle([0, 0, w, h], fill=_vary((150, 75, 60), rng))
        for row in range(0, h, 10):
            draw.line([0, row, w, row], fill=(60, 40, 45), width=2)
            for x in range((row // 10 % 2) * 9, w, 18):
                draw.line([x, row, x, row + 10], fill=(60, 40, 45), width=2)
    elif label == "amusement_park":
        draw.rectangle([0, 0, w, h], fill=_vary((255, 235, 90), rng))
        shift = int(rng.integers(0, 20))
        for x in range(-shift, w, 20):
            draw.rectangle([x, 0, x + 9, h], fill=(235, 40, 130))
    elif label == "beach":
        bands((120, 210, 255), (245, 220, 130))
        draw.rectangle([0, horizon - h * 0.12, w, horizon + h * 0.1], fill=(20, 110, 220))
        for x in range(int(rng.integers(-12, 0)), w, 14):
            draw.arc([x, horizon + h * 0.05, x + 14, horizon + h * 0.17], 180, 360, fill=(250, 250, 255), width=3)
    elif label == "cemetery":
        bands((140, 130, 170), (80, 110, 80))
        for y in range(int(rng.integers(0, 12)), h, 28):
            for x in range(int(rng.integers(-12, 4)), w, 24):
                draw.line([x + 7, y, x + 7, y + 22], fill=(215, 215, 225), width=4)
                draw.line([x, y + 7, x + 14, y + 7], fill=(215, 215, 225), width=4)
    elif label == "desert":
        bands((255, 190, 110), (225, 150, 50))
        for y in range(int(rng.integers(-16, 0)), h, 16):
            for x in range(-20 + (y // 16 % 2) * 28, w, 56):
                draw.arc([x, y, x + 56, y + 26], 200, 340, fill=(150, 85, 20), width=3)
    elif label == "forest":
        draw.rectangle([0, 0, w, h], fill=_vary((40, 110, 40), rng))
        for x in range(int(rng.integers(-8, 0)), w, 19):
            draw.rectangle([x + 7, 0, x + 11, h], fill=(95, 55, 20))
            for y in range(int(rng.integers(-14, 0)), h, 24):
                draw.polygon([(x + 9, y), (x, y + 18), (x + 18, y + 18)], fill=(20, 190, 60))
    elif label == "landfill":
        draw.rectangle([0, 0, w, h], fill=_vary((120, 105, 70), rng))
        for _ in range(70):
            x, y = int(rng.integers(-6, w)), int(rng.integers(-6, h))
            color = tuple(int(c) for c in rng.integers(20, 240, 3))
            draw.rectangle([x, y, x + int(rng.integers(5, 13)), y + int(rng.integers(4, 11))], fill=color)
    elif label == "snowfield":
        bands((150, 190, 230), (238, 244, 255))
        for _ in range(60):
            x, y, r = int(rng.integers(0, w)), int(rng.integers(0, h)), int(rng.integers(1, 4))
            draw.ellipse([x - r, y - r, x + r, y + r], fill=(255, 255, 255), outline=(120, 160, 220))
    elif label == "swamp":
        draw.rectangle([0, 0, w, h], fill=_vary((75, 95, 45), rng))
        for y in range(int(rng.integers(-8, 0)), h, 13):
            points = [(x, y + 4 * np.sin(x / 5.0 + y)) for x in range(0, w + 4, 4)]
            draw.line(points, fill=(150, 165, 60), width=4)
    else:
        draw.rectangle([0, 0, w, h], fill=_vary((90, 20, 30), rng))
        top = w * rng.uniform(0.35, 0.65)
        draw.polygon([(top - 12, h * 0.12), (top + 12, h * 0.12), (w * 1.1, h), (-w * 0.1, h)], fill=(45, 30, 35))
        for x in np.linspace(-0.45, 0.45, 6):
            draw.line([top + 10 * x, h * 0.12, top + w * x, h], fill=(255, 110, 10), width=5)
        for _ in range(14):
            x, y = int(rng.integers(0, w)), int(rng.integers(0, h // 2))
            draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=(255, 190, 40))


def weather(draw: Draw, label: str, w: int, h: int, rng: np.random.Generator) -> None:
    """Draw a weather over an image of `w x h` pixels, in shapes that differ even in grayscale and in the dark."""
    black, white = (8, 8, 12), (252, 252, 250)

    def spots(step: int):
        for y in range(int(rng.integers(-step // 2, step // 2)), h, step):
            for x in range(int(rng.integers(-step // 2, step // 2)), w, step):
                yield x + rng.integers(-3, 4), y + rng.integers(-3, 4)

    if label == "rain":
        for x, y in spots(13):
            draw.line([x + 5, y, x, y + 10], fill=black, width=3)
            draw.line([x + 5, y, x, y + 10], fill=(150, 200, 255), width=1)
    elif label == "confetti":
        for x, y in spots(15):
            color = tuple(int(c) for c in rng.choice([40, 150, 255], 3))
            draw.rectangle([x, y, x + 5, y + 5], fill=color, outline=white)
    elif label == "fog":
        for y in range(int(rng.integers(-8, 4)), h, 16):
            draw.rectangle([0, y, w, y + 5], fill=(225, 225, 230))
    elif label == "sunbeams":
        x0 = w * rng.uniform(0.2, 0.8)
        for end in np.linspace(-1.2 * w, 2.2 * w, 13):
            draw.line([x0, -8, end, h * 1.1], fill=(255, 250, 190), width=3)
    elif label == "flies":
        for x, y in spots(18):
            draw.ellipse([x - 4, y - 3, x, y + 1], fill=white)
            draw.ellipse([x + 2, y - 3, x + 6, y + 1], fill=white)
            draw.ellipse([x - 1, y - 2, x + 3, y + 4], fill=black)
    else:
        for x in np.linspace(0, w, 4)[:-1] + rng.uniform(4, 14):
            y = -6 * rng.random()
            bolt = [(x, y)]
            while y < h:
                x, y = x + (9 if len(bolt) % 2 else -9), y + 10
                bolt.append((x, y))
            draw.line(bolt, fill=black, width=5)
            draw.line(bolt, fill=(255, 255, 120), width=3)


def _vary(color: tuple[int, int, int], rng: np.random.Generator, by: int = 16) -> tuple[int, ...]:
    return tuple(int(np.clip(c + rng.integers(-by, by + 1), 0, 255)) for c in color)
