"""Two processes against one: the same tensors, whatever each rank has of a step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from masp.results.ledger import read_records
from tests.commands import Commands
from tests.runs import REPOSITORY, assert_same, numbers

SCRIPT = Path(__file__).with_name("commands_of_a_rank.py")


def torchrun(*argv: str, num_ranks: int = 2, code: int = 0) -> str:
    """Run a script or module on several ranks; returns what they said on stderr."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks), *argv]
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def disjoint(commands: Commands, world, tmp_path_factory) -> Path:
    """A configuration whose two training images are annotated with one aspect each, and not the same."""
    import numpy as np
    import yaml
    from PIL import Image

    folder = tmp_path_factory.mktemp("disjoint")
    for seed, (name, answers) in enumerate({"a": {"scene": "sea side"}, "b": {"brightness": 0.3}}.items()):
        pixels = np.random.default_rng(seed).integers(0, 256, (60 + 50 * seed, 90, 3), dtype=np.uint8)
        for split in ("train", "test"):
            path = folder / "pictures" / split / "awe" / f"{split}_{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        notes = folder / "pictures" / "annotation" / "awe" / f"train_{name}.json"
        notes.parent.mkdir(parents=True, exist_ok=True)
        notes.write_text(json.dumps(answers))
    settings = yaml.safe_load(world.config.read_text())
    settings["dataset"] |= {"root": str(folder / "pictures"), "categories": ["awe", "fear"]}
    settings["cache"] |= {"dir": str(folder / "cache")}
    settings["aspects"] = ["scene", "brightness"]
    for stage in ("stage1", "stage2"):
        settings[stage] |= {"num_epochs": 3, "learning_rate": 1e-3, "global_batch_size": 2, "log_every": 1}
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    commands.ok("extract", "--config", config)
    return config


def tensors(output: Path, stage: str) -> dict[str, torch.Tensor]:
    name = "aspect" if stage == "stage1" else "soft_prompt_folder"
    return load_file(output / stage / f"{name}.safetensors")


def moved(output: Path, stage: str) -> float:
    """How far training went, for the comparison to mean something."""
    state = load_file(next((output / stage / "checkpoints").glob("step-*")) / "state.safetensors")
    return max(tensor.abs().max().item() for name, tensor in state.items() if name.endswith("exp_avg"))


def compare(output: Path, expected: Path, stage: str) -> None:
    ours, theirs = tensors(output, stage), tensors(expected, stage)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, atol=1e-5, rtol=0), (name, (ours[name] - tensor).abs().max())
    assert moved(expected, stage) > 0
    logs = [(o / stage / "metrics.jsonl").read_text().splitlines() for o in (output, expected)]
    losses = [[json.loads(line)["loss"] for line in lines] for lines in logs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def three_steps(config: Path, output: Path, expected: Path, zero_stage: int) -> list[list[str]]:
    aspect = f"checkpoint.aspect={expected / 'stage1' / 'aspect.safetensors'}"
    return [
        ["train", "--stage", stage, "--config", str(config), f"output_dir={output}", f"engine.zero_stage={zero_stage}"]
        + ([aspect] if stage == "stage2" else [])
        for stage in ("stage1", "stage2")
    ]


@pytest.fixture(scope="module")
def alone(commands, disjoint, world, tmp_path_factory) -> dict[str, Path]:
    """The same runs in one process."""
    outputs = {"disjoint": tmp_path_factory.mktemp("disjoint_alone"), "odd": tmp_path_factory.mktemp("odd_alone")}
    for argv in three_steps(disjoint, outputs["disjoint"], outputs["disjoint"], 0):
        commands.ok(*argv)
    commands.ok(*odd(world, outputs["odd"]))
    commands.ok("evaluate", *evaluation(world, outputs["odd"]))
    return outputs


def odd(world, output: Path) -> list[str]:
    """Stage 2 with a global batch of one image: every step of two ranks is half padding."""
    more = ("aspects=[]", "stage2.num_epochs=1", "stage2.global_batch_size=1", "stage2.log_every=1")
    return ["train", "--stage", "stage2", *world.settings(output, *more, "stage2.learning_rate=1e-3")]


def evaluation(world, output: Path) -> tuple[str, ...]:
    return world.settings(output, "aspects=[]")


def test_two_ranks_against_one(disjoint, world, alone, tmp_path):
    runs = three_steps(disjoint, tmp_path / "disjoint", alone["disjoint"], 0)
    runs += [odd(world, tmp_path / "odd"), ["evaluate", *evaluation(world, tmp_path / "odd")]]
    stderr = torchrun(str(SCRIPT), json.dumps(runs))
    assert "Warning" not in stderr and "Traceback" not in stderr, stderr
    assert stderr.count("resuming") == 0
    for stage in ("stage1", "stage2"):
        compare(tmp_path / "disjoint", alone["disjoint"], stage)
    compare(tmp_path / "odd", alone["odd"], "stage2")
    ledgers = tmp_path / "odd" / "evaluate" / "ledger"
    assert sorted(p.name for p in ledgers.glob("*.jsonl")) == ["rank-0.jsonl", "rank-1.jsonl"]
    assert_same(*(numbers(o / "evaluate" / "metrics.json") for o in (tmp_path / "odd", alone["odd"])))


@pytest.mark.full
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_two_ranks_against_one_under_zero(disjoint, alone, tmp_path, zero_stage):
    torchrun(str(SCRIPT), json.dumps(three_steps(disjoint, tmp_path, alone["disjoint"], zero_stage)))
    for stage in ("stage1", "stage2"):
        compare(tmp_path, alone["disjoint"], stage)


@pytest.mark.full
def test_one_rank_fails_and_all_end(world, tmp_path):
    """A shard that only the second rank's images need is damaged: its message is the status, not the other's."""
    import shutil

    cache = tmp_path / "cache"
    shutil.copytree(world.folder / "cache", cache)
    for shard in cache.glob("shards/train-*.tar"):
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    settings = world.settings(tmp_path / "run", f"cache.dir={cache}")
    stderr = torchrun("-m", "masp.cli", "train", "--stage", "stage2", *settings, "aspects=[]", code=1)
    assert "error: " in stderr and "checksum" in stderr
    status = json.loads((tmp_path / "run" / "stage2" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 3) and "train-" in status["message"]


@pytest.mark.full
def test_a_rank_of_an_evaluation_is_killed_and_what_was_scored_survives(commands, world, alone, tmp_path):
    """torchrun then ends the others too; every record that was written is there, and a second call scores the rest."""
    arguments = (*evaluation(world, alone["odd"]), f"evaluate.output_dir={tmp_path}", "evaluate.batch_size=1")
    ledger = tmp_path / "ledger" / "rank-1.jsonl"
    torchrun(str(REPOSITORY / "tests" / "dying_rank.py"), "1", str(ledger), *arguments, code=1)
    scored = {record.sample_key for record in read_records(ledger.parent)}
    assert 2 <= len(scored) < 13 and not (tmp_path / "metrics.json").exists()
    done = commands.ok("evaluate", *arguments)
    assert f"{len(scored)} of 13 samples are scored already" in done.stdout
    assert_same(*(numbers(o / "metrics.json") for o in (tmp_path, alone["odd"] / "evaluate")))


@pytest.mark.full
def test_sigterm_to_torchrun_stops_all_ranks_and_one_process_finishes(commands, world, alone, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "masp.cli"]
    command += odd(world, tmp_path)
    running = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "stage2" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 4:
        assert running.poll() is None
    running.terminate()
    running.wait(timeout=120)
    status = json.loads((tmp_path / "stage2" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", 75)
    resumed = commands.ok(*odd(world, tmp_path))
    assert "resuming after step" in resumed.stderr
    compare(tmp_path, alone["odd"], "stage2")
