"""What a call took is written down, and read back by whoever plans the next."""

import json
import time

import pytest

from masp.errors import InputError
from masp.extraction.job import extract
from masp.extraction.progress import TIMINGS, Progress, read_timings
from tests.images import make_config, make_dataset
from tests.tiny import make_vlm


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    base = tmp_path_factory.mktemp("progress")
    return make_dataset(base / "data", 12, 4), make_vlm(base / "vlm")


def test_each_call_leaves_a_line_of_timings(made, tmp_path):
    config = make_config(made[0], made[1], tmp_path / "c")
    for task in (0, 1):
        extract(config, num_tasks=2, task_index=task)
    lines = [json.loads(line) for line in (tmp_path / "c" / "timings.jsonl").read_text().splitlines()]
    assert sum(line["num_images"] for line in lines) == 16
    for line in lines:
        assert line["num_bytes"] > 0 and line["seconds"] > 0 and line["dtype"] == "fp32"
        assert sum(line[f"share_{s}"] for s in ("reading", "encoding", "writing")) == pytest.approx(1, abs=1e-3)


def test_timings_are_read_back_and_damaged_lines_passed_over(tmp_path):
    assert read_timings(tmp_path) == []
    progress = Progress(7)
    with progress.stage("encoding"):
        time.sleep(0.01)
    progress.wrote(7, 9_000)
    progress.save(tmp_path, "cpu (AVX2)", "fp32")
    Progress(0).save(tmp_path, "cpu (AVX2)", "fp32")  # of no image
    with open(tmp_path / TIMINGS, "a") as file:
        file.write("[" * 50_000 + "\n" + '{"num_images": NaN}\n' + '{"num_images": 7')
    (timing,) = read_timings(tmp_path)
    assert (timing.num_images, timing.num_bytes, timing.device, timing.dtype) == (7, 9_000, "cpu (AVX2)", "fp32")
    assert timing.share_encoding == 1.0


def test_a_log_that_is_something_else_is_one_line(tmp_path):
    (tmp_path / TIMINGS).mkdir()
    with pytest.raises(InputError, match=r"timings.jsonl cannot be read: not a regular file"):
        read_timings(tmp_path)
