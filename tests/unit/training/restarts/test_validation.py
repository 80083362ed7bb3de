"""Which restart each aspect is taken from, given what was measured."""

from types import SimpleNamespace

import torch

from masp.config.schema import EngineConfig, Stage1Config
from masp.training.checkpoint import RestartState, ValidationState
from masp.training.restarts.validation import RestartValidation, chosen_state

SEEDS = [7, 8, 9]


def validation(tmp_path, *states, **settings):
    steps = SimpleNamespace(
        stage=SimpleNamespace(aspects=("scene", "object")), rank=0, schedule=SimpleNamespace(num_steps=10)
    )
    return RestartValidation(tmp_path, Stage1Config(**settings), EngineConfig(), steps, states, len(states))


def state(step, total, **by_aspect):
    return RestartState(ValidationState(total, step, 0, 10), by_aspect)


def test_each_aspect_has_the_restart_with_its_lowest_loss_and_the_first_of_equal_ones(tmp_path):
    states = (
        state(10, 3.0, scene=1.0, object=5.0),
        state(4, 2.0, scene=1.0, object=3.0),
        state(6, 9.0, scene=8, object=2.0),
    )
    choices = validation(tmp_path, *states).choose({}, SEEDS)
    assert {aspect: (choice.chosen, choice.seed, choice.step) for aspect, choice in choices.items()} == {
        "scene": (0, 7, 10), "object": (2, 9, 6)
    }  # fmt: skip
    assert choices["scene"].held_out_losses == (1.0, 1.0, 8)


def test_a_dropped_restart_is_not_chosen_and_an_aspect_that_nobody_holds_out_goes_by_the_total(tmp_path):
    found = validation(tmp_path, state(10, 3.0, scene=1.0), state(10, 2.0, scene=4.0), state(10, 2.5, scene=0.1))
    choices = found.choose({2: 5}, SEEDS)
    assert choices["scene"].chosen == 0 and choices["scene"].held_out_losses == (1.0, 4.0, None)
    assert choices["object"].chosen == 1 and choices["object"].held_out_losses == (None, None, None)


def test_measuring_is_due_at_the_end_and_every_so_often_if_that_is_asked(tmp_path):
    fresh = RestartState()
    assert [n for n in range(11) if validation(tmp_path, fresh).is_due(n)] == [10]
    assert [n for n in range(11) if validation(tmp_path, fresh, validate_every=4).is_due(n)] == [4, 8, 10]
    assert not validation(tmp_path, state(10, 1.0)).is_due(10)


def test_the_artifact_has_tensors_and_moments_of_the_chosen_restarts_after_their_best_steps(tmp_path):
    choices = validation(tmp_path, state(10, 1.0, scene=1.0, object=2.0), state(4, 1.0, scene=2.0, object=1.0)).choose(
        {}, SEEDS
    )
    states = {
        step: {
            f"restarts.{n}.by_aspect.{aspect}.query{suffix}": torch.tensor([float(step), n])
            for n in (0, 1) for aspect in ("scene", "object") for suffix in ("", "#exp_avg")
        }
        for step in (4, 10)
    }  # fmt: skip
    found = chosen_state(choices, states)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        f"aspect_modules.by_aspect.{aspect}.query{suffix}": value
        for aspect, value in (("scene", [10.0, 0.0]), ("object", [4.0, 1.0]))
        for suffix in ("", "#exp_avg")
    }
