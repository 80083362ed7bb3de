"""Training behind a quantized language half: one rank, and two under every ZeRO stage that divides no parameters."""

import json

import pytest

from tests.commands import Ranks


def losses(output, stage):
    lines = (output / stage / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_two_ranks_train_what_one_trains(commands, world, trained, tmp_path, kind):
    def argv(stage, output, *more):
        aspect = f"checkpoint.aspect={trained / 'stage1' / 'aspect.safetensors'}"
        few = (f"{stage}.num_epochs=1", f"{stage}.log_every=1", f"vlm.quantization={kind}")
        return ["train", "--stage", stage, *world.settings(output, aspect, *few, *more)]

    for number, stage in enumerate(("stage1", "stage2")):
        commands.ok(*argv(stage, tmp_path / "one", "engine.zero_stage=0"))
        expected = losses(tmp_path / "one", stage)
        zero, recompute = (2, 1)[number], f"engine.gradient_checkpointing={bool(number)}".lower()
        output = tmp_path / f"zero-{zero}"
        Ranks(commands, 2, *argv(stage, output, f"engine.zero_stage={zero}", recompute)).ok()
        assert losses(output, stage) == pytest.approx(expected, abs=1e-4)
    plain = argv("stage2", tmp_path / "plain", "vlm.quantization=none")
    commands.ok(*plain)
    assert losses(tmp_path / "plain", "stage2") != pytest.approx(expected, abs=1e-4)
    result = Ranks(commands, 2, *argv("stage2", tmp_path / "three", "engine.zero_stage=3")).wait()
    print(result, losses(tmp_path / "three", "stage2"), expected)
    assert 0
