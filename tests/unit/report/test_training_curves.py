"""Training logs as curves, from wherever they are and however damaged."""

import json

import pytest

from masp.report.page import write_report
from masp.report.run_config import RunConfig
from masp.report.training_curves import training_stages
from masp.runtime.run_directory import RunState, write_status
from tests.unit.report.test_page import Page, make_run


def test_curves_of_a_run_elsewhere_are_found_beside_its_checkpoint(tmp_path):
    run = make_run(tmp_path)
    (run / "stage1").rename(tmp_path / "elsewhere")
    with open(run / "config.yaml", "a") as file:
        file.write(f"checkpoint: {{aspect: {json.dumps(str(tmp_path / 'elsewhere' / 'aspect.pth'))}}}\n")
    assert "Stage 1: aspect modules" in Page(write_report(run)).text


@pytest.mark.parametrize(
    "damage",
    [b"[" * 100_000, b"{", b"\xff", b"[]", b'{"step": 1.5}', b'{"step": true}', b'{"step": -1}',
     b'{"step": 1' + b"0" * 400 + b"}", b'{"step": 1' + b"0" * 5000 + b"}"],
)  # fmt: skip
def test_damaged_lines_are_counted_and_left_out(tmp_path, damage):
    (tmp_path / "stage2").mkdir()
    lines = [b'{"step": 10, "loss": 2.5, "epoch": 1}', damage, b'{"step": 20, "loss": NaN, "learning_rate": 1e999}']
    (tmp_path / "stage2" / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (stage,) = training_stages(tmp_path, tmp_path / "evaluate", RunConfig())
    assert (stage.num_skipped, stage.num_steps, stage.loss, len(stage.charts)) == (1, 20, None, 1)


def test_without_a_single_line_there_is_no_stage(tmp_path):
    (tmp_path / "stage1").mkdir()
    (tmp_path / "stage1" / "metrics.jsonl").write_bytes(b"nothing\n")
    (tmp_path / "stage2" / "metrics.jsonl").mkdir(parents=True)
    assert training_stages(tmp_path, tmp_path / "evaluate", RunConfig()) == []


def test_what_training_warned_of_is_shown_with_its_curves(tmp_path):
    run = make_run(tmp_path)
    assert "Warning:" not in Page(write_report(run)).text
    write_status(run / "stage1", RunState.FINISHED, 0, warning="stage1: the loss <b>hardly</b> moved")
    assert "Warning: stage1: the loss <b>hardly</b> moved" in Page(write_report(run)).text
    (run / "stage1" / "status.json").write_bytes(b"{")  # a report shows what there is
    assert "Stage 1: aspect modules" in Page(write_report(run)).text


def test_the_restarts_of_stage_1_are_shown_with_the_one_that_was_kept(tmp_path):
    run = make_run(tmp_path)
    assert "restart 0" not in Page(write_report(run)).text
    choice = {"chosen": 1, "seed": 5, "step": 9, "held_out_losses": [2.25, 1.5, None]}
    note = {"seeds": [4, 5, 6], "dropped": {"2": 7}, "aspects": {"<b>scene</b>": choice}}
    (run / "stage1" / "restarts.json").write_text(json.dumps(note))
    text = Page(write_report(run)).text
    assert "Restart 2 was dropped: its loss was not finite in step 7." in text
    for part in ("restart 2", "<b>scene</b>", "2.25", "1.5"):
        assert part in text
    (run / "stage1" / "restarts.json").write_text('{"aspects": 1}')  # a report shows what there is
    assert "restart 0" not in Page(write_report(run)).text
