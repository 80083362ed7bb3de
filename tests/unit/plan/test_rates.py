"""How fast a machine is: stated, or as an earlier run was."""

import json
import os

import pytest

from masp.errors import DataError, InputError
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
    for settings, live in (("cache: {dir: null}", True), ("cache: {dir: there}", False), ("cache: null", False)):
        (tmp_path / "stage2" / "config.yaml").write_text(settings)
        assert rates_of_run(tmp_path, rates).stage2.includes_encoder is live


BEYOND = "9" * 400  # no float, and more digits than an error line should repeat


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"samples_per_second": NaN, "tokens_per_second": 1}', "samples_per_second = nan: must be a finite number"),
        ('{"samples_per_second": 1, "tokens_per_second": 1e999}', "tokens_per_second = inf: must be a finite number"),
        (f'{{"samples_per_second": {BEYOND}, "tokens_per_second": 1}}', "samples_per_second = "),
        ('{"samples_per_second": -1, "tokens_per_second": 1}', "samples_per_second = -1"),
        ('{"samples_per_second": 1, "tokens_per_second": 1e300}', "tokens_per_second = 1e+300"),
        ('{"samples_per_second": "1", "tokens_per_second": 1}', "samples_per_second = '1'"),
        ('{"samples_per_second": true, "tokens_per_second": 1}', "samples_per_second = true"),
        ('{"samples_per_second": 1}', "tokens_per_second is missing"),
        ("[" * 100_000, "not valid JSON"),
        ('{"samples_per_second": 1, "more": ' + "[" * 100_000, "not valid JSON"),
        ("[1, 2]", "[1, 2]"),
        ("null", "must be an object"),
        ("7", "7"),
        ("", "not valid JSON"),
        ("\xff", "not valid JSON"),
    ],
    ids=range(15),
)
def test_a_damaged_log_is_one_short_line(tmp_path, line, words):
    (tmp_path / "stage1").mkdir()
    log = tmp_path / "stage1" / "metrics.jsonl"
    log.write_bytes(b'{"samples_per_second": 1.0, "tokens_per_second": 1.0}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(DataError) as error:
        rates_of_run(tmp_path, stated_rates(1, 1))
    text = str(error.value)
    assert text.startswith(f"{log}, line 2: ") and words in text and "\n" not in text
    assert len(text.removeprefix(str(log))) < 500


def test_a_log_that_is_not_a_regular_file(tmp_path):
    (tmp_path / "stage1" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(InputError, match="not a regular file"):
        rates_of_run(tmp_path, stated_rates(1, 1))
    (tmp_path / "stage1" / "metrics.jsonl").rmdir()
    os.mkfifo(tmp_path / "stage1" / "metrics.jsonl")
    with pytest.raises(InputError, match="not a regular file"):
        rates_of_run(tmp_path, stated_rates(1, 1))


@pytest.mark.parametrize("run_dir", ["x" * 300, "a\0b"])
def test_a_directory_that_no_file_system_accepts(run_dir):
    with pytest.raises(InputError, match=r"metrics\.jsonl cannot be read"):
        rates_of_run(run_dir, stated_rates(1, 1))


@pytest.mark.parametrize(("tflops", "utilization"), [(1e300, 1), (5e-324, 1), (989, 5e-324)])
def test_a_rate_that_makes_hours_infinite_or_zero(tflops, utilization):
    with pytest.raises(InputError, match="must be from 1 to 1e\\+24"):
        stated_rates(tflops, utilization)
