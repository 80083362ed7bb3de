"""How fast this machine is."""

from dataclasses import replace

import pytest

from masp.data.datasets import dataset_of
from masp.data.sample import Samples
from masp.errors import InputError
from masp.plan.plan import make_plan
from tests.vlm_sizes import save_config_only


def test_measured_rates(config):
    result = make_plan(config, measure=3)
    for work in (result.extract, *result.stages.values(), result.evaluate):
        assert "measured here on" in work.rate.source and work.rate.per_second > 0
    with pytest.raises(InputError, match="--measure 0"):
        make_plan(config, measure=0)


def test_weighted_answers_are_measured_too(config, monkeypatch):
    def with_votes(config):
        dataset = dataset_of(config)
        count = len(dataset.categories)
        samples = Samples.of(dataset.samples)
        labels = [replace(label, distribution=(1 / count,) * count) for label in samples.table.labels]
        return replace(dataset, samples=Samples(replace(samples.table, labels=labels), samples.rows))

    monkeypatch.setattr("masp.plan.plan.dataset_of", with_votes)
    label = make_plan(config, measure=2)
    config.stage2.supervision = "distribution"
    result = make_plan(config, measure=2)
    assert "measured here on 2" in result.stages["stage2"].rate.source
    assert result.stages["stage2"].tokens_per_image > label.stages["stage2"].tokens_per_image
    assert result.stages["stage1"].flops == label.stages["stage1"].flops


def test_measuring_needs_weights(config, tmp_path):
    config.vlm.path = str(save_config_only(tmp_path / "bare", "Qwen2-VL-2B"))
    with pytest.raises(InputError, match="weights"):
        make_plan(config, measure=1)
