"""What quantization costs is measured against the language half as it is, on images from the cache."""

import json

import pytest

from masp.cli.main import main
from masp.config import load_config
from masp.errors import InputError
from masp.experiments.quantization_cost import measure, report, table
from masp.extraction.job import extract
from tests.runs import make_run


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = make_run(tmp_path_factory.mktemp("run"), 2, 8)
    extract(load_config(str(path)))
    return path


def test_more_bits_cost_less_accuracy_and_more_memory(path, capsys):
    result = report(load_config(str(path)), None, 100)
    assert (result.num_images, result.split, result.precision) == (8, "test", "fp32")
    none, int8, int4 = (result.kinds[kind] for kind in ("none", "int8", "int4"))
    assert none.share_of_none == none.agreement == 1 and none.score_change_max == none.accuracy_difference == 0
    assert 0 < int8.score_change_mean < int4.score_change_mean <= int4.score_change_max < 5
    assert none.bytes > int8.bytes > int4.bytes
    for row in (int8, int4):
        assert row.agreement == 1 - row.num_changed / 8
        assert row.accuracy - none.accuracy == row.accuracy_difference
    text = capsys.readouterr().out
    assert text.endswith(table(result) + "\n") and len(table(result).splitlines()) == 6


def test_from_the_command_line(path, capsys):
    assert main(["quantization", "--config", str(path), "--kind", "int8", "--num-images", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["num_images"] == 3 and list(result["kinds"]) == ["none", "int8"]
    assert main(["quantization", "--config", str(path), "--kind", "fp4"]) == 2
    assert "--kind fp4: must be one of none, int8, int4" in capsys.readouterr().err
    with pytest.raises(InputError, match="--num-images 0"):
        measure(load_config(str(path)), ["int8"], 0)
