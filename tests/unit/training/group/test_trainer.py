"""A member of a group is the run that it would have been alone."""

import copy
import json
from pathlib import Path

import pytest
import torch

from masp.artifacts.store import load_soft_prompt
from masp.config import load_config
from masp.extraction.job import extract
from masp.training.group.members import group_key, why_alone
from masp.training.group.trainer import train_group
from masp.training.loop import train
from tests.runs import make_run

MEMBERS = {
    "plain": [],
    "fast": ["stage2.learning_rate=0.05", "stage2.weight_decay=0.1"],
    "short": ["stage2.num_soft_prompt_tokens=2", "stage2.soft_prompt_init=question"],
    "seed": ["seed=11", "stage2.warmup_ratio=0.3", "stage2.max_grad_norm=0.01"],
    "one-epoch": ["stage2.num_epochs=1", "stage2.soft_prompt_init=vocabulary", "stage2.max_grad_norm=null"],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("group")
    path = make_run(folder)
    config = load_config(path, ["engine.zero_stage=0"])
    extract(config)
    train(config, "stage1")
    return path, folder


def configs(world, directory: Path, *more: str):
    path, folder = world
    given = ["engine.zero_stage=0", "order_seed=5", f"checkpoint.aspect={folder}/run/stage1/aspect.safetensors", *more]
    return [load_config(path, [*given, *own, f"output_dir={directory / name}"]) for name, own in MEMBERS.items()]


def assert_equal_runs(first: Path, second: Path):
    for name in MEMBERS:
        ours, own = (
            load_soft_prompt(str(d / name / "stage2/soft_prompt_folder.safetensors"), 32) for d in (first, second)
        )
        torch.testing.assert_close(ours[0].weight, own[0].weight, atol=1e-5, rtol=0)
        assert ours[1].settings == own[1].settings and ours[1].aspect_digest == own[1].aspect_digest
        for a, b in zip(*(lines(d / name) for d in (first, second)), strict=True):
            assert a["step"] == b["step"] and a["learning_rate"] == b["learning_rate"]
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-5) and a["grad_norm"] == pytest.approx(
                b["grad_norm"], rel=1e-4
            )


def lines(run: Path):
    return [json.loads(line) for line in (run / "stage2" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    directory = tmp_path_factory.mktemp("alone")
    for config in configs(world, directory, "stage2.log_every=1"):
        train(config, "stage2")
    return directory


def test_members_are_the_runs_that_they_would_have_been_alone(world, alone, tmp_path):
    group = configs(world, tmp_path, "stage2.log_every=1")
    assert len({group_key(config) for config in group}) == 1 and not any(map(why_alone, group))
    assert train_group(group) == [""] * len(MEMBERS)
    assert_equal_runs(tmp_path, alone)
    assert train_group(group) == [""] * len(MEMBERS)  # finished already


def test_a_group_goes_on_where_it_was_stopped_and_with_members_added_later(world, alone, tmp_path):
    class After:
        def __init__(self, count):
            self.left = count

        def __bool__(self):
            self.left -= 1
            return self.left < 0

    from masp.errors import StoppedEarly

    group = configs(world, tmp_path, "stage2.log_every=1")
    with pytest.raises(StoppedEarly):
        train_group(group[:3], After(2))
    assert not (tmp_path / "plain/stage2/soft_prompt_folder.safetensors").exists()
    assert train_group(group) == [""] * len(MEMBERS)
    assert_equal_runs(tmp_path, alone)


def test_a_member_that_diverges_is_stopped_and_the_others_go_on(world, alone, tmp_path):
    group = configs(world, tmp_path, "stage2.log_every=1")
    bad = copy.deepcopy(group[1])
    bad.output_dir = str(tmp_path / "bad")
    bad.stage2.weight_decay, bad.stage2.learning_rate = 1.0, 10.0
    found = train_group([group[0], *group[1:]])
    assert found == [""] * len(MEMBERS)
    assert_equal_runs(tmp_path, alone)
