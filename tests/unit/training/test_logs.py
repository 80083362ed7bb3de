"""What training leaves for people and tools: metrics.jsonl, TensorBoard, status.json, and settings to change."""

import json
from dataclasses import replace

import pytest
import torch

from masp.errors import DataError, InputError, StoppedEarly, one_line
from masp.runtime.devices import plain_memory_errors
from masp.runtime.run_directory import noting_failure, read_status, write_status
from masp.training.logs import KeyLog, StepResult, TrainingLog, cut_key_logs, hardly_moved, read_key_logs

STEP = StepResult(
    step=1,
    epoch=0,
    epochs_done=0.2,
    loss=1.0,
    grad_norm=1.0,
    learning_rate=0.1,
    num_images=4,
    num_tokens=100,
    flops=0.0,
    keys=(),
    wait_s=0.0,
)


def write_steps(log: TrainingLog, first: int, last: int) -> None:
    for step in range(first, last + 1):
        log.step(replace(STEP, step=step, epochs_done=step / 5, loss=float(step)))


def entries(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_hold_means_over_their_steps_and_the_last_step_has_one(tmp_path, capsys):
    with TrainingLog(tmp_path, "stage1", 10, 0, every=4) as log:
        write_steps(log, 1, 10)
    found = entries(tmp_path)
    assert [(e["step"], e["loss"]) for e in found] == [(4, 2.5), (8, 6.5), (10, 9.5)]
    assert found[0]["epoch"] == 0.8 and 0 <= found[0]["data_wait_fraction"] <= 1
    assert all(e["samples_per_second"] > 0 and e["tokens_per_second"] > e["samples_per_second"] for e in found)
    # no terminal: a bar that is drawn every half minute, and an end of line after the last
    shown = capsys.readouterr().err
    assert shown.endswith("\n") and "10/10" in shown and shown.count("\r") <= 3 and "loss=10.0000" in shown


def test_a_resumed_run_takes_up_the_file_where_the_checkpoint_is(tmp_path):
    with TrainingLog(tmp_path, "stage1", 10, 0, every=1) as log:
        write_steps(log, 1, 7)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')
    with TrainingLog(tmp_path, "stage1", 10, 5, every=1) as log:
        write_steps(log, 6, 10)
    assert [e["step"] for e in entries(tmp_path)] == list(range(1, 11))


@pytest.mark.parametrize(
    "damage",
    [b"\xff\x00\n", b"[]\n", b"{}\n", b'{"step": "x"}\n', b'{"step": 1e999}\n', b"[" * 100_000 + b"\n", b"\0" * 500],
)
def test_a_run_over_its_own_damaged_log_is_refused_or_writes_the_damaged_lines_again(tmp_path, damage):
    with TrainingLog(tmp_path, "stage1", 10, 0, every=1) as log:
        write_steps(log, 1, 5)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], damage, *lines[3:]]))
    with pytest.raises(DataError, match="metrics.jsonl, line 3 is damaged"), TrainingLog(tmp_path, "s", 10, 5, every=1):
        pass
    with TrainingLog(tmp_path, "stage1", 10, 2, every=1) as log:
        write_steps(log, 3, 10)
    assert [entry["step"] for entry in entries(tmp_path)] == list(range(1, 11))


def test_the_key_logs_of_all_ranks(tmp_path):
    for rank in range(11):
        with KeyLog(tmp_path, rank, 11) as log:
            for step in (1, 2, 3):
                log.step(replace(STEP, step=step, epoch=step // 3, keys=(f"train/{rank}-{step}",)))
    cut_key_logs(tmp_path, 2)
    lines = read_key_logs(tmp_path)
    assert [line.step for line in lines] == [1] * 11 + [2] * 11
    assert [line.keys for line in lines[:11]] == [(f"train/{rank}-1",) for rank in range(11)]
    path = tmp_path / "keys" / "rank-3.jsonl"
    path.write_bytes(path.read_bytes().replace(b"11", b'"11"'))
    with pytest.raises(DataError, match=f"{path}, line 1: num_ranks = '11': must be a valid integer"):
        read_key_logs(tmp_path)


def test_status_is_whole_and_says_what_ended_a_run(tmp_path):
    assert read_status(tmp_path) is None
    write_status(tmp_path, "running", step=3)
    status = read_status(tmp_path)
    assert (status.state, status.exit_code, status.step) == ("running", None, 3)
    for error, state, code in (
        (StoppedEarly("so"), "stopped", 75),
        (DataError("d"), "failed", 3),
        (KeyError("k"), "failed", 1),
    ):
        write_status(tmp_path, "running")
        with pytest.raises(type(error)), noting_failure(tmp_path):
            raise error
        assert (read_status(tmp_path).state, read_status(tmp_path).exit_code) == (state, code)
    assert read_status(tmp_path).message == "KeyError: 'k'"
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_a_rank_that_fails_because_another_left_does_not_hide_the_cause(tmp_path):
    def other_rank_leaves():
        with noting_failure(tmp_path):
            with pytest.raises(DataError), noting_failure(tmp_path):
                raise DataError("shard 3 is damaged")
            raise RuntimeError("Connection closed by peer")

    with pytest.raises(RuntimeError):
        other_rank_leaves()
    assert read_status(tmp_path).message == "shard 3 is damaged"
    with pytest.raises(KeyError), noting_failure(tmp_path):  # a later run has a cause of its own
        raise KeyError("bug")
    assert read_status(tmp_path).message == "KeyError: 'bug'"


def test_what_is_finished_stays_finished(tmp_path):
    with pytest.raises(InputError), noting_failure(tmp_path):
        write_status(tmp_path, "finished", 0, "by another rank of this call")
        raise InputError("too late")
    assert read_status(tmp_path).message == "by another rank of this call"
    with pytest.raises(InputError), noting_failure(tmp_path):
        raise InputError("refused")
    status = read_status(tmp_path)
    assert (status.state, status.exit_code, status.message) == ("finished", 2, "refused")


def test_a_folder_that_is_not_there_yet_gets_no_status(tmp_path):
    with pytest.raises(InputError), noting_failure(tmp_path / "run"):
        raise InputError("wrong")
    assert not (tmp_path / "run").exists()


def test_too_little_memory_is_one_line_with_the_setting_to_change():
    for bad in (lambda: torch.empty(2**50), lambda: bytearray(2**50)):
        with pytest.raises(InputError, match="^not enough memory: lower it$"), plain_memory_errors("lower it"):
            bad()
    with pytest.raises(InputError, match="^not enough GPU memory: lower it$"), plain_memory_errors("lower it"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="shape"), plain_memory_errors("lower it"):
        raise RuntimeError("shape")


def test_messages_stay_on_one_line_whatever_a_file_is_called():
    assert one_line("a\nb\x1b[31mé – ok") == "a\\nb\\x1b[31mé – ok"
    assert one_line("lone \udce9") == "lone \\udce9"


def write_losses(path, losses) -> None:
    path.write_text("".join(json.dumps({"step": 10 * i, "loss": loss}) + "\n" for i, loss in enumerate(losses, 1)))


@pytest.mark.parametrize(
    ("losses", "remedy"),
    [
        ([2.0, 1.95, 1.97, 1.96, 1.94], "raise stage2.learning_rate, which is 0.001, or stage2.num_epochs"),
        ([2.0, 2.0], "raise stage2.learning_rate"),
        ([2.0, 2.4, 2.6, 2.5, 2.5], "lower stage2.learning_rate, which is 0.001"),
        ([2.0, 1.9, 1.8, 1.7, 1.6], None),
        ([2.0], None),
        ([], None),
    ],
)
def test_a_loss_that_did_not_fall_is_named_with_the_remedy(tmp_path, losses, remedy):
    assert hardly_moved(tmp_path, "stage2", 50, 1e-3) is None  # nothing was logged
    write_losses(tmp_path / "metrics.jsonl", losses)
    found = hardly_moved(tmp_path, "stage2", 50, 1e-3)
    assert found is None if remedy is None else found.endswith(remedy) or remedy in found
    if remedy:
        assert "hardly moved" in hardly_moved(tmp_path, "stage2", 50, 1e-3, can_move=False)
        assert f"in 50 steps, from 2 to {losses[-1]:.4g}" in found
        write_losses(tmp_path / "validation.jsonl", [3.0, 2.9])
        assert hardly_moved(tmp_path, "stage2", 50, 1e-3) == found
        write_losses(tmp_path / "validation.jsonl", [3.0, 2.5, 2.9])
        assert hardly_moved(tmp_path, "stage2", 50, 1e-3) is None
