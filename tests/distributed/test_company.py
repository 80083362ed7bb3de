"""Ranks that lose one of them, use one directory at once, or get a bad number: all of them end, soon, and say why."""

import json
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from masp.cli.main import main
from masp.training.logs import read_key_logs
from tests.commands import Ranks


@pytest.fixture
def argv(world, tmp_path):
    def make(stage: str = "stage2", *more: str, output: Path = tmp_path) -> list[str]:
        few = ("aspects=[scene,object]", "checkpoint.aspect=none", f"{stage}.global_batch_size=5")
        every = (f"{stage}.log_every=1", f"{stage}.checkpoint_every=2", f"{stage}.log_keys=true")
        return ["train", "--stage", stage, *world.settings(output, *few, *every, *more)]

    return make


def status(output: Path, stage: str = "stage2") -> dict:
    return json.loads((output / stage / "status.json").read_text())


def steps(output: Path, stage: str = "stage2") -> int:
    path = output / stage / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.parametrize(
    ("size", "lost", "zero_stage"), [(2, 1, 2), *(pytest.param(3, lost, 3, marks=pytest.mark.full) for lost in (0, 1))]
)
def test_a_killed_rank_ends_the_others_soon_and_is_named(commands, argv, tmp_path, size, lost, zero_stage):
    settings = argv("stage2", f"engine.zero_stage={zero_stage}")
    ranks = Ranks(commands, size, *settings, "stage2.num_epochs=500")
    ranks.running[0].when(lambda: steps(tmp_path) >= 3)
    # another run on the same ranks is refused, and this one's status stays
    others = Ranks(commands, size, *settings, "stage2.num_epochs=500").wait()
    assert others[0].code == 2 and "is in use by another run, process " in others[0].stderr
    assert all(result.code != 0 and "Traceback" not in result.stderr for result in others), others
    assert status(tmp_path)["state"] == "running"

    ranks.running[lost].kill(signal.SIGKILL)
    killed = time.monotonic()
    results = ranks.wait()
    assert time.monotonic() - killed < 40
    words = f"rank {lost} (process {ranks.running[lost].pid} on "
    for rank, result in enumerate(results):
        if rank != lost:
            assert result.code == 1 and "Traceback" not in result.stderr, result
            assert result.stderr.splitlines()[-1].startswith(f"error: {words}")
    note = status(tmp_path)
    assert note["state"] == "failed" and note["exit_code"] == 1 and note["message"].startswith(words)

    (tmp_path / "STOP").touch()
    resumed = Ranks(commands, size, *settings, "stage2.num_epochs=500").wait()
    assert [result.code for result in resumed] == [75] * size, resumed
    assert "resuming after step" in resumed[0].stderr and "by the file" in status(tmp_path)["message"]


@pytest.mark.parametrize("zero_stage", [2, pytest.param(3, marks=pytest.mark.full)])
def test_a_loss_that_is_not_finite_ends_all_ranks(commands, argv, tmp_path, zero_stage):
    more = ("aspect_module.init_scale=1e39", f"engine.zero_stage={zero_stage}")  # more than fp32 holds
    results = Ranks(commands, 2, *argv("stage1", *more)).wait()
    assert [result.code for result in results] == [2, 1], results
    assert "stage1: step 1 is not taken: the loss is nan; " in results[0].stderr
    assert all("Traceback" not in result.stderr for result in results)
    found = json.loads((tmp_path / "stage1" / "not-finite-step-00000001.json").read_text())
    assert sum(map(len, found["keys_per_rank"])) == 5 and all(found["keys_per_rank"])
    assert set(found["suspects"]) == {key for part in found["keys_per_rank"] for key in part}
    assert status(tmp_path, "stage1")["exit_code"] == 2 and not list((tmp_path / "stage1").glob("checkpoints/step*"))


def test_another_number_of_ranks_sees_the_same_samples_once(commands, argv, tmp_path):
    """Stopped on two ranks, finished on one: the logged keys are those of one process throughout."""
    settings = argv("stage2", "stage2.num_epochs=2", "stage2.learning_rate=1e-4")
    (tmp_path / "STOP").touch()
    assert [result.code for result in Ranks(commands, 2, *settings).wait()] == [75, 75]
    assert main(settings) == 0
    alone = argv("stage2", "stage2.num_epochs=2", "stage2.learning_rate=1e-4", output=tmp_path / "alone")
    assert main(alone) == 0
    by_step = [{}, {}]
    for found, output in zip(by_step, (tmp_path, tmp_path / "alone"), strict=True):
        for line in read_key_logs(output / "stage2"):
            found.setdefault((line.step, line.epoch), Counter()).update(line.keys)
    assert by_step[0] == by_step[1]
    for epoch in range(2):
        seen = sum((keys for (_, e), keys in by_step[0].items() if e == epoch), Counter())
        assert len(seen) == 18 and set(seen.values()) == {1}
    losses = [
        [json.loads(line)["loss"] for line in (o / "stage2" / "metrics.jsonl").read_text().splitlines()]
        for o in (tmp_path, tmp_path / "alone")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
