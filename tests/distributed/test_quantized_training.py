"""Training and evaluation with a quantized language half: two ranks do what one does, and results say so."""

import json

import pytest

from tests.commands import Ranks


def losses(output, stage):
    lines = (output / stage / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize(
    ("stage", "kind", "more"),
    [
        pytest.param("stage1", "int8", ("engine.zero_stage=2",), marks=pytest.mark.full),
        ("stage2", "int4", ("engine.zero_stage=1", "engine.gradient_checkpointing=true")),
    ],
)
def test_two_ranks_train_what_one_trains(commands, world, trained, tmp_path, stage, kind, more):
    aspect = f"checkpoint.aspect={trained / 'stage1' / 'aspect.safetensors'}"
    settings = (aspect, f"{stage}.num_epochs=1", f"{stage}.log_every=1", f"vlm.quantization={kind}")
    one, two = tmp_path / "one", tmp_path / "two"
    commands.ok("train", "--stage", stage, *world.settings(one, *settings, "engine.zero_stage=0"))
    result = Ranks(commands, 2, "train", "--stage", stage, *world.settings(two, *settings, *more)).ok()[0]
    assert losses(two, stage) == pytest.approx(losses(one, stage), abs=1e-4)
    assert losses(one, stage)[0] != pytest.approx(losses(trained, stage)[0], abs=1e-6)
    if stage == "stage2":
        note = "the aspect modules were trained with vlm.quantization=none, and it is int4 here"
        assert note in result.stderr
        prompt = f"checkpoint.soft_prompt={one / 'stage2' / 'soft_prompt_folder.safetensors'}"
        commands.ok("evaluate", *world.settings(one, aspect, prompt))
        metrics = json.loads((one / "evaluate" / "metrics.json").read_text())
        note = "the soft prompt was trained with vlm.quantization=int4, and it is none here"
        assert note in metrics["notes"] and "quantization" not in metrics
        refused = commands("evaluate", *world.settings(one, aspect, prompt, "vlm.quantization=int4"))
        assert refused.code == 2 and "quantization" in refused.stderr  # the ledgers are those of another VLM
        again = f"evaluate.output_dir={tmp_path / 'again'}"
        commands.ok("evaluate", *world.settings(one, aspect, prompt, "vlm.quantization=int4", again))
        assert json.loads((tmp_path / "again" / "metrics.json").read_text())["quantization"] == "int4"
