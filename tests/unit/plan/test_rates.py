"""How fast a machine is: stated, or as an earlier run was."""

import json

import pytest

from masp.errors import InputError
from masp.plan.rates import Rate, rates_of_run, stated_rates


def test_rates(tmp_path):
    rates = stated_rates(100, 0.5)
    assert rates.extract.hours(50e12 * 3600, 0) == pytest.approx(1)
    for tflops, utilization in ((0, 0.5), (float("nan"), 0.5), (float("inf"), 0.5), (100, 0), (100, 1.5)):
        with pytest.raises(InputError, match="--tflops|--utilization"):
            stated_rates(tflops, utilization)
    with pytest.raises(InputError, match="--rate-from"):
        rates_of_run(tmp_path, rates)
    (tmp_path / "stage2").mkdir()
    lines = [{"samples_per_second": 1.0, "tokens_per_second": t} for t in (1.0, 900.0, 1000.0, 1100.0)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"samples_per'
    (tmp_path / "stage2" / "metrics.jsonl").write_text(text)
    found = rates_of_run(tmp_path, rates)
    assert found.stage1 == rates.stage1
    assert (found.stage2.unit, found.stage2.per_second) == ("tokens", 1000.0)
    assert found.stage2.hours(flops=0, tokens=3.6e6) == pytest.approx(1)
    assert Rate(2.0, "FLOP", "").hours(7200, 0) == pytest.approx(1)
