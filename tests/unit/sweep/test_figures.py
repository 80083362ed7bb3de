"""The accuracy of a sweep over each of its axes."""

import re

import pytest
from PIL import Image

from masp.experiments.plots import MAX_LINES
from masp.sweep.figures import write_figures
from masp.sweep.settings import Setting, SettingScores

RATE, LENGTH, START = "stage2.learning_rate", "stage2.num_soft_prompt_tokens", "stage2.soft_prompt_init"


def scores(*settings, best=0):
    """Settings with two seeds each, the more accurate the later."""
    found = [
        Setting(values, {f"{n}a": 0.4 + 0.01 * n, f"{n}b": 0.5 + 0.01 * n}, 0, 0.45 + 0.01 * n, 0.07, (0.4, 0.5), None)
        for n, values in enumerate(settings)
    ]
    return SettingScores("val", "val", 100, best, found, 1, [])


def lines_in(path):
    """How many lines an SVG draws: each has a color of its own."""
    return len(set(re.findall(r"#(?:0072b2|d55e00|009e73|cc79a7|e69f00|56b4e9)", path.read_text().lower())))


def test_every_axis_has_a_figure_in_three_forms(tmp_path):
    grid = [{RATE: rate, START: start} for rate in (1e-3, 1e-2) for start in ("normal", "question", "$x_y$")]
    written = write_figures(tmp_path, scores(*grid))
    assert {path.name for path in written} == {
        f"accuracy-{name}.{kind}" for name in ("learning-rate", "soft-prompt-init") for kind in ("png", "svg", "pdf")
    }
    with Image.open(tmp_path / "accuracy-learning-rate.png") as image:
        assert image.format == "PNG" and min(image.size) > 300 and len(image.getcolors(2**24)) > 10
    assert (tmp_path / "accuracy-learning-rate.pdf").read_bytes().startswith(b"%PDF")
    assert lines_in(tmp_path / "accuracy-learning-rate.svg") == 3  # a line per start
    assert lines_in(tmp_path / "accuracy-soft-prompt-init.svg") == 2
    before = (tmp_path / "accuracy-learning-rate.svg").read_bytes()
    write_figures(tmp_path, scores(*grid))
    assert (tmp_path / "accuracy-learning-rate.svg").read_bytes() == before


def test_of_very_many_lines_that_of_the_best_setting_is_drawn(tmp_path):
    grid = [{RATE: rate, LENGTH: 2**n} for rate in (1e-3, 1e-2) for n in range(MAX_LINES + 1)]
    write_figures(tmp_path, scores(*grid, best=3))
    assert lines_in(tmp_path / "accuracy-learning-rate.svg") == 1
    assert lines_in(tmp_path / "accuracy-num-soft-prompt-tokens.svg") == 2


def test_draws_from_several_ranges_are_points(tmp_path):
    write_figures(tmp_path, scores({RATE: 0.1, LENGTH: 3}, {RATE: 0.01, LENGTH: 4}, {RATE: 0.02, LENGTH: 9}))
    assert lines_in(tmp_path / "accuracy-learning-rate.svg") == 1


@pytest.mark.parametrize(
    ("values", "log_keys", "scale"),
    [
        ((0.5, 0.01), (), "log"), ((1, 2, 3), (), "linear"), ((1, 2, 3), (RATE,), "log"),
        ((0, 0.5, 100), (RATE,), "linear"),
        ((True, False), (), "categories"), ((None, 1.0), (), "categories"), (([1], [1, 2]), (), "categories"),
    ],
)  # fmt: skip
def test_the_scale_follows_the_values(values, log_keys, scale, tmp_path, monkeypatch):
    from masp.experiments import plots
    from masp.sweep import figures

    drawn = []

    def look(axis, *rest):
        drawn.append(axis)
        return plots.axis_figure(axis, *rest)

    monkeypatch.setattr(figures, "axis_figure", look)
    write_figures(tmp_path, scores(*({RATE: value} for value in values)), log_keys)
    assert drawn[0].scale == scale
    assert drawn[0].values == (list(values) if scale == "categories" else sorted(values))


def test_what_was_not_scored_or_has_one_value_has_no_figure(tmp_path):
    nothing = Setting({RATE: 0.1}, {}, 2, None, None, None, None)
    found = scores({RATE: 0.01, LENGTH: 4}, {RATE: 0.01, LENGTH: 8})
    found.settings.append(nothing)
    assert {path.name for path in write_figures(tmp_path, found) if path.suffix == ".svg"} == {
        "accuracy-num-soft-prompt-tokens.svg"
    }
    assert write_figures(tmp_path, SettingScores("val", "val", 0, None, [nothing], 0, [])) == []
