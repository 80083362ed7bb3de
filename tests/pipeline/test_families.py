"""Every kind of VLM from images to the report, killed and resumed on the way."""

import json
import signal
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from masp.cache.reader import open_cache
from masp.cli.main import main
from tests.family_vlms import MAX_SIDE
from tests.images import make_dataset
from tests.runs import make_config_file

FULL = pytest.mark.full
STAGES = ("stage1", "stage2")
FAMILIES = [
    "qwen3_vl",  # M-RoPE, DeepStack
    pytest.param("gemma3", marks=FULL),  # sliding windows, masks that depend on types of tokens
    pytest.param("qwen3_5", marks=FULL),  # recurrent layers
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


@pytest.mark.parametrize(
    ("family", "spread", "precision", "tolerance"),
    [
        ("qwen3_5", 10, "fp32", 2e-5),
        pytest.param("minicpmv4_6", 4, "fp32", 2e-5, marks=FULL),
        pytest.param("gemma3", 1, "fp32", 2e-5, marks=FULL),  # whose images all have as many tokens
        # half precision rounds in other places
        pytest.param("qwen3_5", 10, "bf16", 2e-2, marks=FULL),
        pytest.param("minicpmv4_6", 4, "bf16", 2e-2, marks=FULL),
        pytest.param("gemma3", 1, "bf16", 2e-2, marks=FULL),
    ],
)
def test_rows_of_very_different_length_have_the_losses_they_have_alone(
    family_vlm, tmp_path, family, spread, precision, tolerance
):
    """Padded on the left, in one batch or one by one, with and without a frozen prefix, layers run again or not."""
    random = np.random.default_rng(0)
    for number, size in enumerate([(28, 28), (420, 400), (60, 400), (400, 30), (150, 100), (33, 50), (300, 300)]):
        for split in ("train", "test"):
            path = tmp_path / "pictures" / split / ("awe" if number % 2 else "joy") / f"{split}_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    config = make_config_file(tmp_path, family_vlm(family), tmp_path / "pictures")
    assert main(["extract", "--config", str(config)]) == 0
    with closing(open_cache(tmp_path / "cache")) as cache:
        lengths = cache.index.num_tokens
    assert max(lengths) >= spread * min(lengths)

    def losses(name: str, *more: str) -> list[float]:
        few = ("stage2.num_epochs=2", "stage2.global_batch_size=7", "stage2.learning_rate=1e-3", "stage2.log_every=1")
        settings = (f"output_dir={tmp_path / name}", f"engine.precision={precision}", "checkpoint.aspect=none")
        assert main(["train", "--stage", "stage2", "--config", str(config), *few, *settings, *more]) == 0
        return [json.loads(line)["loss"] for line in (tmp_path / name / "stage2" / "metrics.jsonl").open()]

    alone = losses("alone", "stage2.micro_batch_size=1", "stage2.frozen_prefix=false")
    assert len(alone) == 2 and alone[0] != alone[1]
    for name, more in {
        "together": (),
        "alone_behind_prefixes": ("stage2.micro_batch_size=1",),
        "by_three_and_by_tokens": ("stage2.micro_batch_size=3", "stage2.micro_batch_tokens=250"),
        "again": ("engine.gradient_checkpointing=true",),
        "whole": ("stage2.frozen_prefix=false",),
    }.items():
        assert losses(name, "stage2.micro_batch_size=7", *more) == pytest.approx(alone, abs=tolerance), name
