"""Draws the labels of the demo world in a unit square, boldly enough for an image of 112 pixels.

Every shape has a dark outline or a light core, so that it stands out from any background at any brightness.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import ImageDraw

BLACK, WHITE = (12, 12, 16), (250, 250, 245)
Draw = ImageDraw.ImageDraw


class Box:
    """Draws in unit coordinates of a square at `(x, y)` that is `size` pixels wide, mirrored if `flip`."""

    def __init__(self, draw: Draw, x: float, y: float, size: float, flip: bool = False):
        self.draw, self.x, self.y, self.size, self.flip = draw, x, y, size, flip

    def at(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(self.x + (1 - u if self.flip else u) * self.size, self.y + v * self.size) for u, v in points]

    def corners(self, u0: float, v0: float, u1: float, v1: float) -> list[float]:
        (a, b), (c, d) = self.at((u0, v0), (u1, v1))
        return [min(a, c), b, max(a, c), d]

    def ellipse(self, u0, v0, u1, v1, fill, rim=BLACK, width=2):
        self.draw.ellipse(self.corners(u0, v0, u1, v1), fill=fill, outline=rim, width=width)

    def rectangle(self, u0, v0, u1, v1, fill, rim=BLACK, width=2):
        self.draw.rectangle(self.corners(u0, v0, u1, v1), fill=fill, outline=rim, width=width)

    def polygon(self, *points, fill, rim=BLACK, width=2):
        self.draw.polygon(self.at(*points), fill=fill, outline=rim, width=width)

    def line(self, *points, fill, width=0.05):
        self.draw.line(self.at(*points), fill=fill, width=max(1, round(width * self.size)), joint="curve")

    def stroke(self, *points, fill, width=0.08, rim=BLACK):
        """A line with an outline."""
        self.line(*points, fill=rim, width=width + 0.06)
        self.line(*points, fill=fill, width=width)

    def arc(self, u0, v0, u1, v1, start, end, fill, width=0.06):
        if self.flip:
            start, end = 180 - end, 180 - start
        box = self.corners(u0, v0, u1, v1)
        self.draw.arc(box, start, end, fill=fill, width=max(1, round(width * self.size)))


# Faces ---------------------------------------------------------------------------------------------------------------


def face(box: Box, label: str, rng: np.random.Generator) -> None:
    base = {
        "angry": (235, 95, 60),
        "disgust": (150, 200, 80),
        "fear": (190, 190, 245),
        "happy": (255, 215, 60),
        "sad": (110, 160, 235),
        "surprise": (255, 165, 200),
    }[label]
    skin = tuple(int(np.clip(c + rng.integers(-18, 19), 0, 255)) for c in base)
    box.ellipse(0.02, 0.02, 0.98, 0.98, skin, width=3)
    if label == "angry":
        box.line((0.18, 0.22), (0.46, 0.40), fill=BLACK, width=0.1)
        box.line((0.82, 0.22), (0.54, 0.40), fill=BLACK, width=0.1)
        _eyes(box, 0.08, 0.46)
        box.rectangle(0.28, 0.66, 0.72, 0.82, WHITE)
        box.line((0.5, 0.66), (0.5, 0.82), fill=BLACK, width=0.04)
    elif label == "disgust":
        box.line((0.18, 0.38), (0.44, 0.38), fill=BLACK, width=0.09)
        box.line((0.56, 0.38), (0.82, 0.38), fill=BLACK, width=0.09)
        box.line((0.2, 0.64), (0.35, 0.56), (0.5, 0.64), (0.65, 0.56), (0.8, 0.64), fill=BLACK, width=0.08)
        box.ellipse(0.44, 0.62, 0.68, 0.92, (230, 40, 90))
    elif label == "fear":
        for u in (0.3, 0.7):
            box.ellipse(u - 0.16, 0.22, u + 0.16, 0.54, WHITE)
            box.ellipse(u - 0.05, 0.33, u + 0.05, 0.43, BLACK)
        teeth = [(0.22, 0.8), (0.34, 0.68), (0.44, 0.8), (0.56, 0.68), (0.66, 0.8), (0.78, 0.68)]
        box.line(*teeth, fill=BLACK, width=0.08)
    elif label == "happy":
        box.arc(0.2, 0.26, 0.44, 0.5, 180, 360, BLACK, 0.08)
        box.arc(0.56, 0.26, 0.8, 0.5, 180, 360, BLACK, 0.08)
        box.draw.pieslice(box.corners(0.2, 0.34, 0.8, 0.9), 0, 180, fill=WHITE, outline=BLACK, width=2)
    elif label == "sad":
        _eyes(box, 0.07, 0.4)
        box.line((0.16, 0.32), (0.42, 0.2), fill=BLACK, width=0.07)
        box.line((0.84, 0.32), (0.58, 0.2), fill=BLACK, width=0.07)
        box.arc(0.26, 0.66, 0.74, 1.04, 190, 350, BLACK, 0.09)
        box.polygon((0.26, 0.46), (0.36, 0.46), (0.4, 0.72), (0.22, 0.72), fill=(235, 250, 255))
    else:
        box.arc(0.16, 0.12, 0.44, 0.4, 190, 350, BLACK, 0.07)
        box.arc(0.56, 0.12, 0.84, 0.4, 190, 350, BLACK, 0.07)
        _eyes(box, 0.08, 0.4)
        box.ellipse(0.34, 0.54, 0.66, 0.92, (90, 10, 30))


def _eyes(box: Box, radius: float, height: float) -> None:
    for u in (0.3, 0.7):
        box.ellipse(u - radius, height - radius, u + radius, height + radius, BLACK)


# Objects -------------------------------------------------------------------------------------------------------------


def _balloon(b: Box) -> None:
    b.line((0.5, 0.7), (0.42, 0.85), (0.55, 1.0), fill=BLACK, width=0.05)
    b.ellipse(0.18, 0.0, 0.82, 0.74, (235, 40, 60))
    b.ellipse(0.3, 0.12, 0.48, 0.32, WHITE, rim=None)


def _butterfly(b: Box) -> None:
    for u in (0.0, 0.52):
        b.ellipse(u, 0.05, u + 0.48, 0.55, (250, 140, 20))
        b.ellipse(u + 0.08, 0.48, u + 0.42, 0.92, (120, 60, 220))
    b.stroke((0.5, 0.1), (0.5, 0.9), fill=BLACK, width=0.08)


def _cake(b: Box) -> None:
    b.rectangle(0.04, 0.55, 0.96, 0.95, (240, 150, 190))
    b.rectangle(0.16, 0.3, 0.84, 0.58, (255, 240, 215))
    for u in (0.3, 0.5, 0.7):
        b.rectangle(u - 0.04, 0.08, u + 0.04, 0.32, (80, 160, 250), width=1)


def _candle(b: Box) -> None:
    b.rectangle(0.36, 0.36, 0.64, 0.98, (250, 245, 220))
    b.polygon((0.5, 0.0), (0.68, 0.3), (0.32, 0.3), fill=(255, 150, 0))
    b.rectangle(0.2, 0.88, 0.8, 0.99, (150, 110, 40))


def _handgun(b: Box) -> None:
    b.polygon((0.0, 0.22), (0.98, 0.22), (0.98, 0.46), (0.0, 0.46), fill=(90, 95, 110), rim=WHITE)
    b.polygon((0.02, 0.4), (0.3, 0.4), (0.24, 0.96), (0.0, 0.96), fill=(110, 70, 40), rim=WHITE)
    b.arc(0.28, 0.4, 0.54, 0.66, 0, 180, BLACK, 0.07)


def _kite(b: Box) -> None:
    b.polygon((0.6, 0.0), (1.0, 0.3), (0.55, 0.72), (0.2, 0.25), fill=(40, 200, 230))
    b.polygon((0.6, 0.0), (0.2, 0.25), (0.55, 0.72), fill=(250, 220, 40))
    b.line((0.55, 0.72), (0.4, 0.84), (0.5, 0.9), (0.2, 1.0), fill=(230, 40, 140), width=0.09)


def _knife(b: Box) -> None:
    b.polygon((0.98, 0.02), (0.86, 0.36), (0.44, 0.72), (0.3, 0.56), fill=(225, 230, 240))
    b.stroke((0.38, 0.64), (0.06, 0.94), fill=(140, 60, 20), width=0.16)


def _skull(b: Box) -> None:
    b.rectangle(0.28, 0.6, 0.72, 0.96, WHITE)
    b.ellipse(0.08, 0.02, 0.92, 0.76, WHITE)
    for u in (0.32, 0.68):
        b.ellipse(u - 0.15, 0.28, u + 0.15, 0.56, BLACK)
    for u in (0.42, 0.58):
        b.line((u, 0.74), (u, 0.96), fill=BLACK, width=0.05)


def _spider(b: Box) -> None:
    for v in (0.2, 0.4, 0.62, 0.84):
        b.line((0.5, 0.5), (0.06, v), fill=WHITE, width=0.11)
        b.line((0.5, 0.5), (0.94, v), fill=WHITE, width=0.11)
        b.line((0.5, 0.5), (0.06, v), fill=BLACK, width=0.06)
        b.line((0.5, 0.5), (0.94, v), fill=BLACK, width=0.06)
    b.ellipse(0.28, 0.34, 0.72, 0.84, BLACK, rim=WHITE)
    b.ellipse(0.37, 0.16, 0.63, 0.42, BLACK, rim=WHITE)


def _umbrella(b: Box) -> None:
    b.stroke((0.5, 0.3), (0.5, 0.88), (0.66, 0.94), fill=WHITE, width=0.06)
    b.draw.pieslice(b.corners(0.02, 0.04, 0.98, 1.0), 180, 360, fill=(60, 70, 170), outline=BLACK, width=2)
    for u in (0.34, 0.66):
        b.line((0.5, 0.05), (u, 0.5), fill=BLACK, width=0.04)


def _teddy_bear(b: Box) -> None:
    brown, light = (165, 105, 50), (230, 190, 130)
    for u in (0.12, 0.66):
        b.ellipse(u, 0.0, u + 0.22, 0.22, brown)
        b.ellipse(u - 0.04, 0.5, u + 0.22, 0.76, brown)
        b.ellipse(u, 0.76, u + 0.24, 1.0, brown)
    b.ellipse(0.22, 0.4, 0.78, 0.98, brown)
    b.ellipse(0.32, 0.52, 0.68, 0.88, light, rim=None)
    b.ellipse(0.24, 0.06, 0.76, 0.5, brown)
    b.ellipse(0.38, 0.26, 0.62, 0.46, light, rim=None)
    b.ellipse(0.46, 0.28, 0.54, 0.36, BLACK)


def _lighthouse(b: Box) -> None:
    b.polygon((0.34, 0.24), (0.66, 0.24), (0.78, 1.0), (0.22, 1.0), fill=WHITE)
    b.rectangle(0.29, 0.44, 0.71, 0.58, (220, 40, 40))
    b.rectangle(0.25, 0.74, 0.75, 0.88, (220, 40, 40))
    b.rectangle(0.32, 0.08, 0.68, 0.26, (255, 235, 80))
    b.polygon((0.28, 0.1), (0.5, -0.04), (0.72, 0.1), fill=(150, 30, 30))


OBJECTS: dict[str, Callable[[Box], None]] = {
    "Balloon": _balloon,
    "Butterfly": _butterfly,
    "Cake": _cake,
    "Candle": _candle,
    "Handgun": _handgun,
    "Kite": _kite,
    "Knife": _knife,
    "Skull": _skull,
    "Spider": _spider,
    "Umbrella": _umbrella,
    "Teddy bear": _teddy_bear,
    "Lighthouse": _lighthouse,
}


# Figures -------------------------------------------------------------------------------------------------------------


SHIRTS = {
    "boxing ": (240, 240, 240),
    "celebrating": (255, 90, 200),
    "climbing ladder": (90, 170, 255),
    "crying": (120, 130, 160),
    "garbage collecting": (255, 140, 30),
    "push up": (250, 230, 60),
    "reading book": (60, 200, 120),
    "yoga": (190, 110, 255),
}


def figure(b: Box, label: str, rng: np.random.Generator) -> None:
    """A person with thick limbs in the pose of an action, with its props; the joints are jittered slightly."""
    shirt = tuple(int(np.clip(c + rng.integers(-25, 26), 0, 255)) for c in SHIRTS[label])

    def limb(*points, fill=shirt, width=0.11):
        b.stroke(*[(u + rng.normal(0, 0.01), v + rng.normal(0, 0.01)) for u, v in points], fill=fill, width=width)

    def head(u, v, r=0.12):
        b.ellipse(u - r, v - r, u + r, v + r, (250, 215, 180))

    if label == "boxing ":
        limb((0.36, 0.34), (0.34, 0.64))
        limb((0.34, 0.64), (0.16, 0.96))
        limb((0.34, 0.64), (0.56, 0.96))
        limb((0.36, 0.38), (0.8, 0.3))
        limb((0.36, 0.42), (0.7, 0.6))
        head(0.34, 0.16)
        b.ellipse(0.7, 0.12, 1.0, 0.42, (225, 20, 30))
        b.ellipse(0.58, 0.48, 0.88, 0.78, (225, 20, 30))
    elif label == "celebrating":
        limb((0.5, 0.4), (0.5, 0.64))
        limb((0.5, 0.42), (0.1, 0.08))
        limb((0.5, 0.42), (0.9, 0.08))
        limb((0.5, 0.64), (0.2, 0.94))
        limb((0.5, 0.64), (0.8, 0.94))
        head(0.5, 0.26)
        b.polygon((0.38, 0.16), (0.5, -0.06), (0.62, 0.16), fill=(255, 220, 0))
    elif label == "climbing ladder":
        for u in (0.54, 0.94):
            b.stroke((u, 0.0), (u, 1.0), fill=(200, 140, 60), width=0.07)
        for v in (0.1, 0.32, 0.54, 0.76, 0.94):
            b.stroke((0.54, v), (0.94, v), fill=(200, 140, 60), width=0.05)
        limb((0.28, 0.34), (0.28, 0.62))
        limb((0.28, 0.38), (0.6, 0.16))
        limb((0.28, 0.62), (0.6, 0.68))
        limb((0.28, 0.62), (0.3, 0.96))
        head(0.26, 0.16)
    elif label == "crying":
        limb((0.32, 0.42), (0.2, 0.8))
        limb((0.2, 0.82), (0.62, 0.62), (0.7, 0.94))
        head(0.42, 0.24, 0.16)
        for u, v in ((0.66, 0.24), (0.84, 0.42), (0.64, 0.5)):
            b.ellipse(u - 0.08, v - 0.1, u + 0.08, v + 0.1, (40, 140, 255))
    elif label == "garbage collecting":
        b.polygon((0.54, 0.56), (1.0, 0.56), (0.94, 1.0), (0.6, 1.0), fill=(50, 120, 60))
        b.rectangle(0.5, 0.44, 1.0, 0.58, (90, 190, 100))
        limb((0.2, 0.44), (0.14, 0.7))
        limb((0.14, 0.7), (0.06, 0.96))
        limb((0.14, 0.7), (0.32, 0.96))
        limb((0.2, 0.46), (0.44, 0.56), (0.6, 0.34))
        head(0.26, 0.26)
    elif label == "push up":
        b.rectangle(0.0, 0.88, 1.0, 1.0, (60, 190, 200))
        limb((0.72, 0.56), (0.4, 0.7), (0.06, 0.84))
        limb((0.7, 0.58), (0.66, 0.88))
        head(0.86, 0.44)
    elif label == "reading book":
        limb((0.24, 0.38), (0.22, 0.74))
        limb((0.22, 0.76), (0.6, 0.78), (0.6, 0.98))
        limb((0.24, 0.46), (0.5, 0.58))
        head(0.24, 0.2)
        b.polygon((0.44, 0.26), (0.72, 0.38), (1.0, 0.26), (1.0, 0.58), (0.72, 0.7), (0.44, 0.58), fill=WHITE)
        b.line((0.72, 0.38), (0.72, 0.7), fill=BLACK, width=0.06)
        for v in (0.42, 0.52):
            b.line((0.5, v - 0.04), (0.66, v + 0.03), fill=BLACK, width=0.03)
            b.line((0.78, v + 0.03), (0.94, v - 0.04), fill=BLACK, width=0.03)
    else:
        b.ellipse(0.0, 0.8, 1.0, 1.0, (230, 60, 60))
        limb((0.5, 0.38), (0.5, 0.7))
        limb((0.5, 0.46), (0.02, 0.46))
        limb((0.5, 0.46), (0.98, 0.46))
        limb((0.5, 0.72), (0.12, 0.82), (0.6, 0.9))
        limb((0.5, 0.72), (0.88, 0.82), (0.4, 0.9))
        head(0.5, 0.2)
