"""How many images are held out, and how precisely an accuracy is then known."""

import math
import re

import numpy as np
import pytest

from masp.start.held_out import fractions, precision
from tests.runs import REPOSITORY


@pytest.mark.parametrize(
    ("num_images", "lacking", "expected"),
    [
        (200, ("val", "test"), {"train": 0.55, "val": 0.15, "test": 0.3}),
        (1000, ("val", "test"), {"train": 0.7, "val": 0.1, "test": 0.2}),
        (1980, ("val", "test"), {"train": 0.79, "val": 0.1, "test": 0.11}),
        (2000, ("val", "test"), {"train": 0.8, "val": 0.1, "test": 0.1}),
        (90_000, ("val", "test"), {"train": 0.8, "val": 0.1, "test": 0.1}),
        (800, ("test",), {"train": 0.75, "test": 0.25}),
        (800, ("val",), {"train": 0.87, "val": 0.13}),
        (3, ("val",), {"train": 0.85, "val": 0.15}),
    ],
)
def test_the_rule(num_images, lacking, expected):
    assert fractions(num_images, lacking) == expected


def test_whatever_the_number_the_parts_are_a_whole_and_enough():
    for num_images in (*range(1, 3000, 7), 10**5, 10**7):
        found = fractions(num_images, ("test", "val"))
        assert math.isclose(sum(found.values()), 1, abs_tol=1e-9) and found["train"] >= 0.55
        assert found["test"] == 0.3 or found["test"] * num_images >= 200
        assert found["val"] == 0.15 or found["val"] * num_images >= 100


def test_the_precision_is_that_of_the_interval_that_will_be_reported():
    """Simulated: of an accuracy of one half, 95 % of the measured ones are within it."""
    drawn = np.random.default_rng(0).binomial(200, 0.5, 20_000) / 200
    assert np.mean(abs(drawn - 0.5) <= precision(200)) == pytest.approx(0.95, abs=0.02)
    assert [round(precision(n), 2) for n in (20, 60, 200, 800)] == [0.2, 0.12, 0.07, 0.03]


def test_the_table_of_the_documentation_is_of_the_rule():
    text = (REPOSITORY / "docs" / "datasets.md").read_text()
    rows = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ±([\d.]+) \| ±([\d.]+) \|$", text, re.M)
    assert len(rows) >= 5
    for row in rows:
        num, train, val, test = (int(cell.replace(",", "")) for cell in row[:4])
        found = fractions(num, ("val", "test"))
        assert [round(num * found[split]) for split in ("train", "val", "test")] == [train, val, test]
        assert (f"{precision(test):.2g}", f"{precision(round(num / 10)):.2g}") == row[4:]
