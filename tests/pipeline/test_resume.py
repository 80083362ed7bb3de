"""A run that was stopped, killed or done in another way ends with the tensors of one that nothing disturbed."""

import json
import random
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from masp.cli.main import main

STAGES = ("stage1", "stage2")
LONG = ("stage1.num_epochs=8", "stage2.num_epochs=6", "stage1.checkpoint_every=5", "stage2.checkpoint_every=5")
"""Long enough to be stopped half-way, with checkpoints between."""


def artefact(output: Path, stage: str) -> dict[str, torch.Tensor]:
    name = "aspect" if stage == "stage1" else "soft_prompt_folder"
    return load_file(output / stage / f"{name}.safetensors")


def status(output: Path, stage: str) -> dict:
    return json.loads((output / stage / "status.json").read_text())


def steps(output: Path, stage: str) -> list[int]:
    path = output / stage / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def times(folder: Path) -> dict[Path, int]:
    """When each file was written, but for those that say who looked at the run last."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name not in ("status.json", ".lock")}


def assert_equal(found: dict, expected: dict, tolerance: float = 0) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if tolerance:
            assert torch.allclose(found[name], tensor, atol=tolerance, rtol=0), name
        else:
            assert torch.equal(found[name], tensor), name


@pytest.fixture(scope="module")
def settings(world, trained):
    """Arguments of `masp train` for a run of its own; stage 2 builds on the aspect modules of `trained`."""

    def make(output: Path, stage: str, *overrides: str) -> tuple[str, ...]:
        given = f"checkpoint.aspect={trained / 'stage1' / 'aspect.safetensors'}"
        every_step = (f"{stage}.log_every=1", f"{stage}.global_batch_size=3", f"{stage}.learning_rate=1e-3")
        return ("train", "--stage", stage, *world.settings(output, given, *every_step, *overrides))

    return make


@pytest.fixture(scope="module")
def undisturbed(commands, settings, tmp_path_factory) -> dict[str, dict]:
    output = tmp_path_factory.mktemp("undisturbed")
    for stage in STAGES:
        commands.ok(*settings(output, stage, *LONG))
    return {stage: artefact(output, stage) for stage in STAGES}


@pytest.mark.parametrize(("stage", "number"), [("stage1", signal.SIGTERM), ("stage2", signal.SIGINT)])
def test_a_signal_then_the_same_command(commands, settings, undisturbed, tmp_path, stage, number):
    command = settings(tmp_path, stage, *LONG, "engine.num_workers=1")
    running = commands.start(*command)
    running.when(lambda: len(steps(tmp_path, stage)) >= 7)
    running.kill(number, group=True)  # the workers get it too
    stopped = running.wait()
    assert stopped.code == 75, stopped
    note = status(tmp_path, stage)
    last = steps(tmp_path, stage)[-1]
    assert (note["state"], note["exit_code"]) == ("stopped", 75)
    assert f"stopped on request after step {last} of " in note["message"]
    assert stopped.stderr.splitlines()[-1] == f"error: {note['message']}"
    assert (tmp_path / stage / "checkpoints" / "latest").read_text() == f"step-{last:08d}"
    assert not list((tmp_path / stage).glob("*.pt*"))

    resumed = commands.ok(*command)
    assert f"{stage}: resuming after step {last} of " in resumed.stderr
    assert_equal(artefact(tmp_path, stage), undisturbed[stage])
    total = steps(tmp_path, stage)
    assert total == list(range(1, total[-1] + 1)) and status(tmp_path, stage)["state"] == "finished"
    assert len(list((tmp_path / stage / "checkpoints").glob("step-*"))) == 2

    # a finished stage: nothing is done, and it says so
    before = times(tmp_path / stage)
    again = commands.ok(*command)
    assert again.last_line.startswith(f"{stage}: finished already, {total[-1]} steps: ")
    assert times(tmp_path / stage) == before


@pytest.mark.parametrize("num_kills", [2, pytest.param(12, marks=pytest.mark.full)])
@pytest.mark.parametrize("stage", STAGES)
def test_kills_at_random_moments(commands, settings, undisturbed, tmp_path, stage, num_kills):
    command, moment = settings(tmp_path, stage, *LONG), random.Random(stage)
    for _ in range(num_kills):
        running = commands.start(*command)
        begun = len(steps(tmp_path, stage))
        # somewhere in the next steps, or while a checkpoint is written
        wanted = min(begun + moment.randint(1, 9), 31)
        done = f"{stage}: "
        running.when(lambda n=wanted, r=running, d=done: len(steps(tmp_path, stage)) >= n or d in r.output()[0])
        running.kill(group=True)
        running.wait()
    commands.ok(*command)
    assert_equal(artefact(tmp_path, stage), undisturbed[stage])
    total = steps(tmp_path, stage)
    assert total == list(range(1, total[-1] + 1))
    assert not list((tmp_path / stage / "checkpoints").glob(".*"))


def test_a_second_ctrl_c_ends_it_at_once(commands, settings, tmp_path):
    running = commands.start(*settings(tmp_path, "stage2", "stage2.num_epochs=500"))
    running.when(lambda: len(steps(tmp_path, "stage2")) >= 2)
    for _ in range(2):
        running.kill(signal.SIGINT)
    ended = running.wait()
    assert ended.code in (75, 130)  # both may arrive within one step
    assert "Traceback" not in ended.stderr and ended.stderr.splitlines()[-1].startswith("error: ")
    assert status(tmp_path, "stage2")["state"] == "stopped"


def test_killed_between_the_last_checkpoint_and_the_artefact(commands, settings, undisturbed, tmp_path):
    command = settings(tmp_path, "stage2", *LONG)
    commands.ok(*command)
    (tmp_path / "stage2" / "soft_prompt_folder.safetensors").unlink()
    commands.ok(*command)
    assert_equal(artefact(tmp_path, "stage2"), undisturbed["stage2"])


@pytest.fixture(scope="module")
def plain(commands, settings, tmp_path_factory) -> dict[str, dict]:
    """One epoch with micro-batches of 2, read by the process itself."""
    output = tmp_path_factory.mktemp("plain")
    for stage in STAGES:
        commands.ok(*settings(output, stage, *one_epoch(stage)))
    return {stage: artefact(output, stage) for stage in STAGES}


def one_epoch(stage: str) -> tuple[str, str]:
    # Adam turns the rounding of tiny gradients into whole steps, so the steps are small
    return f"{stage}.num_epochs=1", f"{stage}.learning_rate=1e-5"


@pytest.mark.parametrize(
    "overrides",
    [
        ("engine.num_workers=2", "micro_batch_size=1"),
        pytest.param(("engine.num_workers=0", "micro_batch_size=3", "engine.zero_stage=0"), marks=pytest.mark.full),
        ("micro_batch_size=8", "micro_batch_tokens=150"),
        pytest.param(("engine.zero_stage=3", "micro_batch_size=8"), marks=pytest.mark.full),
    ],
    ids=lambda value: value[-1],
)
@pytest.mark.parametrize("stage", STAGES)
def test_neither_workers_nor_micro_batches_change_the_result(commands, settings, plain, tmp_path, stage, overrides):
    more = [value if "." in value else f"{stage}.{value}" for value in overrides]
    commands.ok(*settings(tmp_path, stage, *one_epoch(stage), *more))
    assert_equal(artefact(tmp_path, stage), plain[stage], tolerance=1e-6)


def test_other_settings_are_refused_by_name(commands, settings, tmp_path, capsys):
    short = ("stage2.num_epochs=1", "stage2.global_batch_size=9")
    commands.ok(*settings(tmp_path, "stage2", *short))
    before = (tmp_path / "stage2" / "config.yaml").read_text()
    for changed in (
        "stage2.learning_rate=2e-3",
        "stage2.num_epochs=3",
        "stage2.global_batch_size=8",
        "seed=1",
        "stage2.num_soft_prompt_tokens=5",
        "aspects=[]",
        "checkpoint.aspect=none",
        "engine.precision=bf16",
    ):
        assert main(list(settings(tmp_path, "stage2", *short, changed))) == 2
        message = capsys.readouterr().err
        name = changed.split("=")[0] if changed != "checkpoint.aspect=none" else "aspects"
        (error,) = (line for line in message.splitlines() if not line.startswith("warning: "))
        assert error.startswith("error: ") and f"with {name} = " in error, message
        assert (tmp_path / "stage2" / "config.yaml").read_text() == before
