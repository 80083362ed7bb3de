"""Kinds of VLMs on two ranks: the losses of one rank, whether the language model is divided over the ranks or not."""

import json

import pytest

from tests.commands import Ranks
from tests.family_vlms import MAX_SIDE
from tests.images import make_dataset
from tests.runs import assert_same, make_config_file, numbers

FULL = pytest.mark.full
STAGES = ("stage1", "stage2")


@FULL
@pytest.mark.parametrize(
    "family",
    [
        "gemma3",  # sliding windows, scaled words, a tied head
        "qwen3_vl",  # M-RoPE, DeepStack
        "qwen3_5",  # recurrent layers
        "gemma4_e",  # tables of single layers
        "granite4_vision",  # features inside only
        "qwen4_exp",  # parts that run as often as the data say
        "paligemma",  # no prefix
    ],
)
def test_two_ranks_have_the_losses_of_one(commands, family_vlm, tmp_path, family):
    config = make_config_file(tmp_path, family_vlm(family), make_dataset(tmp_path / "pictures", 9, 2))
    aspect = f"checkpoint.aspect={tmp_path / 'alone' / 'stage1' / 'aspect.safetensors'}"
    commands.ok("extract", "--config", config, MAX_SIDE)

    def argv(stage: str, output: str, zero: int) -> list[str]:
        # Adam turns the rounding of tiny gradients into whole steps, so the steps are small
        few = (f"{stage}.num_epochs=2", f"{stage}.log_every=1", f"{stage}.learning_rate=1e-4")
        engine = (f"engine.zero_stage={zero}", f"output_dir={tmp_path / output}", aspect, MAX_SIDE)
        return ["train", "--stage", stage, "--config", str(config), *few, *engine]

    def losses(stage: str, output: str) -> list[float]:
        return [json.loads(line)["loss"] for line in (tmp_path / output / stage / "metrics.jsonl").open()]

    for stage in STAGES:
        commands.ok(*argv(stage, "alone", 0))
        expected = losses(stage, "alone")
        assert len(set(expected)) == len(expected) > 3
        for zero in (0, 3):
            Ranks(commands, 2, *argv(stage, f"zero{zero}", zero)).ok()
            assert losses(stage, f"zero{zero}") == pytest.approx(expected, abs=1e-4), (stage, zero)


@FULL
@pytest.mark.parametrize(
    "family", "gemma3 qwen3_vl qwen3_5 gemma4 gemma4_e granite4_vision qwen3_vl_moe qwen4_exp paligemma".split()
)
def test_divided_over_two_ranks_it_scores_as_whole_on_one(commands, family_vlm, tmp_path, family):
    images = make_dataset(tmp_path / "pictures", 6, 5)
    config = make_config_file(tmp_path, family_vlm(family), images)
    commands.ok("extract", "--config", config, MAX_SIDE)
    zero_shot = ("checkpoint.aspect=none", "checkpoint.soft_prompt=none", MAX_SIDE)
    for scoring in ("likelihood", "generate"):
        argv = ("evaluate", "--config", config, *zero_shot, f"evaluate.scoring={scoring}", "evaluate.max_new_tokens=6")
        commands.ok(*argv, f"output_dir={tmp_path / 'whole' / scoring}")
        divided = (f"output_dir={tmp_path / 'divided' / scoring}", "evaluate.partition_vlm=true")
        Ranks(commands, 2, *argv, *divided).ok()
        found, expected = (numbers(tmp_path / n / scoring / "evaluate" / "metrics.json") for n in ("divided", "whole"))
        assert_same(found, expected)
