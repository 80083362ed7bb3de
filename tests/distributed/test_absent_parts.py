"""An aspect that no image of a step has stays as it is, as in plain PyTorch where it has no gradient."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from masp.config import load_config
from masp.extraction.job import extract
from masp.training.engine import optimizer_groups
from masp.training.stages import open_stage
from masp.training.steps import Steps
from tests.runs import REPOSITORY, make_run

SCRIPT = Path(__file__).with_name("steps_of_a_rank.py")
ASPECTS = ("scene", "object", "brightness", "human_action")
ZERO = ("0", "1", "2", "3", "2-offload", "3-offload")
RATE = 0.01


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A run whose images have one or two aspects, only one of them `human_action`."""
    folder = tmp_path_factory.mktemp("absent")
    path = make_run(folder, 11, 3)
    settings = yaml.safe_load(path.read_text())
    settings["aspects"] = list(ASPECTS)
    settings["stage1"] |= {"global_batch_size": 2, "micro_batch_size": 1, "max_grad_norm": None, "weight_decay": 0.1}
    path.write_text(yaml.safe_dump(settings))
    values = {"scene": "sea_side", "object": ["dog", "tree"], "brightness": 0.3, "human_action": "running"}
    images = sorted((folder / "pictures" / "train").rglob("train.*"))
    for i, image in enumerate(images):
        asked = ("human_action",) if i == 4 else ASPECTS[i % 3 : i % 3 + 1 + (i == 2)]
        note = folder / "pictures" / "annotation" / image.parent.name / f"{image.stem}.json"
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({aspect: values[aspect] for aspect in asked if aspect in values}))
    extract(load_config(path, []))
    return path


def run(config: Path, output: Path, size: int) -> dict[str, dict]:
    """What `SCRIPT` writes for each ZeRO stage."""
    output.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    argv = [*command, str(SCRIPT), str(config), str(output), *ZERO]
    done = subprocess.run(argv, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        zero: json.loads((output / f"{zero}.json").read_text()) | {"state": load_file(output / f"{zero}.safetensors")}
        for zero in ZERO
    }


def plain_torch(config: Path) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """The same steps by PyTorch alone: a part that is not asked has no gradient."""
    torch.set_num_threads(1)
    stage = open_stage("stage1", load_config(config, []), "cpu")
    model, prompt = stage.build("cpu")
    steps = Steps(stage, prompt)
    optimizer = torch.optim.AdamW(optimizer_groups(model.parts(), stage.settings.weight_decay), lr=RATE)
    for group in optimizer.param_groups:
        group["lr"] = RATE
    taken = dict.fromkeys(ASPECTS, 0)
    for number in range(len(steps)):
        step = steps[number]
        optimizer.zero_grad()
        for batch in step.batches:
            ((model(batch) * batch.weights).sum() / step.total_weight).backward()
        asked = {ASPECTS[a] for batch in step.batches for a in batch.row_aspect[batch.weights > 0].tolist()}
        for aspect, part in model.parts().items():
            taken[aspect] += aspect in asked
            for parameter in part.parameters() if aspect not in asked else ():
                assert not parameter.grad.any()
                parameter.grad = None
        optimizer.step()
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    state = {name: p.detach() for name, p in names.items()}
    for name, parameter in names.items():
        for moment in ("exp_avg", "exp_avg_sq") if parameter in optimizer.state else ():
            state[f"{name}#{moment}"] = optimizer.state[parameter][moment]
    return state, taken


@pytest.mark.full
@pytest.mark.parametrize("size", [1, 2])
def test_what_is_absent_stays_under_every_zero_stage(config, tmp_path, size):
    expected, taken = plain_torch(config)
    assert 0 < taken["human_action"] < taken["scene"]
    for zero, seen in run(config, tmp_path / "out", size).items():
        assert seen["wrong"] == [] and seen["resumed"], (zero, seen["wrong"])
        assert seen["taken"] == taken and seen["counters"][1]["taken"] == taken
        assert seen["state"].keys() == expected.keys()
        for name, tensor in expected.items():
            exact = zero == "0" and size == 1
            torch.testing.assert_close(seen["state"][name], tensor, rtol=0, atol=0 if exact else 2e-5, msg=name)
