"""The heat map: its numbers, its colors, and what it says to whoever does not see it."""

import pytest

from masp.report.explanations.heat_map import heat_map
from masp.results.explanations.averages import Mean, Means


def means(count, scene, object_, vision=None):
    def mean(value, ci95=None):
        return None if value is None else Mean(value, ci95)

    interval = None if scene is None else (scene - 1, scene + 1)
    return Means(count, {"object": mean(object_), "scene": mean(scene, interval)}, None, mean(vision), None)


def channels(color):
    return tuple(map(int, color.removeprefix("rgb(").removesuffix(")").split(",")))


def luminance(color):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


COLUMNS = [("awe", means(30, 2.0, -2.0)), ("a very long category", means(9, 0.001, 1.0)), ("joy", means(0, None, None))]


def test_a_row_per_part_and_a_column_per_category():
    found = heat_map(COLUMNS, ("scene", "object"), "predicted as")
    assert [name for _, name in found.rows] == ["scene", "object"]  # no vision features, so no row of them
    assert [(c.shown, c.num_images, c.is_few) for c in found.columns] == [
        ("awe", 30, False), ("a very long …", 9, True), ("joy", 0, True),
    ]  # fmt: skip
    assert found.has_few and found.columns[1].name == "a very long category"
    assert [cell.text for cell in found.cells] == ["+2.00", "-2.00", "0.00", "+1.00", "–", "–"]
    assert found.cells[0].title == "scene, images predicted as awe: +2.00 nats (95 % interval +1.00 to +3.00)"
    assert found.cells[5].title == "object, images predicted as joy: no image"
    assert len({(cell.x, cell.y) for cell in found.cells}) == 6
    assert all(c.x + found.cell_width <= found.width and c.y + found.cell_height <= found.height for c in found.cells)
    assert found.description == (
        "Mean contribution in nats, by the category that images are predicted as. awe: most by scene (+2.00); a very "
        "long category: most by object (+1.00)."
    )
    with_vision = heat_map([("awe", means(30, 2.0, -2.0, 0.5))], ("scene", "object"), "labeled")
    assert [name for _, name in with_vision.rows] == ["scene", "object", "vision features"]


@pytest.mark.parametrize("value", [-3.0, -2.0, -1.0, -0.5, 0.0, 0.2, 1.0, 1.7, 2.0, 3.0])
def test_every_number_can_be_read(value):
    """At least 4.5 to 1 between number and cell, as WCAG asks of small text."""
    columns = [("awe", means(30, 3.0, value))]
    cell = heat_map(columns, ("scene", "object"), "predicted as").cells[1]
    fill = luminance(channels(cell.fill))
    ink = luminance((255, 255, 255) if cell.ink == "#fff" else (17, 17, 17))
    light, dark = max(fill, ink), min(fill, ink)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_for_is_blue_and_against_orange_and_both_fade_to_the_same():
    found = heat_map([("awe", means(30, 2.0, -2.0))], ("scene", "object"), "predicted as")
    (r, _, b), (r2, _, b2) = (channels(cell.fill) for cell in found.cells)
    assert b > r and r2 > b2
    weak = heat_map([("awe", means(30, 2.0, 0.001))], ("scene", "object"), "predicted as").cells[1]
    assert channels(weak.fill) == (247, 247, 247)
