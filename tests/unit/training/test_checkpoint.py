"""Checkpoints: whole or not there, the newest kept, damage and other settings named."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from masp.errors import DataError, InputError
from masp.training.checkpoint import (
    LATEST,
    Checkpoint,
    EngineCounters,
    ValidationState,
    load_latest,
    save_checkpoint,
)

IDENTITY = {"seed": 1, "stage1.learning_rate": 1e-3, "num_steps": 60}


def checkpoint(step: int, identity: dict = IDENTITY) -> Checkpoint:
    return Checkpoint(step, identity, {"weight": torch.full((2, 3), float(step)), "weight#exp_avg": torch.ones(2, 3).T})


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    folder = tmp_path / "checkpoints"
    assert load_latest(folder, IDENTITY) is None
    saved = checkpoint(5)
    path = save_checkpoint(folder, saved, keep=2)
    assert load_file(path / "state.safetensors").keys() == saved.tensors.keys()
    loaded = load_latest(folder, IDENTITY)
    assert (loaded.step, loaded.identity) == (5, IDENTITY)
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in saved.tensors.items())


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_are_kept(tmp_path, keep):
    for step in (5, 10, 15, 100):
        save_checkpoint(tmp_path, checkpoint(step), keep)
    kept = [f"step-{step:08d}" for step in (5, 10, 15, 100)][-keep:]
    assert names(tmp_path) == [LATEST, *kept]
    assert (tmp_path / LATEST).read_text() == "step-00000100"


def test_what_a_kill_left_is_swept_away(tmp_path):
    (tmp_path / ".step-00000003.tmp").mkdir()
    (tmp_path / ".step-00000003.tmp" / "state.safetensors").write_text("half")
    (tmp_path / "step-00000004").mkdir()  # renamed, but `latest` was not moved to it
    assert load_latest(tmp_path, IDENTITY) is None
    save_checkpoint(tmp_path, checkpoint(4), keep=2)
    assert names(tmp_path) == [LATEST, "step-00000004"]
    assert load_latest(tmp_path, IDENTITY).step == 4


def test_a_kill_while_one_is_removed_leaves_nothing_that_looks_like_one(tmp_path, monkeypatch):
    for step in (1, 2):
        save_checkpoint(tmp_path, checkpoint(step), keep=2)

    def killed(path):
        (path / "state.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("masp.training.checkpoint.shutil.rmtree", killed)
        save_checkpoint(tmp_path, checkpoint(3), keep=2)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000002", "step-00000003"]
    save_checkpoint(tmp_path, checkpoint(4), keep=2)
    assert not list(tmp_path.glob(".step-*"))


def test_going_back_to_an_older_one(tmp_path):
    for step in (5, 10):
        save_checkpoint(tmp_path, checkpoint(step), keep=3)
    damaged = tmp_path / "step-00000010" / "state.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(
        DataError, match="state.safetensors is damaged: .*write 'step-00000005' into .*latest to go back"
    ):
        load_latest(tmp_path, IDENTITY)
    (tmp_path / LATEST).write_text("step-00000005")
    assert load_latest(tmp_path, IDENTITY).step == 5
    save_checkpoint(tmp_path, checkpoint(7), keep=3)  # what came after step 5 is given up
    assert names(tmp_path) == [LATEST, "step-00000005", "step-00000007"]
    save_checkpoint(tmp_path, checkpoint(10), keep=3)
    assert load_latest(tmp_path, IDENTITY).tensors["weight"][0, 0] == 10


def test_the_same_step_again_replaces_a_damaged_one(tmp_path):
    for step in (5, 10):
        save_checkpoint(tmp_path, checkpoint(step), keep=3)
    (tmp_path / "step-00000010" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="state.json"):
        load_latest(tmp_path, IDENTITY)
    (tmp_path / LATEST).write_text("step-00000005\n")
    save_checkpoint(tmp_path, checkpoint(10), keep=3)
    assert load_latest(tmp_path, IDENTITY).step == 10


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("state.json", "names step-00000005, which is not there or not whole; delete .* to start afresh"),
        ("state.safetensors", "state.safetensors cannot be read: .*; delete .* to start afresh"),
    ],
)
def test_missing_parts(tmp_path, remove, message):
    (save_checkpoint(tmp_path, checkpoint(5), keep=1) / remove).unlink()
    with pytest.raises(DataError, match=message):
        load_latest(tmp_path, IDENTITY)


@pytest.mark.parametrize("name", IDENTITY)
def test_another_run_is_refused_by_the_first_setting_that_differs(tmp_path, name):
    save_checkpoint(tmp_path, checkpoint(5), keep=1)
    with pytest.raises(InputError, match=f"with {name} = {IDENTITY[name]}, but here it is 77; give the old value"):
        load_latest(tmp_path, IDENTITY | {name: 77})
    with pytest.raises(InputError, match="with new = None, but here it is 1"):
        load_latest(tmp_path, IDENTITY | {"new": 1})


def test_a_setting_that_changes_the_number_of_steps_is_named_before_it(tmp_path):
    subset = {"dataset.fraction": 0.5, "dataset.subset": {"num_images": 20}}
    for there, here, problem in (
        (IDENTITY, IDENTITY | subset | {"num_steps": 30}, "dataset.fraction = None, but here it is 0.5"),
        (IDENTITY | subset | {"num_steps": 30}, IDENTITY, "dataset.fraction = 0.5, but here it is None"),
    ):
        folder = tmp_path / str(len(there))
        save_checkpoint(folder, replace(checkpoint(5), identity=there), keep=1)
        with pytest.raises(InputError, match=f"is a checkpoint of a run with {problem}"):
            load_latest(folder, here)


def test_a_folder_that_cannot_be_written(tmp_path):
    save_checkpoint(tmp_path, checkpoint(5), keep=1)
    (tmp_path / ".step-00000006.tmp").write_text("in the way")
    with pytest.raises(
        InputError, match="output_dir: the checkpoint .*step-00000006 cannot be written: .*earlier ones"
    ):
        save_checkpoint(tmp_path, checkpoint(6), keep=1)
    assert load_latest(tmp_path, IDENTITY).step == 5


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe\x00", b"step-00000005\x00", b"../../etc", b"step-5", b"a" * 100_000, b"step-00000005\nmore"],
)
def test_a_pointer_with_odd_bytes(tmp_path, data):
    save_checkpoint(tmp_path, checkpoint(5), keep=1)
    (tmp_path / LATEST).write_bytes(data)
    with pytest.raises(
        DataError, match="latest is damaged: .*; write 'step-00000005' into .*latest to go back"
    ) as error:
        load_latest(tmp_path, IDENTITY)
    assert "\n" not in str(error.value) and error.value.exit_code == 3


@pytest.mark.parametrize("taken", [None, {"scene": 4, "object": 0}])  # None: from before parts could be left out
def test_counters_and_validation_are_kept(tmp_path, taken):
    engine = EngineCounters(3, {"cur_scale": 65536.0, "cur_iter": 12}, taken)
    for validation in (None, ValidationState(0.5, 5, 1, 7, False)):
        saved = replace(checkpoint(7), engine=engine, validation=validation)
        save_checkpoint(tmp_path, saved, keep=1)
        loaded = load_latest(tmp_path, IDENTITY)
        assert (loaded.engine, loaded.validation) == (engine, validation)
        assert loaded.best_steps == ({5} if validation else set()) and not loaded.ended


@pytest.mark.parametrize("key", ["cache", "vlm", "categories", "questions", "checkpoint.aspect"])
def test_what_no_setting_gives_back_is_not_asked_for_as_a_setting(tmp_path, key):
    """After `cache extend`, for example, the digest of the cache is another one for good."""
    path = save_checkpoint(tmp_path, replace(checkpoint(5), identity=IDENTITY | {key: "a" * 64}), keep=1)
    with pytest.raises(InputError) as error:
        load_latest(tmp_path, IDENTITY | {key: "b" * 64})
    message = str(error.value)
    assert message.startswith(f"{path} is a checkpoint of a run with {key} = ") and "give the old value" not in message
    assert "restore the old" in message or "name the old file" in message
    assert message.endswith("or another output_dir for a new run")
    if key == "cache":
        assert "`masp cache extend`" in message
