"""Figures show the numbers of the run."""

import pytest

from masp.report.content import gather
from masp.report.paper.drawing import style
from masp.report.paper.figures import draw_calibration, draw_confusion, draw_curve, figures_of
from masp.report.tables import confusion_table
from masp.report.training_curves import Curve
from masp.results.metrics import CalibrationBin
from masp.results.metrics_file import MetricsFile
from tests.unit.report.paper.runs import explain, make_cited_run


def test_every_figure_of_the_report_is_there(tmp_path):
    names = [figure.name for figure in figures_of(gather(make_cited_run(tmp_path)))]
    assert names == [
        "confusion", "calibration", "stage1-loss", "stage1-learning-rate", "stage2-loss", "stage2-learning-rate",
        "attention",
    ]  # fmt: skip


def test_explanations_have_figures_between_training_and_attention(tmp_path):
    run = make_cited_run(tmp_path)
    found = explain(run)
    figures = figures_of(gather(run))
    assert [figure.name for figure in figures[-4:]] == [
        "contributions", "contributions-by-prediction", "contributions-by-label", "attention",
    ]  # fmt: skip
    averages, prediction, label = figures[-4:-1]
    assert averages.caption.startswith("Mean contributions of the parts of the prompt over 12 images, with 95 % inter")
    assert "images predicted as each category" in prediction.caption and "images labeled each" in label.caption
    assert "Of fewer than 10 images, a mean says little." in label.caption
    with style():
        for figure, by in ((prediction, found.averages.by_prediction), (label, found.averages.by_label)):
            drawn = figure.draw().axes[0]
            names = [text.get_text() for text in drawn.get_xticklabels()]
            assert names == [f"{category} ({by[category].num_images})" for category in found.categories]
            means = [by[category].aspects["scene"] for category in found.categories]
            assert drawn.images[0].get_array()[0].tolist() == [None if mean is None else mean.mean for mean in means]


def test_one_explained_image_has_no_intervals_and_damaged_explanations_no_figures(tmp_path):
    run = make_cited_run(tmp_path)
    explain(run, count=1)
    one, *_ = [figure for figure in figures_of(gather(run)) if figure.name == "contributions"]
    assert "over 1 image. A contribution is" in one.caption
    path = run / "evaluate" / "explanations" / "explanations.json"
    path.write_bytes(path.read_bytes().replace(b'"x"', b'"y"'))
    assert not [figure for figure in figures_of(gather(run)) if figure.name.startswith("contributions")]


def test_a_cell_of_the_heat_map_has_its_count_and_the_share_of_its_row():
    metrics = MetricsFile(categories=("a", "b"), confusion=((3, 1), (0, 1000)), confusion_columns=("a", "b"))
    with style():
        axes = draw_confusion(confusion_table(metrics)).axes[0]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0, 1]]
    assert [(text.get_position(), text.get_text()) for text in axes.texts] == [
        ((0, 0), "3"), ((1, 0), "1"), ((0, 1), "0"), ((1, 1), "1,000")
    ]  # fmt: skip
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]


@pytest.mark.parametrize(("count", "is_named"), [(30, True), (80, False)])
def test_large_matrices_fit_a_page(count, is_named):
    names = tuple(f"category {number}" for number in range(count))
    metrics = MetricsFile(categories=names, confusion=((1,) * count,) * count, confusion_columns=names)
    with style():
        figure = draw_confusion(confusion_table(metrics))
        figure.draw_without_rendering()
    assert max(figure.get_size_inches()) <= 9 and not figure.axes[0].texts
    assert (figure.axes[0].get_yticklabels()[0].get_text() == names[0]) == is_named


def test_bars_are_the_bins():
    bins = (CalibrationBin(0.0, 0.5, 0), CalibrationBin(0.5, 1.0, 4, 0.7, 0.25))
    with style():
        (bar,) = draw_calibration(bins).axes[0].patches
    assert (bar.get_x(), bar.get_width(), bar.get_height()) == (0.5, 0.5, 0.25)


def test_curves_have_their_points_and_those_of_held_out_images():
    points = tuple((step, 1.0 / step) for step in range(1, 30))
    with style():
        lines = draw_curve(Curve("loss", "loss", points, True, ((10, 0.5), (20, 0.25)))).axes[0].lines
        single = draw_curve(Curve("loss", "loss", points[:1])).axes[0].lines
    assert lines[0].get_ydata().tolist() == [value for _, value in points]
    assert lines[2].get_xdata().tolist() == [10, 20] and len({line.get_linestyle() for line in lines}) == 2
    assert len(single) == 1 and single[0].get_marker() == "o"
