"""Figures of contributions show the means of the file: their signs, intervals and categories."""

import dataclasses

import numpy as np
import pytest

from masp.report.paper.contributions import draw_contributions, draw_heat_map, is_wide
from masp.report.paper.drawing import COLUMN, PAGE, style
from masp.results.explanations.averages import Mean, Means

ASPECTS = ("scene", "human_action")


def means(num_images=20, scene=0.5, action=-0.25, **others) -> Means:
    """Means of two aspects, with an interval for one of them."""
    found = {"scene": Mean(scene, (0.25, 0.75)), "human_action": None if action is None else Mean(action, None)}
    return Means(num_images, found, **{"all_aspects": None, "vision_features": None, "interaction": None} | others)


def test_bars_are_the_means_with_their_intervals():
    with style():
        figure = draw_contributions(means(vision_features=Mean(1.0, None)), ASPECTS)
        figure.draw_without_rendering()
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [0.5, -0.25, 1.0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["scene", "human action", "vision features"]
    colors = [bar.get_facecolor() for bar in axes.patches]
    assert colors[0] == colors[2] != colors[1]
    intervals = [line for line in axes.lines if line.get_marker() == "|"]
    assert [tuple(line.get_xdata()) for line in intervals] == [(0.25, 0.75)]


def test_cells_are_the_means_of_the_category_and_rows_without_any_are_left_out():
    none = Means(0, dict.fromkeys(ASPECTS), None, None, None)
    with style():
        figure = draw_heat_map([("joy", means()), ("$fear$_x", none), ("awe", means(3, -2.0))], ASPECTS, "labeled")
        figure.draw_without_rendering()
    axes = figure.axes[0]
    shown = axes.images[0].get_array()
    assert shown.filled(np.nan) == pytest.approx(np.array([[0.5, np.nan, -2.0], [-0.25, np.nan, -0.25]]), nan_ok=True)
    assert [text.get_text() for text in axes.texts] == ["+0.50", "–", "-2.00", "-0.25", "–", "-0.25"]
    assert [text.get_color() for text in axes.texts][:3] == ["black", "black", "white"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["joy (20)", "$fear$_x (0)", "awe (3)"]
    assert axes.images[0].get_clim() == (-2, 2)  # zero is neutral


@pytest.mark.parametrize(("count", "is_named", "width"), [(4, True, COLUMN), (30, True, PAGE), (80, False, PAGE)])
def test_many_categories_and_aspects_fit_a_page(count, is_named, width):
    columns = [(f"category {number}", means(scene=0.0, action=0.0)) for number in range(count)]
    with style():
        figure = draw_heat_map(columns, ASPECTS, "predicted as")
        figure.draw_without_rendering()
        many = tuple(f"aspect {number}" for number in range(60))
        parts = dataclasses.replace(means(), aspects=dict.fromkeys(many, Mean(0.1, (0.0, 0.2))))
        tall = draw_contributions(parts, many)
    assert figure.get_size_inches()[0] == width == (PAGE if is_wide(columns) else COLUMN)
    assert (figure.axes[0].get_xticklabels()[0].get_text() == "category 0 (20)") == is_named
    assert len(figure.axes[0].texts) == (2 * count if count <= 12 else 0) and tall.get_size_inches()[1] <= 9
