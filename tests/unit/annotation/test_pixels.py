"""Brightness and colorfulness against hand computation, and the words for them."""

import math

import numpy as np
import pytest
from PIL import Image

from masp.annotation.pixels import brightness, colorfulness, level_of
from masp.config import load_aspects


def uniform(*color, size=(6, 4)):
    return Image.new("RGB", size, color)


@pytest.mark.parametrize(("color", "expected"), [((0, 0, 0), 0), ((255, 255, 255), 1), ((255, 0, 0), 1 / 3)])
def test_brightness_is_the_mean_intensity(color, expected):
    assert brightness(uniform(*color)) == pytest.approx(expected)


def test_gray_has_no_color():
    assert (
        colorfulness(Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)).convert("RGB"))
        == 0
    )


def test_colorfulness_is_that_of_hasler_and_suesstrunk():
    # rg = 255, -255; yb = 127.5, 127.5: deviations 255 and 0, means 0 and 127.5
    half = np.zeros((2, 4, 3), dtype=np.uint8)
    half[:, :2, 0], half[:, 2:, 1] = 255, 255
    assert colorfulness(Image.fromarray(half)) == 1.0
    # rg = 20, yb = 10 everywhere: no deviation
    expected = 0.3 * math.hypot(20, 10) / 109
    assert colorfulness(uniform(120, 100, 100)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("gray", "word"),
    [(0, "very low"), (36, "very low"), (40, "low"), (128, "moderate"), (230, "very high"), (255, "very high")],
)
def test_the_word_is_that_of_the_number_in_steps_of_a_tenth(gray, word):
    aspect = load_aspects()["brightness"]
    assert level_of(aspect, uniform(gray, gray, gray)) == word
