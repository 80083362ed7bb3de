"""The text of a plan."""

import dataclasses

import pytest

from masp.plan.actual import Actual, ActualCache, Comparison
from masp.plan.plan import make_plan
from masp.plan.render import duration, flop, render, size


def test_text(config):
    text = render(make_plan(config))
    for words in ("train", "stage1", "stage2", "fits", "paid for itself", "8 bits", "989 TFLOP/s at 40% utilization"):
        assert words in text
    assert "so far" not in text


def test_text_without_a_cache(config):
    with_cache = make_plan(config)
    config.cache.dir = None
    plan = make_plan(config)
    assert plan.space is None and plan.cache == dataclasses.replace(with_cache.cache, dir=None)
    assert plan.to_dict()["space"] is None and plan.actual == Actual(None, None, {})
    both = zip(plan.stages.values(), with_cache.stages.values(), strict=True)
    assert all(one.flops == other.flops + one.encoder_flops > other.flops > 0 for one, other in both)
    assert plan.stages["stage2"].encoder_flops / config.stage2.num_epochs < plan.extract.flops  # of train alone
    text = render(plan)
    assert f"none (cache.dir = null): the encoder runs in training; a cache would take {size(plan.cache.bytes)}" in text
    assert (
        f"stage1: the encoder takes {flop(plan.stages['stage1'].encoder_flops / config.stage1.num_epochs)} and" in text
    )
    assert "Without a cache, training runs the encoder for" in text
    for words in ("fits", "reads", "extract ", "paid for itself"):
        assert words not in text


def test_an_unfinished_cache_of_another_precision(config):
    cache = ActualCache(
        False, "int8", Comparison(4, 3), Comparison(2000, 1000), Comparison(None, 7), Comparison(None, 0)
    )
    plan = dataclasses.replace(make_plan(config), actual=Actual(cache, None, {}))
    lines = render(plan).partition("so far")[2].splitlines()
    assert lines[0].split() == ["predicted", "actual", "ratio"]
    assert lines[1].rstrip() == "cache is in int8, not fp32"
    assert [line.split() for line in lines[2:]] == [
        ["shards", "so", "far", "4", "3", "0.750"],
        ["images", "7"],
        ["vision", "tokens", "0"],
        ["bytes", "of", "shards", "2,000", "1,000", "0.500"],
    ]


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (size, 999, "1.0 kB"),
        (size, 2.5e6, "2.50 MB"),
        (size, 3e9, "3.00 GB"),
        (size, 0.9e12, "900.00 GB"),
        (size, 4e12, "4.00 TB"),
        (flop, 5e5, "0.50 MFLOP"),
        (flop, 5e9, "5.00 GFLOP"),
        (flop, 5e12, "5.00 TFLOP"),
        (flop, 5e15, "5.00 PFLOP"),
        (flop, 5e18, "5.00 EFLOP"),
        (duration, 1234.56, "1,234.6 h"),
        (duration, 0.5, "30.0 min"),
        (duration, 0.001, "3.6 s"),
    ],
)
def test_units(show, value, text):
    assert show(value) == text
