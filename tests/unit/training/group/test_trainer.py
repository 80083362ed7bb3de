"""A member of a group is the run that it would have been alone."""

import gc
import json
import shutil
from pathlib import Path

import pytest
import torch

from masp.artifacts.store import load_soft_prompt
from masp.config import load_config
from masp.errors import InputError, StoppedEarly
from masp.extraction.job import extract
from masp.runtime.run_directory import read_status
from masp.training.checkpoint import load_latest, save_checkpoint
from masp.training.group.members import group_key, open_members, why_alone
from masp.training.group.steps import GroupSteps
from masp.training.group.trainer import train_group
from masp.training.loop import train
from masp.training.stages import open_stage
from masp.training.validation import paused_loss
from masp.vlm import loading
from masp.vlm.language import load_language_half
from masp.vlm.prompt import load_prompt
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


class After:
    """A request to stop that comes after some steps."""

    def __init__(self, count):
        self.left = count

    def __bool__(self):
        self.left -= 1
        return self.left < 0


def assert_equal_runs(first: Path, second: Path, names=tuple(MEMBERS)):
    for name in names:
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


def test_a_vlm_that_was_trained_around_leaves_memory_before_the_next_is_loaded(world, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "LARGE", 1)
    config = configs(world, tmp_path)[0]
    gc.collect()
    gc.disable()
    try:
        earlier = len(loading._loaded)
        train(config, "stage2")
        half = load_language_half(config.vlm.path)
        assert len(loading._loaded) == earlier + 1 and half.model in loading._loaded
    finally:
        gc.enable()


def test_several_members_run_together_where_a_micro_batch_has_few_rows(world, alone, tmp_path):
    # four images as two and two, and five members: two, two and one together
    longest = int(open_members(configs(world, tmp_path)[:1], "cpu")[0].schedule.lengths.max())
    given = "stage2.micro_batch_size=4", f"stage2.micro_batch_tokens={2 * longest}"
    group = configs(world, tmp_path, "stage2.log_every=1", *given)
    first = GroupSteps(open_members(group, "cpu"), load_prompt(group[0].vlm.path))[0]
    assert [(len(batch.keys), batch.at_once) for batch in first.batches] == [(2, 2), (2, 2)]
    assert train_group(group) == [""] * len(MEMBERS)
    assert_equal_runs(tmp_path, alone)


@pytest.mark.parametrize(
    ("plan", "tokens", "expected"),
    [
        ([[[0, 1, 2], [3]]], 100, [2, 6]),
        ([[[0, 1, 2], [3]], [[4], [5, -1]]], 100, [2, 3]),  # of two ranks: the larger micro-batch decides
        ([[[0, 1, 2], [3]]], 30, [2, 6]),
        ([[[0, 1, 2], [3]]], 25, [1, 5]),  # copies of the prefix: 50 tokens at most
    ],
)
def test_how_many_run_together_depends_on_rows_and_tokens(world, tmp_path, plan, tokens, expected):
    given = "stage2.global_batch_size=6", "stage2.micro_batch_size=6", f"stage2.micro_batch_tokens={tokens}"
    group = configs(world, tmp_path, *given)[:1]
    steps = GroupSteps(open_members(group, "cpu"), load_prompt(group[0].vlm.path))
    assert steps._at_once(plan, [10] * 6) == expected


def test_a_group_goes_on_where_it_was_stopped_and_with_members_added_later(world, alone, tmp_path):
    group = configs(world, tmp_path, "stage2.log_every=1")
    with pytest.raises(StoppedEarly):
        train_group(group[:3], After(2))
    artifact = tmp_path / "plain/stage2/soft_prompt_folder.safetensors"
    assert not artifact.exists() and read_status(tmp_path / "plain/stage2").state == "stopped"
    assert train_group(group) == [""] * len(MEMBERS)
    assert_equal_runs(tmp_path, alone)
    artifact.unlink()  # as if a kill had come between its last checkpoint and it
    assert train_group(group) == [""] * len(MEMBERS)
    assert_equal_runs(tmp_path, alone)


def test_a_measurement_that_a_stop_left_undone_is_made_first(world, tmp_path):
    given = ("stage2.log_every=1", "stage2.validate_every=1", "stage2.validation_size=4")
    for config in configs(world, tmp_path / "alone", *given)[:2]:
        train(config, "stage2")
    group = configs(world, tmp_path / "group", *given)[:2]
    with pytest.raises(StoppedEarly):
        train_group(group, After(2))
    assert train_group(group) == ["", ""]
    for name in ("plain", "fast"):
        ours, own = (
            [
                json.loads(line)
                for line in (tmp_path / d / name / "stage2" / "validation.jsonl").read_text().splitlines()
            ]
            for d in ("group", "alone")
        )
        assert [line["step"] for line in ours] == [line["step"] for line in own]
        assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in own], abs=1e-5)


def test_a_pause_changes_nothing_and_measures_what_a_single_run_would(world, tmp_path):
    given = ("stage2.log_every=1", "stage2.validate_every=2", "stage2.validation_size=4")
    alone, group, whole = (configs(world, tmp_path / name, *given)[:2] for name in ("alone", "group", "whole"))
    for config in alone:
        train(config, "stage2", until=3)
    assert train_group(group, until=[3, 3]) == ["", ""]
    for name in ("plain", "fast"):
        directories = [tmp_path / kind / name / "stage2" for kind in ("alone", "group")]
        losses = [paused_loss(directory, 3) for directory in directories]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5) and paused_loss(directories[0], 2) is None
        for directory in directories:
            status = read_status(directory)
            assert (status.state, status.exit_code, status.step, status.num_steps) == ("stopped", 75, 3, 4)
            assert "paused after step 3 of 4" in status.message
            assert not (directory / "soft_prompt_folder.safetensors").exists()
    assert train_group(group, until=[3, 3]) == ["", ""]  # paused already
    with pytest.raises(InputError, match="is at step 3 already, and was not compared with others at step 2"):
        train_group(group, until=[2, 2])
    for config in alone:
        train(config, "stage2")
    assert train_group(group) == train_group(whole) == ["", ""]
    assert_equal_runs(tmp_path / "group", tmp_path / "whole", ("plain", "fast"))
    assert_equal_runs(tmp_path / "alone", tmp_path / "whole", ("plain", "fast"))
    for name in ("plain", "fast"):
        first, *others = (
            [json.loads(line) for line in (tmp_path / kind / name / "stage2/validation.jsonl").read_text().splitlines()]
            for kind in ("whole", "group", "alone")
        )
        assert [line["step"] for line in first] == [2, 4]
        for other in others:
            assert [line["best_step"] for line in other] == [line["best_step"] for line in first]


def test_a_member_that_diverges_is_stopped_and_the_others_go_on(world, alone, tmp_path):
    group = configs(world, tmp_path, "stage2.log_every=1")
    with pytest.raises(StoppedEarly):
        train_group(group, After(2))
    checkpoints = tmp_path / "fast" / "stage2" / "checkpoints"
    stage = open_stage("stage2", group[1], "cpu")
    found = load_latest(checkpoints, stage.identity())
    found.tensors["soft_prompt.weight"].fill_(float("nan"))
    save_checkpoint(checkpoints, found, keep=2)
    failures = train_group(group)
    assert [bool(failure) for failure in failures] == [name == "fast" for name in MEMBERS]
    assert "is not taken: the loss is nan" in failures[1] and "lower stage2.learning_rate, which is 0.05" in failures[1]
    status = json.loads((tmp_path / "fast" / "stage2" / "status.json").read_text())
    assert status["state"] == "failed" and status["exit_code"] == 2
    assert not (tmp_path / "fast" / "stage2" / "soft_prompt_folder.safetensors").exists()
    assert_equal_runs(tmp_path, alone, [name for name in MEMBERS if name != "fast"])


def test_a_kill_between_the_saves_of_two_members_costs_the_steps_since(world, alone, tmp_path):
    group = configs(world, tmp_path, "stage2.log_every=1")
    with pytest.raises(StoppedEarly):
        train_group(group, After(4))
    for name in ("plain", "short"):  # these were saved at step 5, the others were not yet
        checkpoints = tmp_path / name / "stage2" / "checkpoints"
        assert (checkpoints / "latest").read_text().strip() == "step-00000005"
    for name in ("fast", "seed"):
        checkpoints = tmp_path / name / "stage2" / "checkpoints"
        shutil.rmtree(checkpoints / "step-00000005")
        (checkpoints / "latest").write_text("step-00000004")
    assert train_group(group) == [""] * len(MEMBERS)
    assert_equal_runs(tmp_path, alone)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["stage2.layout=released"], "no frozen prefix"),
        (["stage2.frozen_prefix=false"], "no frozen prefix"),
        (["stage2.supervision=distribution"], "every category is an answer"),
        (["engine.precision=fp16"], "fp16 scales the loss"),
    ],
)
def test_what_cannot_share_a_prefix_says_why(world, settings, why):
    assert why in why_alone(load_config(world[0], settings))
    assert why_alone(load_config(world[0])) is None


@pytest.mark.parametrize("setting", ["aspects=[scene]", "aspect_module.num_queries=3", "stage2.global_batch_size=3"])
def test_what_changes_the_prefix_or_the_steps_is_another_group(world, setting):
    assert group_key(load_config(world[0], [setting])) != group_key(load_config(world[0]))
