"""Restarts of stage 1 on two ranks are the runs that they would have been alone, on one; a kill loses nothing."""

import os
import signal
import subprocess
import sys
import time

import pytest

from masp.models.restarts import restart_seed
from masp.training.loop import train
from tests.runs import REPOSITORY
from tests.unit.training.restarts.test_engine import (
    GIVEN,
    NUM,
    assert_restarts,
    config,
    latest,
    note,
    world,
)

__all__ = ["world"]


def start(world, output, *more, num_ranks=1, restarts=NUM):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    command = [sys.executable, *(launcher if num_ranks > 1 else []), "-m", "masp", "train", "--stage", "stage1"]
    command += ["--config", world, *GIVEN, f"output_dir={output}", f"stage1.restarts={restarts}", *more]
    given = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.full
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_two_ranks_train_what_single_runs_train(world, tmp_path, zero_stage):
    """Compared with runs of their own on two ranks: what one rank computes differs in its last bits, which the first
    steps of Adam enlarge where a gradient is almost zero."""
    given = f"engine.zero_stage={zero_stage}"
    train(config(world, tmp_path / "one", f"stage1.restarts={NUM}"), "stage1")
    run(world, tmp_path / "two", given)
    numbers = [0, 2]
    for number in numbers:
        seed = f"stage1.init_seed={restart_seed(3407, number)}"
        run(world, tmp_path / "alone" / str(number), given, *([seed] if number else []), restarts=1)
    assert_restarts(tmp_path / "two", tmp_path / "alone", numbers)
    one, two = note(tmp_path / "one"), note(tmp_path / "two")
    for aspect, choice in one["aspects"].items():
        assert two["aspects"][aspect]["chosen"] == choice["chosen"]
        assert two["aspects"][aspect]["held_out_losses"] == pytest.approx(choice["held_out_losses"], abs=1e-2)


def run(world, output, *more, restarts=NUM):
    process = start(world, output, *more, num_ranks=2, restarts=restarts)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text[-3000:]


@pytest.mark.full
def test_a_killed_run_goes_on_to_the_same_bits(world, tmp_path):
    given = ("stage1.num_epochs=8", "stage1.checkpoint_every=1")
    assert start(world, tmp_path / "straight", *given).wait(timeout=300) == 0
    process = start(world, tmp_path / "killed", *given)
    checkpoints = tmp_path / "killed" / "stage1" / "checkpoints"
    deadline = time.monotonic() + 120
    while not (checkpoints / "step-00000003").is_dir() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "stage1" / "aspect.safetensors").exists(), "the kill came too late"
    again = start(world, tmp_path / "killed", *given)
    text, _ = again.communicate(timeout=300)
    assert again.returncode == 0 and "resuming after step" in text, text[-3000:]
    for name in ("aspect.safetensors", "restarts.json"):
        first, second = ((tmp_path / d / "stage1" / name).read_bytes() for d in ("straight", "killed"))
        assert first == second, name
    assert latest(tmp_path / "killed").keys() == latest(tmp_path / "straight").keys()
