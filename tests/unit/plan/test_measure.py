"""How fast this machine is."""

import pytest

from masp.errors import InputError
from masp.plan.plan import make_plan
from tests.vlm_sizes import save_config_only


def test_measured_rates(config):
    result = make_plan(config, measure=3)
    for work in (result.extract, *result.stages.values(), result.evaluate):
        assert "measured here on" in work.rate.source and work.rate.per_second > 0
    with pytest.raises(InputError, match="--measure 0"):
        make_plan(config, measure=0)


def test_measuring_needs_weights(config, tmp_path):
    config.vlm.path = str(save_config_only(tmp_path / "bare", "Qwen2-VL-2B"))
    with pytest.raises(InputError, match="weights"):
        make_plan(config, measure=1)
