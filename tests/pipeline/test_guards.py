"""What ends a training run before it spoils anything, and what makes it stop: in this process, and over processes."""

import json
import math
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from masp.cli.main import main
from masp.runtime.run_directory import RunInUse, RunLock
from masp.training.logs import read_key_logs


@pytest.fixture
def argv(world, tmp_path):
    """Arguments of a short stage 2 with a soft prompt alone; `more` overrides."""

    def make(*more: str, output: Path = tmp_path) -> list[str]:
        few = ("aspects=[]", "stage2.num_epochs=3", "stage2.global_batch_size=6", "stage2.log_every=1")
        return ["train", "--stage", "stage2", *world.settings(output, *few, "stage2.checkpoint_every=2", *more)]

    return make


def status(output: Path) -> dict:
    return json.loads((output / "stage2" / "status.json").read_text())


def log(output: Path, name: str = "metrics") -> list[dict]:
    return [json.loads(line) for line in (output / "stage2" / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_before_the_step(argv, tmp_path, monkeypatch, capsys, what):
    from masp.models.trainable import SoftPrompt
    from masp.training.steps import Steps

    read, seen = Steps.__getitem__, []

    def poisoned(steps: Steps, number: int):
        step = read(steps, number)
        if number == 4:
            seen.append(step.keys[1][0])
            step.batches[1].features[0, 0, 0] = math.nan
        return step

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            calls.append(1)
            return gradient * (math.inf if len(calls) > 13 else 1)

    calls: list[int] = []
    if what == "loss":
        monkeypatch.setattr(Steps, "__getitem__", poisoned)
    else:  # 18 images in micro-batches of 2: the 14th is in the fifth step
        forward = SoftPrompt.forward
        monkeypatch.setattr(SoftPrompt, "forward", lambda module: Gradient.apply(forward(module)))
    assert main(argv()) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    path = tmp_path / "stage2" / "not-finite-step-00000005.json"
    assert f"stage2: step 5 is not taken: the {'loss is nan' if what == 'loss' else 'loss is '}" in line
    assert str(path) in line and "names its 6 samples" in line and "stage2.learning_rate, which is 0.01" in line
    found = json.loads(path.read_text())
    assert found["step"] == 5 and len(found["keys_per_rank"][0]) == 6
    assert found["suspects"] == seen and ("1 of them" in line) == bool(seen)
    note = status(tmp_path)
    assert (note["state"], note["exit_code"]) == ("failed", 2) and line == f"error: {note['message']}"
    checkpoints = tmp_path / "stage2" / "checkpoints"
    assert (checkpoints / "latest").read_text() == "step-00000004"
    assert all(t.isfinite().all() for t in load_file(checkpoints / "step-00000004" / "state.safetensors").values())
    monkeypatch.undo()
    assert main(argv()) == 0  # with the data mended it goes on
    assert [e["step"] for e in log(tmp_path)] == list(range(1, 10))


def test_a_run_directory_in_use_is_refused_and_left_alone(commands, argv, tmp_path, capsys):
    endless = argv("stage2.num_epochs=500")
    running = commands.start(*endless)
    running.when(lambda: (tmp_path / "stage2" / "metrics.jsonl").exists() and log(tmp_path))
    before = (tmp_path / "stage2" / "status.json").read_text()
    assert main(endless) == 2
    line = capsys.readouterr().err
    assert f"{tmp_path / 'stage2'} is in use by another run, process {running.pid} on " in line
    assert (tmp_path / "stage2" / "status.json").read_text() == before  # not ours to change
    assert main(argv("stage2.learning_rate=1")) == 2 and "is in use" in capsys.readouterr().err
    assert (tmp_path / "stage2" / "status.json").read_text() == before

    running.kill(signal.SIGKILL)  # what it leaves behind blocks nobody
    running.wait()
    (tmp_path / "STOP").touch()
    assert main(endless) == 75
    assert "is in use" not in capsys.readouterr().err


def test_the_lock_is_given_back_and_names_its_holder(tmp_path):
    with RunLock(tmp_path / "missing") as lock:
        assert lock._descriptor is None  # nobody can be in a folder that is not there
    lock = RunLock(tmp_path)
    with lock:
        lock.take()
        child = os.fork()
        if child == 0:
            try:
                RunLock(tmp_path).take()
            except RunInUse as error:
                os._exit(17 if f"process {os.getppid()} on " in str(error) else 18)
            os._exit(19)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
    (tmp_path / ".lock").write_text("no JSON")
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["torch.OutOfMemoryError", "MemoryError", "allocator"])
def test_too_little_memory_names_the_setting(argv, tmp_path, monkeypatch, capsys, kind):
    from masp.training.engine import Engine

    def full(*_):
        if kind == "allocator":
            torch.empty(2**50)
        raise torch.OutOfMemoryError("CUDA out of memory") if "torch" in kind else MemoryError

    monkeypatch.setattr(Engine, "accumulate", full)
    assert main(argv()) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: not enough") and "lower stage2.micro_batch_size, which is 2" in line
    assert status(tmp_path)["exit_code"] == 2


def test_a_file_stop_a_time_limit_and_a_second_signal(commands, argv, tmp_path, capsys):
    endless = argv("stage2.num_epochs=500", "stage2.keep=1")
    (tmp_path / "STOP").touch()
    assert main(endless) == 75
    assert f"stopped by the file {tmp_path / 'STOP'} after step 1 of 1500" in capsys.readouterr().err
    assert not (tmp_path / "STOP").exists()

    assert main([*endless, "engine.time_limit_min=0.01"]) == 75
    assert "stopped at its time limit, engine.time_limit_min = 0.01, after step " in capsys.readouterr().err

    running = commands.start(*endless)
    begun = log(tmp_path)[-1]["step"]
    running.when(lambda: log(tmp_path)[-1]["step"] > begun + 2)
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM):
        running.kill(number)
        time.sleep(0.002)
    result = running.wait()
    assert result.code == 75 and "stopped on request after step " in result.stderr
    note = status(tmp_path)
    assert (note["state"], note["exit_code"]) == ("stopped", 75)
    last = log(tmp_path)[-1]["step"]
    assert (tmp_path / "stage2" / "checkpoints" / "latest").read_text() == f"step-{last:08d}"


def test_the_logged_keys_prove_each_image_once_per_epoch(argv, tmp_path, monkeypatch):
    from masp.training.engine import Engine

    logged, update = argv("stage2.log_keys=true", "stage2.global_batch_size=5"), Engine.update

    def fail(engine, rate):
        if engine.num_steps == 5:
            raise KeyError("a bug between two checkpoints")
        return update(engine, rate)

    monkeypatch.setattr(Engine, "update", fail)
    with pytest.raises(KeyError):
        main(logged)
    assert [line.step for line in read_key_logs(tmp_path / "stage2")] == [1, 2, 3, 4, 5]
    monkeypatch.undo()
    assert main(logged) == 0
    lines = read_key_logs(tmp_path / "stage2")
    assert [line.step for line in lines] == list(range(1, 13))
    for epoch in range(3):
        keys = Counter(key for line in lines if line.epoch == epoch for key in line.keys)
        assert len(keys) == 18 and set(keys.values()) == {1}


VALIDATED = ("stage2.validate_every=2", "stage2.validation_size=5", "stage2.num_epochs=8", "stage2.keep=1")


def test_validation_keeps_the_best_and_a_resumed_run_decides_alike(argv, tmp_path, capsys):
    high = (*VALIDATED, "stage2.learning_rate=0.3", "stage2.patience=3", "stage2.log_keys=true")  # soon too high
    outputs = tmp_path / "whole", tmp_path / "stopped"
    assert main(argv(*high, output=outputs[0])) == 0
    found = log(outputs[0], "validation")
    best = min(found, key=lambda line: line["loss"])
    end = found[-1]["step"]
    assert found[-1]["num_worse"] == 3 and best["step"] == found[-4]["step"] < end < 8 * 3
    checkpoints = outputs[0] / "stage2" / "checkpoints"
    assert sorted(p.name for p in checkpoints.glob("step-*")) == [f"step-{s:08d}" for s in (best["step"], end)]
    state = load_file(checkpoints / f"step-{best['step']:08d}" / "state.safetensors")
    made = load_file(outputs[0] / "stage2" / "soft_prompt_folder.safetensors")
    assert torch.equal(next(iter(made.values())), state["soft_prompt.weight"])
    assert status(outputs[0])["message"].startswith(f"{end} steps, the best after {best['step']}: ")
    # what is held out is never trained on, and nothing else is left out
    trained = {key for line in read_key_logs(outputs[0] / "stage2") for key in line.keys}
    assert len(trained) == 13

    again = argv(*high, output=outputs[1])
    code = 75
    while code == 75:  # stopped after every single step
        outputs[1].mkdir(exist_ok=True)
        (outputs[1] / "STOP").touch()
        code = main(again)
    assert code == 0
    assert log(outputs[1], "validation") == found
    results = [load_file(output / "stage2" / "soft_prompt_folder.safetensors") for output in outputs]
    assert all(torch.equal(results[1][name], tensor) for name, tensor in results[0].items())
    capsys.readouterr()
    assert main(again) == 0 and "finished already" in capsys.readouterr().out


def test_validation_names_the_sample_whose_loss_is_not_finite(argv, tmp_path, monkeypatch, capsys):
    from masp.training.steps import HeldOutSteps

    read, seen = HeldOutSteps.__getitem__, []

    def poisoned(steps: HeldOutSteps, number: int):
        step = read(steps, number)
        seen.append(step.keys[1][0])
        step.batches[1].features[0, 0, 0] = math.inf
        return step

    monkeypatch.setattr(HeldOutSteps, "__getitem__", poisoned)
    assert main(argv(*VALIDATED)) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert f"validation after step 2: the loss is nan in fp32, from {seen[0]!r}; use a lower stage2.learning" in line
    assert not (tmp_path / "stage2" / "validation.jsonl").exists()
    assert status(tmp_path)["exit_code"] == 2
    monkeypatch.undo()
    assert main(argv(*VALIDATED)) == 0


def test_holding_out_everything_is_refused(argv, capsys):
    assert main(argv(*VALIDATED, "stage2.validation_size=18")) == 2
    assert "stage2.validation_size = 18: " in capsys.readouterr().err


def test_the_log_says_what_a_step_costs_and_a_trace_is_written(argv, tmp_path):
    assert main([*argv(), "--profile"]) == 0
    line = log(tmp_path)[-1]
    assert line["tokens_per_second"] > line["samples_per_second"] > 0 and line["tflops_per_second"] > 0
    assert line["model_flops_utilisation"] is None and 0.1 < line["peak_memory_gb"] < 100
    trace = json.loads((tmp_path / "stage2" / "profile" / "trace.json").read_text())
    assert any("scaled_dot_product" in event.get("name", "") for event in trace["traceEvents"])
    assert "Self CPU" in (tmp_path / "stage2" / "profile" / "table.txt").read_text()
