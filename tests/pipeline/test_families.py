"""Every kind of VLM from images to the report, killed and resumed on the way."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from masp.cli.main import main
from tests.family_vlms import MAX_SIDE
from tests.images import make_dataset
from tests.runs import make_config_file

FULL = pytest.mark.full
STAGES = ("stage1", "stage2")
FAMILIES = [
    "qwen3_vl",  # M-RoPE, DeepStack
    "gemma3",  # sliding windows, masks that depend on types of tokens
    "qwen3_5",  # recurrent layers
    *(
        pytest.param(name, marks=FULL)
        for name in "internvl llava_next gemma4 gemma4_e smolvlm idefics3 glm4v minicpmv4_6".split()
    ),
    # the whole prompt at once; maps without a first one; experts; n-grams of ids
    *(
        pytest.param(name, marks=FULL)
        for name in ("paligemma granite4_vision qwen3_vl_moe qwen4_exp deepseek_vl").split()
    ),
]


def contents(cache: Path) -> dict[str, bytes]:
    names = ("index.h5", "manifest.json")
    return {path.name: path.read_bytes() for path in [*(cache / "shards").glob("*"), *(cache / n for n in names)]}


def num_steps(output: Path, stage: str) -> int:
    path = output / stage / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.parametrize("family", FAMILIES)
def test_from_images_to_the_report(commands, family_vlm, tmp_path, family, capsys):
    images = make_dataset(tmp_path / "pictures", 8, 4)
    config = make_config_file(tmp_path, family_vlm(family), images)

    def argv(command: str, folder: str, *more: str) -> list[str]:
        output = (f"output_dir={tmp_path / folder}", f"cache.dir={tmp_path / folder / 'cache'}", MAX_SIDE)
        long = (f"{stage}.{name}" for stage in STAGES for name in ("num_epochs=4", "log_every=1"))
        return [*command.split(), "--config", str(config), *output, *long, *more]

    def masp(*words: str) -> str:
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        assert code == 0, (words, said.err)
        assert "Warning" not in said.err and "Traceback" not in said.err, said.err
        return said.out

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    planned = json.loads(masp(*argv("plan", "whole"), "--json"))["cache"]["bytes"]
    masp(*argv("extract", "whole"))
    assert planned == sum(path.stat().st_size for path in (whole / "cache" / "shards").glob("*.tar"))
    for stage in STAGES:
        masp(*argv(f"train --stage {stage}", "whole"))

    running = commands.start(*argv("extract", "killed"))
    running.when(lambda: bool(list((killed / "cache" / "shards").glob("*.json"))))
    running.kill(group=True)
    assert running.wait().code in (-signal.SIGKILL, 0)
    masp(*argv("extract", "killed"))
    assert contents(killed / "cache") == contents(whole / "cache")

    # one of the stages is stopped, the other killed
    for stage, number in (("stage1", signal.SIGTERM), ("stage2", signal.SIGKILL)):
        running = commands.start(*argv(f"train --stage {stage}", "killed"))
        running.when(lambda s=stage: num_steps(killed, s) >= 3)
        running.kill(number, group=True)
        assert running.wait().code == (75 if number == signal.SIGTERM else -number)
        masp(*argv(f"train --stage {stage}", "killed"))
        (path,) = (whole / stage).glob("*.safetensors")
        expected, found = load_file(path), load_file(killed / stage / path.name)
        assert found.keys() == expected.keys() and all(torch.equal(found[n], t) for n, t in expected.items())
        losses = [[json.loads(line)["loss"] for line in (o / stage / "metrics.jsonl").open()] for o in (whole, killed)]
        assert losses[0] == losses[1] and all(0 < loss < 50 for loss in losses[0])

    metrics = {}
    for name, more in {
        "likelihood": (),
        "live": ("evaluate.source=live",),
        "generate": ("evaluate.scoring=generate", "evaluate.max_new_tokens=8"),
    }.items():
        masp(*argv("evaluate", "whole", *more, *([f"evaluate.output_dir={tmp_path / name}"] if more else [])))
        path = (tmp_path / name if more else whole / "evaluate") / "metrics.json"
        metrics[name] = json.loads(path.read_text())
        assert metrics[name]["num_samples"] == 4 and metrics[name]["coverage"] == 1
    assert metrics["live"]["confusion"] == metrics["likelihood"]["confusion"]
    picture = next((images / "test").rglob("*.png"))
    (line,) = masp(*argv("predict", "whole", str(picture), "--json")).splitlines()
    assert sum(json.loads(line)["probabilities"].values()) == pytest.approx(1)
    assert str(whole / "report.html") in masp("report", str(whole))
