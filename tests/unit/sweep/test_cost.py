"""What a sweep is said to cost is what its steps take."""

import pytest
import yaml

from masp.errors import InputError
from masp.extraction.job import extract
from masp.sweep.axes import members_of, read_axes
from masp.sweep.cost import describe_cost, describe_groups, group_flops, sweep_cost
from masp.sweep.members import open_sweep
from masp.training.group.members import open_members
from masp.training.group.steps import GroupSteps
from masp.training.loop import train
from masp.vlm.cost.flops import aspect_module_flops, language_flops
from masp.vlm.prompt import load_prompt
from tests.runs import make_run

AXES = ["stage2.num_soft_prompt_tokens=[2,6]", "stage2.num_epochs=[1,3]"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cost")
    path = make_run(folder)
    questions = folder / "questions.yaml"  # one template, so that what is drawn is what is counted
    questions.write_text(yaml.safe_dump({"emotion": ["Which emotion? Choose one of: {categories}."]}))
    config = yaml.safe_load(path.read_text()) | {"questions": str(questions)}
    path.write_text(yaml.safe_dump(config))
    return path


def opened(path, *axes):
    asked = read_axes(str(path), axes)
    return open_sweep(str(path), asked, members_of(asked, None, 1))


def test_the_cost_is_what_the_steps_take(path):
    sweep = opened(path, *AXES)
    extract(sweep.base)
    for training in sweep.aspects:
        train(training.config, "stage1")
    cost = sweep_cost(sweep)
    (group,) = sweep.groups
    stages = open_members([member.config for member in group], "cpu")
    steps = GroupSteps(stages, load_prompt(sweep.base.vlm.path))
    alone, shared = [0.0] * len(group), 0.0
    queries, aspects = sweep.base.aspect_module.num_queries, len(sweep.base.aspects)
    for number in range(len(steps)):
        step = steps[number]
        for place, stage in enumerate(stages):
            if number < stage.schedule.num_steps:
                alone[place] += step.flops[step.variant_of[place]]
        for batch in step.batches:
            first = batch.variants[0]
            for length, tokens in zip(
                first.prefix.mask.sum(1).tolist(), first.feature_mask.sum(1).tolist(), strict=True
            ):
                shared += language_flops(steps.shape, suffix=length, gradient=False)
                shared += aspects * aspect_module_flops(steps.shape.width, queries, tokens, gradient=False)
    assert [found.work.flops for found in cost.groups[0]] == pytest.approx(alone, rel=5e-3)
    # the longest member has all steps, so its prefixes are those of the group
    of_prefix = [shared * stage.schedule.num_steps / len(steps) for stage in stages]
    together = shared + sum(own - prefix for own, prefix in zip(alone, of_prefix, strict=True))
    assert group_flops(cost.groups[0]) == pytest.approx(together, rel=5e-3)
    assert cost.flops == group_flops(cost.groups[0]) < cost.single_flops == pytest.approx(sum(alone), rel=5e-3)
    assert cost.halved_flops(2) < cost.flops and cost.rate is None and cost.hours(cost.flops) is None
    text = "\n".join(describe_cost(cost, 2))
    assert "hours: unknown" in text and f"{cost.single_flops / cost.flops:.1f} times as much" in text
    assert "halving: at most about" in text


def test_hours_are_those_of_a_stated_or_measured_rate(path, tmp_path):
    sweep = opened(path, *AXES)
    cost = sweep_cost(sweep, tflops=1e-3, utilization=0.5)
    assert cost.hours(cost.flops) == pytest.approx(cost.flops / 0.5e9 / 3600)
    log = tmp_path / "stage2" / "metrics.jsonl"
    log.parent.mkdir()
    log.write_text('{"samples_per_second": 1.0, "tokens_per_second": 50.0}\n' * 3)
    (log.parent / "config.yaml").write_text(path.read_text())
    measured = sweep_cost(sweep, rate_from=str(tmp_path))
    tokens = sum(member.work.tokens for member in measured.groups[0])
    assert measured.hours(measured.single_flops) == pytest.approx(tokens / 50 / 3600)
    with pytest.raises(InputError, match="of which peak"):
        sweep_cost(sweep, utilization=0.5)


def test_why_members_are_apart(path):
    lines = describe_groups(opened(path, *AXES, "aspects=[[scene],[object]]", "stage2.layout=[after_image,released]"))
    assert lines[0] == "sweep: 16 members in groups of 4 + 1 + 4 + 1 + 1 + 1 + 1 + 1 + 1 + 1"
    assert "behind one pass of the prefix; no other has its aspects" in lines[1]
    assert sum("alone, since its prompt has no frozen prefix" in line for line in lines) == 8


def test_with_images_held_out_of_training_fewer_are_trained_on(path):
    whole = sweep_cost(opened(path, *AXES))
    less = sweep_cost(opened(path, *AXES, "stage2.validate_every=2", "stage2.validation_size=4"))
    assert less.groups[0][0].work.num_images == whole.groups[0][0].work.num_images - 4


def test_why_groups_are_apart_is_said_of_settings_of_stage_1_too(path):
    lines = describe_groups(opened(path, "stage1.restarts=[1,2]", "stage1.validate_every=1", "seed=[1,2]"))
    assert all(line.endswith("behind one pass of the prefix; no other has its stage1.restarts") for line in lines[1:])
    same = describe_groups(opened(path, "stage1.learning_rate=[0.1,0.2]", "aspects=[[scene],[object]]", "seed=[1]"))
    assert len(same) == 5 and all("no other has its stage1.learning_rate and aspects" in line for line in same[1:])
    given = "checkpoint.aspect=aspect.safetensors"  # so that stage 1 does not matter
    alike = describe_groups(opened(path, given, "stage1.learning_rate=[0.1,0.2]", "aspects=[[scene],[object]]"))
    assert len(alike) == 3 and all(line.endswith("no other has its aspects") for line in alike[1:])


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("checkpoint.soft_prompt=other.safetensors", "checkpoint.soft_prompt = 'other.safetensors': a sweep scores"),
        ("checkpoint.soft_prompt=[none,other.safetensors]", "checkpoint.soft_prompt = 'none': a sweep scores"),
        ("evaluate.stage=stage1", "evaluate.stage = 'stage1': a sweep compares evaluations of stage 2"),
    ],
)
def test_a_sweep_scores_what_it_trains(path, given, problem):
    with pytest.raises(InputError, match=problem):
        opened(path, "seed=[1,2]", given)
