"""Successive halving: neither a kill nor another order of groups changes a decision; survivors are single runs."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from masp.artifacts.store import load_soft_prompt
from masp.config import load_config
from masp.errors import InputError
from masp.extraction.job import extract
from masp.runtime.run_directory import RunInUse, RunLock, read_status
from masp.runtime.stop import StopFlag
from masp.sweep.axes import members_of, read_axes
from masp.sweep.halving import check_comparable, kept_of, num_rungs, rung_step, train_halving, train_members
from masp.sweep.members import open_sweep
from masp.sweep.run import run_sweep
from masp.training.loop import train
from tests.runs import REPOSITORY, make_run

FORK = multiprocessing.get_context("fork")
AXES = ["stage2.learning_rate=[0.001,0.05]", "aspects=[[scene],[scene,object]]", "stage2.num_epochs=[4,8]"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run with a validation split, extracted, with aspect modules for both groups."""
    folder = tmp_path_factory.mktemp("halving")
    path = make_run(folder, 18, 6)
    for image in sorted((folder / "pictures" / "train").glob("*/*.00[0-5].*")):
        target = folder / "pictures" / "val" / image.parent.name
        target.mkdir(parents=True, exist_ok=True)
        image.rename(target / image.name)
    extract(load_config(path, []))
    for training in opened(path, folder / "run").aspects:
        train(training.config, "stage1")
    return path, folder


def opened(path, output, axes=AXES, *more):
    asked = read_axes(str(path), [*axes, f"output_dir={output}", "stage2.log_every=1", *more])
    return open_sweep(str(path), asked, members_of(asked, None, 1))


def prepared(world, output, axes=AXES, *more):
    """A sweep in a directory of its own, whose aspect modules are trained."""
    path, folder = world
    for directory in (folder / "run" / "sweep").glob("aspects-*"):
        shutil.copytree(directory, output / "sweep" / directory.name)
    return opened(path, output, axes, *more)


def test_without_images_to_compare_by_nothing_is_trained(tmp_path):
    path = make_run(tmp_path)
    sweep = opened(path, tmp_path / "run", ["stage2.learning_rate=[0.001,0.05]"])
    with pytest.raises(
        InputError, match=r"--halving: .*cache has no validation split, and stage2.validate_every = null"
    ):
        run_sweep(sweep, 2)
    assert [each.name for each in (tmp_path / "run").glob("**/stage[12]")] == []


def test_a_directory_that_is_in_use_is_no_failure_of_a_member(world, tmp_path):
    (alone,) = prepared(
        world, tmp_path, ["stage2.layout=[released]", "stage2.num_epochs=[4]", "aspects=[[scene]]"]
    ).members
    lock = RunLock(alone.directory)
    alone.directory.mkdir(parents=True)
    ready, go = FORK.Event(), FORK.Event()
    other = FORK.Process(target=hold, args=(lock, ready, go))
    other.start()
    try:
        assert ready.wait(60)
        with StopFlag() as stop, pytest.raises(RunInUse, match="is in use by another run"):
            train_members([alone], stop)
        assert not alone.failure
    finally:
        go.set()
        other.join(60)


def hold(lock, ready, go):
    lock.take()
    ready.set()
    go.wait(120)


def decisions(sweep):
    found = json.loads((sweep.directory / "halving.json").read_text())
    return [[(s["name"], s["step"], s["loss"], s["is_kept"]) for s in rung["standings"]] for rung in found["rungs"]]


@pytest.fixture(scope="module")
def halved(world, tmp_path_factory):
    sweep = prepared(world, tmp_path_factory.mktemp("halved"))
    with StopFlag() as stop:
        train_halving(sweep, 2, stop)
    return sweep


def test_rungs():
    assert [num_rungs(count, 2) for count in (1, 2, 3, 5, 16)] == [0, 1, 2, 3, 4]
    assert num_rungs(4, 3) == 1 and kept_of(4, 3) == 2
    # 16 members for 1/16, 1/8, 1/4 and 1/2 of the longest member's epochs
    assert [rung_step(rung, 4, 2, 3, 100) for rung in range(4)] == [19, 38, 75, 150]
    assert [rung_step(rung, 4, 2, 1, 3) for rung in range(4)] == [1, 1, 1, 2]


def test_the_worst_of_all_groups_are_dropped_and_the_others_are_single_runs(world, halved, tmp_path):
    rungs = decisions(halved)
    assert [len(rung) for rung in rungs[:2]] == [8, 4] and [sum(s[3] for s in rung) for rung in rungs[:2]] == [4, 2]
    for rung in rungs:
        assert rung == sorted(rung, key=lambda standing: (standing[2], standing[0]))
        assert [standing[3] for standing in rung] == sorted((standing[3] for standing in rung), reverse=True)
    assert {rung[0][1] for rung in rungs} == {3, 6, 12}
    members = {member.name: member for member in halved.members}
    dropped = {name for rung in rungs for name, _, _, is_kept in rung if not is_kept}
    for name, step, loss, _ in (s for rung in rungs for s in rung if not s[3]):
        status = read_status(members[name].directory)
        assert status.state == "stopped" and status.step == step and status.exit_code == 75
        assert f"dropped at step {step} as number" in status.message and f"loss {loss:.6g}" in status.message
        assert not members[name].is_trained and (members[name].directory / "checkpoints" / "latest").is_file()
    survivors = [member for member in halved.members if member.name not in dropped]
    assert survivors and all(member.is_trained and not member.dropped for member in survivors)
    sweep = prepared(world, tmp_path)
    for survivor in survivors:
        alone = next(member for member in sweep.members if member.name == survivor.name)
        train(alone.config, "stage2")
        ours, own = (
            load_soft_prompt(str(m.directory / "soft_prompt_folder.safetensors"), 32)[0].weight
            for m in (survivor, alone)
        )
        torch.testing.assert_close(ours, own, atol=1e-5, rtol=0)
        first, second = ((m.directory / "metrics.jsonl").read_text().splitlines() for m in (survivor, alone))
        for line, expected in zip(map(json.loads, first), map(json.loads, second), strict=True):
            assert line["step"] == expected["step"] and line["learning_rate"] == expected["learning_rate"]
            assert line["loss"] == pytest.approx(expected["loss"], abs=1e-5)


def test_another_order_of_groups_decides_the_same(world, halved, tmp_path):
    sweep = prepared(world, tmp_path)
    sweep.groups = [group[::-1] for group in sweep.groups[::-1]]
    sweep.members.reverse()
    with StopFlag() as stop:
        train_halving(sweep, 2, stop)
    assert decisions(sweep) == decisions(halved)


SCRIPT = """
import sys
from masp.runtime.stop import StopFlag
from masp.sweep.halving import train_halving
from tests.unit.sweep.test_halving import opened
with StopFlag() as stop:
    train_halving(opened(sys.argv[1], sys.argv[2]), 2, stop)
"""


@pytest.mark.full
def test_a_kill_at_any_moment_changes_no_decision(world, halved, tmp_path):
    sweep = prepared(world, tmp_path)
    script = tmp_path / "sweep.py"
    script.write_text(SCRIPT)
    command = [sys.executable, script, world[0], tmp_path]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    kills = 0
    for written in ("*/stage2/checkpoints/latest", "*/stage2/pauses.jsonl", "halving.json", "*/stage2/*.safetensors"):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not list(sweep.directory.glob(written)):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 3
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert decisions(sweep) == decisions(halved)


def test_dropped_members_go_on_without_halving(world, halved, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(halved.directory.parent, directory)
    sweep = opened(world[0], directory)
    names = {name for name, *_, is_kept in decisions(halved)[0] if not is_kept}
    group = [member for member in sweep.groups[0] if member.name in names]
    with StopFlag() as stop:
        train_members(group, stop)
    assert group and all(member.is_trained and not member.failure for member in group)
    with StopFlag() as stop:  # decided is decided; it drops nothing anew
        train_halving(sweep, 2, stop)
    assert decisions(sweep) == decisions(halved)
    assert read_status(group[0].directory).state == "finished"


def test_other_members_or_settings_than_those_that_were_compared_are_refused(world, halved):
    path, _ = world
    directory = halved.directory.parent
    with StopFlag() as stop:
        for axes, eta, problem in (
            (AXES, 3, "is of --halving 2"),
            (AXES[:2], 2, "is of other members"),
            ([*AXES, "stage2.weight_decay=0.5"], 2, "is of other settings"),
        ):
            with pytest.raises(InputError, match=problem):
                train_halving(opened(path, directory, axes), eta, stop)
        with pytest.raises(InputError, match="go on without halving, or remove"):
            trained = opened(path, directory)
            step = trained.groups[0][0].config.stage2.checkpoint_every
            train_members([m for m in trained.members if m.name == decisions(halved)[0][-1][0]], stop, Until(step))


class Until(dict):
    """The same step for every member."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def __missing__(self, name):
        return self.step


def test_losses_of_different_things_are_not_compared(world, tmp_path):
    sweep = opened(world[0], tmp_path, [*AXES[:1], "stage2.supervision=[label,distribution]"])
    with pytest.raises(InputError, match=r"--halving: stage2.supervision is 'label' of .* and 'distribution' of"):
        check_comparable(sweep.members)
    with pytest.raises(InputError, match="cache.dir = null"):
        check_comparable(opened(world[0], tmp_path, AXES, "cache.dir=null").members)
