"""Which members make a learning curve, and what is measured and drawn of them."""

import copy
import csv
import math

import numpy as np
import pytest

from masp.config import load_config
from masp.errors import InputError
from masp.extraction.job import extract
from masp.report.paper.drawing import style
from masp.sweep.curves import (
    Measured,
    Point,
    PointResult,
    _over_repeats,
    check_probe,
    curve_points,
    draw_curve,
    write_curve,
)
from masp.sweep.table import Row
from tests.runs import make_run

RATE = "stage2.learning_rate"


def row(fraction, seed=1, rate=None, val=None, loss=None, test=None, failure="", **more):
    values = {"dataset.fraction": fraction, "seed": seed, **({} if rate is None else {RATE: rate}), **more}
    return Row(f"{fraction},{seed},{rate},{sorted(more.items())}", values, val, loss, test, failure)


def test_without_a_size_there_is_no_curve():
    rows = [Row("a", {"seed": 1}, 0.5, None, None, ""), Row("b", {"seed": 2}, 0.5, None, None, "")]
    assert curve_points(rows) == []


def test_each_size_takes_the_settings_that_are_best_over_all_seeds():
    rows = [
        row(0.1, 1, 0.01, val=0.9), row(0.1, 2, 0.01, val=0.1), row(0.1, 1, 0.1, val=0.6), row(0.1, 2, 0.1, val=0.6),
        row(0.5, 1, 0.01, val=0.7), row(0.5, 2, 0.01, val=0.7), row(0.5, 1, 0.1, val=0.8), row(0.5, 2, 0.1, val=0.5),
    ]  # fmt: skip
    few, many = curve_points(rows)
    assert (few.size, few.settings) == ({"dataset.fraction": 0.1}, {RATE: 0.1})
    assert (many.size, many.settings) == ({"dataset.fraction": 0.5}, {RATE: 0.01})
    assert few.rows == (rows[2], rows[3]) and many.rows == (rows[4], rows[5])


def test_settings_whose_seeds_all_finished_come_before_those_that_lost_one():
    lost = row(0.1, 2, 0.1, failure="its loss is not finite")
    rows = [row(0.1, 1, 0.1, val=0.9), lost, row(0.1, 1, 0.01, val=0.3), row(0.1, 2, 0.01, val=0.3)]
    (point,) = curve_points(rows)
    assert point.settings == {RATE: 0.01}
    (point,) = curve_points(rows[:2])  # the only settings
    assert point.rows == (rows[0],)
    assert curve_points([lost]) == []


def test_without_scores_nothing_is_chosen_unless_there_is_no_choice():
    rows = [row(0.1, seed, rate) for seed in (1, 2) for rate in (0.1, 0.01)]
    assert curve_points(rows) == []
    assert [point.settings for point in curve_points([r for r in rows if r.values[RATE] == 0.1])] == [{RATE: 0.1}]
    rows = [row(0.1, seed, rate, loss=rate) for seed in (1, 2) for rate in (0.1, 0.01)]
    assert [point.settings for point in curve_points(rows)] == [{RATE: 0.01}]


def test_the_interval_is_that_of_students_t():
    found = _over_repeats([0.5, 0.6, 0.7])
    half = 4.302652729911275 * 0.1 / math.sqrt(3)  # the quantile for two degrees of freedom, from a table
    assert found.count == 3 and found.interval == pytest.approx((0.6 - half, 0.6 + half))
    assert _over_repeats([0.25]) == Measured(0.25, None, 1)
    assert _over_repeats([0.0, 1.0]).interval == (0.0, 1.0)


def test_the_figure_has_a_logarithmic_axis_a_line_for_each_and_its_intervals():
    results = [
        PointResult(Point({}, {}, ()), number, Measured(mean, (mean - 0.1, mean + 0.1), 3), probe)
        for number, mean, probe in ((10, 0.3, Measured(0.2, None, 1)), (1000, 0.7, Measured(0.4, None, 1)))
    ]
    with style():
        (axes,) = draw_curve(results).axes
    assert axes.get_xscale() == "log" and axes.get_xticks().tolist() == [10, 1000]
    prompt, probe = axes.containers
    assert prompt.lines[0].get_ydata().tolist() == [0.3, 0.7] and probe.lines[0].get_ydata().tolist() == [0.2, 0.4]
    (bars,) = prompt.lines[2]
    np.testing.assert_allclose([segment[:, 1] for segment in bars.get_segments()], [[0.2, 0.4], [0.6, 0.8]])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["soft prompt", "linear probe"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = load_config(make_run(tmp_path_factory.mktemp("curve"), 30, 9), ["aspects=[]", "order_seed=5"])
    extract(config)
    return config


def configured(config, member):
    found = copy.deepcopy(config)
    found.dataset.fraction = member.values["dataset.fraction"]
    found.dataset.subset_seed = member.values.get("dataset.subset_seed", 0)
    found.seed = member.values["seed"]
    return found


def test_seeds_are_repeats_of_one_subset_and_several_subsets_count_once_each(config, tmp_path):
    rows = [
        row(fraction, seed, test=accuracy, **{"dataset.subset_seed": subset})
        for fraction, seed, subset, accuracy in (
            (0.2, 1, 0, 0.1), (0.2, 2, 0, 0.3), (0.2, 1, 1, 0.5), (0.2, 2, 1, 0.7),
            (1, 1, 0, 0.7), (1, 2, 0, 0.9), (1, 1, 1, 0.7), (1, 2, 1, 0.9),
        )
    ]  # fmt: skip
    configs = {each.name: configured(config, each) for each in rows}
    path = write_curve(tmp_path, configs, rows)
    few, many = csv.DictReader(path.with_suffix(".csv").open())
    assert [few["fraction"], few["training images"], few["repeats"]] == ["0.2", "6", "2"]
    assert float(few["accuracy"]) == pytest.approx(0.4)
    expected = _over_repeats([0.2, 0.6]).interval
    assert (float(few["95 % interval low"]), float(few["95 % interval high"])) == pytest.approx(expected)
    # all images are the same ones, whatever the seed of the subset: two runs, not four
    assert [many["training images"], many["repeats"]] == ["30", "2"] and float(many["accuracy"]) == pytest.approx(0.8)
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    assert {each.suffix for each in before} == {".csv", ".tex", ".png", ".svg", ".pdf"}
    write_curve(tmp_path, configs, rows[::-1])
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_without_test_scores_there_is_a_line_that_says_so(config, tmp_path, capsys):
    rows = [row(0.2, seed, rate) for seed in (1, 2) for rate in (0.1, 0.2)]
    for given, why in ((rows, "nothing tells which settings are the best"), (rows[::2], "--test best scores them")):
        assert write_curve(tmp_path, {each.name: configured(config, each) for each in given}, given) is None
        assert why in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_probe_that_could_not_be_fitted_is_refused_before_anything_is_trained(config):
    config, varied = copy.deepcopy(config), [{"seed": 1, "dataset.shots": 2}]
    check_probe(config, varied)
    config.evaluate.linear_probe = True
    check_probe(config, varied)
    config.evaluate.stage = "stage1"
    with pytest.raises(InputError, match="only of evaluations of stage 2"):
        check_probe(config, varied)
    config.cache.dir = None
    with pytest.raises(InputError, match="linear_probe = true: needs features in the cache"):
        check_probe(config, varied)
    check_probe(config, [{"seed": 1}])  # the evaluation of a member says it
