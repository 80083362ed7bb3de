"""A restart of stage 1 is the run that it would have been alone, and of each aspect the best is kept."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from masp.artifacts.store import load_aspects
from masp.config import load_config
from masp.errors import InputError, StoppedEarly
from masp.extraction.job import extract
from masp.models.restarts import restart_seed
from masp.training.checkpoint import load_latest, save_checkpoint
from masp.training.loop import train
from masp.training.stages import open_stage
from tests.runs import make_run
from tests.unit.training.group.test_trainer import After

NUM = 3
ASPECTS = ("scene", "object", "brightness")
GIVEN = ("engine.zero_stage=0", "order_seed=5", "stage1.log_every=1", "stage1.weight_decay=0.1")
OFTEN = ("stage1.validate_every=1", "stage1.patience=2", "stage1.learning_rate=0.3", "stage1.keep=1")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run with a validation split, in which some images lack an aspect."""
    folder = tmp_path_factory.mktemp("restarts")
    path = make_run(folder, 18, 3)
    for image in sorted((folder / "pictures" / "train").glob("*/*.00[0-3].*")):
        target = folder / "pictures" / "val" / image.parent.name
        target.mkdir(parents=True, exist_ok=True)
        image.rename(target / image.name)
    extract(load_config(path, ["engine.zero_stage=0"]))
    return path


def config(world: Path, directory: Path, *more: str):
    return load_config(world, [*GIVEN, f"output_dir={directory}", *more])


def latest(directory: Path) -> dict[str, torch.Tensor]:
    checkpoints = directory / "stage1" / "checkpoints"
    return load_file(checkpoints / (checkpoints / "latest").read_text() / "state.safetensors")


def lines(directory: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (directory / "stage1" / name).read_text().splitlines()]


def note(directory: Path) -> dict:
    return json.loads((directory / "stage1" / "restarts.json").read_text())


def artifact(directory: Path):
    return load_aspects(str(directory / "stage1" / "aspect.safetensors"), ASPECTS, 32)


def train_alone(world: Path, directory: Path, *more: str) -> None:
    """The restarts as runs of their own, the first of them as if there were no restarts."""
    for number in range(NUM):
        own = [f"stage1.init_seed={restart_seed(3407, number)}"] if number else []
        train(config(world, directory / str(number), *own, *more), "stage1")


def assert_restarts(together: Path, alone: Path, numbers=range(NUM)) -> None:
    found = latest(together)
    for number in numbers:
        for name, tensor in latest(alone / str(number)).items():
            ours = found[name.replace("aspect_modules.", f"restarts.{number}.")]
            torch.testing.assert_close(ours, tensor, atol=1e-5, rtol=0)
        ours = [line["restart_losses"][number] for line in lines(together)]
        assert ours == pytest.approx([line["loss"] for line in lines(alone / str(number))], abs=1e-5)


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    directory = tmp_path_factory.mktemp("alone")
    train_alone(world, directory)
    return directory


def test_restarts_are_the_runs_that_they_would_have_been_alone_and_the_best_is_kept(world, alone, tmp_path):
    train(config(world, tmp_path, f"stage1.restarts={NUM}"), "stage1")
    assert_restarts(tmp_path, alone)
    (measured,) = lines(tmp_path, "validation.jsonl")
    record = note(tmp_path)
    modules, lineage = artifact(tmp_path)
    assert lineage.settings["stage1.restarts"] == NUM and lineage.settings["kept_restarts"] == record
    for aspect in ASPECTS:
        choice = record["aspects"][aspect]
        losses = [restart[aspect] for restart in measured["restarts"]]
        assert choice["held_out_losses"] == losses and choice["chosen"] == losses.index(min(losses))
        assert choice["seed"] == record["seeds"][choice["chosen"]] == restart_seed(3407, choice["chosen"])
        own, _ = artifact(alone / str(choice["chosen"]))
        for name, tensor in modules.by_aspect[aspect].state_dict().items():
            torch.testing.assert_close(tensor, own.by_aspect[aspect].state_dict()[name], atol=1e-5, rtol=0)
    assert len({choice["chosen"] for choice in record["aspects"].values()}) > 1
    status = json.loads((tmp_path / "stage1" / "status.json").read_text())
    assert f"restarts kept of {NUM}: scene {record['aspects']['scene']['chosen']}," in status["message"]


def test_every_restart_has_a_best_step_and_an_end_of_its_own(world, tmp_path):
    train_alone(world, tmp_path / "alone", *OFTEN, "stage1.num_epochs=3")
    train(config(world, tmp_path / "all", f"stage1.restarts={NUM}", *OFTEN, "stage1.num_epochs=3"), "stage1")
    record = note(tmp_path / "all")
    ends = []
    for number in range(NUM):
        measured = lines(tmp_path / "alone" / str(number), "validation.jsonl")
        ours = [line["restart_losses"][number] for line in lines(tmp_path / "all")]
        ends.append(len(measured))
        assert [loss for loss in ours if loss is not None] == pytest.approx(
            [line["loss"] for line in lines(tmp_path / "alone" / str(number))], abs=1e-5
        )
        for choice in record["aspects"].values():
            if choice["chosen"] == number:
                assert choice["step"] == measured[-1]["best_step"]
    assert len(set(ends)) > 1, "the runs were to end at different steps"


def test_a_stopped_run_goes_on_to_the_same_bits(world, alone, tmp_path):
    given = (f"stage1.restarts={NUM}", "stage1.validate_every=2")
    train(config(world, tmp_path / "straight", *given), "stage1")
    stopped = config(world, tmp_path / "stopped", *given)
    for steps in (1, 0):
        with pytest.raises(StoppedEarly):
            train(stopped, "stage1", After(steps))
        assert not (tmp_path / "stopped" / "stage1" / "aspect.safetensors").exists()
    train(stopped, "stage1")
    for name in ("aspect.safetensors", "restarts.json", "validation.jsonl"):
        first, second = ((tmp_path / d / "stage1" / name).read_bytes() for d in ("straight", "stopped"))
        assert first == second, name
    assert_restarts(tmp_path / "stopped", alone)


def test_a_restart_that_diverges_is_dropped_and_the_others_go_on(world, alone, tmp_path, caplog):
    given = config(world, tmp_path, f"stage1.restarts={NUM}")
    with pytest.raises(StoppedEarly):
        train(given, "stage1", After(1))
    checkpoints = tmp_path / "stage1" / "checkpoints"
    identity = open_stage("stage1", given, "cpu").identity()

    def break_restarts(numbers):
        found = load_latest(checkpoints, identity)
        for number in numbers:
            found.tensors[f"restarts.{number}.by_aspect.scene.query"].fill_(float("nan"))
        save_checkpoint(checkpoints, found, keep=2)
        return found.step

    step = break_restarts([1])
    with pytest.raises(StoppedEarly):
        train(given, "stage1", After(0))
    assert f"restart 1 is dropped: its loss is nan in step {step + 1}" in caplog.text
    train(given, "stage1")
    record = note(tmp_path)
    assert record["dropped"] == {"1": step + 1}
    for choice in record["aspects"].values():
        assert choice["chosen"] != 1 and choice["held_out_losses"][1] is None
    assert_restarts(tmp_path, alone, [0, 2])
    assert [line["restart_losses"][1] is None for line in lines(tmp_path)] == [
        line["step"] > step for line in lines(tmp_path)
    ]


def test_a_run_whose_restarts_all_diverge_names_the_samples(world, tmp_path):
    given = config(world, tmp_path, "stage1.restarts=2", "stage1.learning_rate=10", "stage1.max_grad_norm=null")
    with pytest.raises(StoppedEarly):
        train(given, "stage1", After(1))
    checkpoints = tmp_path / "stage1" / "checkpoints"
    found = load_latest(checkpoints, open_stage("stage1", given, "cpu").identity())
    for name, tensor in found.tensors.items():
        if name.endswith("query"):
            tensor.fill_(float("inf"))
    save_checkpoint(checkpoints, found, keep=2)
    with pytest.raises(InputError, match=r"step \d is not taken: the loss is nan"):
        train(given, "stage1")


def test_without_a_validation_split_the_held_out_images_leave_training(tmp_path):
    path = make_run(tmp_path, 12, 3)
    extract(load_config(path, ["engine.zero_stage=0"]))
    alone = load_config(path, ["stage1.validate_every=1000", "stage1.validation_size=3"])
    some = load_config(path, ["stage1.restarts=2", "stage1.validation_size=3"])
    plain = load_config(path, [])
    rows = [open_stage("stage1", each, "cpu").schedule for each in (alone, some, plain)]
    assert (
        rows[0].rows.tolist() == rows[1].rows.tolist()
        and rows[0].held_out.rows.tolist() == rows[1].held_out.rows.tolist()
    )
    assert set(rows[2].rows.tolist()) == {*rows[1].rows.tolist(), *rows[1].held_out.rows.tolist()}
    assert rows[2].held_out is None
    with pytest.raises(InputError, match=r"stage1.validation_size = 256: no image of a val split can be used"):
        _ = open_stage("stage1", load_config(path, ["stage1.restarts=2"]), "cpu").schedule


def test_one_restart_is_no_other_run(world, tmp_path):
    plain = open_stage("stage1", config(world, tmp_path), "cpu").identity()
    assert open_stage("stage1", config(world, tmp_path, "stage1.restarts=1"), "cpu").identity() == plain
    assert not any("restart" in key or "init" in key for key in plain if key != "aspect_module.init_scale")


def test_restarts_in_fp16_are_refused_and_seeds_do_not_collide(world, tmp_path):
    with pytest.raises(InputError, match=r"stage1.restarts = 2: not with engine.precision=fp16"):
        open_stage("stage1", config(world, tmp_path, "stage1.restarts=2", "engine.precision=fp16"), "cuda")
    seeds = {restart_seed(seed, number) for seed in range(20) for number in range(20)}
    assert len(seeds) == 400
