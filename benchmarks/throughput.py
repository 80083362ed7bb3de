"""Measures training throughput next to a plain loop that follows the published procedure.

    python benchmarks/throughput.py [--tokenizer DIR] [--json FILE]

The model has Qwen2-VL's architecture and vocabulary at a width that a CPU can train (random weights, fp32, the same
threads for both sides); the images have a realistic size. The plain loop does what the published code does for every
sample: decode the image, run the encoder, one sample per step, gradient checkpointing, logits at every position, and in
stage 2 a gradient and an optimizer step for the whole embedding table. The sides take turns, so that other load on the
machine affects both. Use the family's real tokenizer: with the small byte-level one that replaces it by default,
questions are several times as long. Also measured: the overhead of the engine over a bare loop with the same tensors,
and the memory that the frozen prefix saves.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ANSWERS = {
    "facial_expression": "smile", "object": ["dog", "tree"], "scene": "beach", "human_action": "running",
    "brightness": 0.6, "colorfulness": 0.3,
}  # fmt: skip
EMOTIONS = ("awe", "fear", "sadness")


def make_vlm(folder: Path, hidden: int, layers: int, vocabulary: int) -> Path:
    """Write a VLM of Qwen2-VL's architecture with random weights, a small tokenizer and the full vocabulary size."""
    from transformers import AutoConfig, Qwen2VLForConditionalGeneration

    from tests.tiny import make_vlm as make_tiny

    config = AutoConfig.from_pretrained(make_tiny(folder))
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.num_hidden_layers, text.vocab_size = hidden, layers, vocabulary
    text.layer_types = ["full_attention"] * layers
    text.intermediate_size, text.num_attention_heads, text.num_key_value_heads = 4 * hidden, 4, 2
    half = hidden // 4 // 2  # rotary dimensions of a head
    text.rope_parameters = {
        **text.rope_parameters,
        "mrope_section": [half // 4, half - half // 4 - half // 2, half // 2],
    }
    vision.depth, vision.embed_dim, vision.hidden_size, vision.num_heads, vision.mlp_ratio = (
        layers,
        hidden,
        hidden,
        4,
        4,
    )
    text.initializer_range = vision.initializer_range = 0.02
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | {"max_pixels": 12845056}))
    return folder


def make_images(folder: Path, count: int, side: int) -> Path:
    """Write annotated images of `side` by 5/8 `side` pixels."""
    random = np.random.default_rng(0)
    for number in range(count):
        for split in ("train", "test") if number == 0 else ("train",):
            small = random.integers(0, 256, (10, 16, 3), dtype=np.uint8)
            name = f"{split}{number}"
            path = folder / split / EMOTIONS[number % 3] / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(small).resize((side, side * 5 // 8)).save(path)
            notes = folder / "annotation" / EMOTIONS[number % 3] / f"{name}.json"
            notes.parent.mkdir(parents=True, exist_ok=True)
            notes.write_text(json.dumps(ANSWERS))
    return folder


class Ours:
    """Real steps of this pipeline, read from the cache.

    Args:
        config: Run configuration.
        name: `stage1` or `stage2`.
        device: `cpu` or `cuda`.
    """

    def __init__(self, config, name: str, device: str = "cpu"):
        from masp.distributed.ranks import Ranks, join
        from masp.runtime.prefetch import ReadAhead
        from masp.training.engine import Engine
        from masp.training.stages import open_stage
        from masp.training.steps import Steps

        join(Ranks(), device)
        self.stage = open_stage(name, config, device)
        self.model, prompt = self.stage.build(device)
        self.steps = Steps(self.stage, prompt)
        self.engine = Engine(self.model, config.engine, self.stage.settings, Ranks(), device)
        self.reader = ReadAhead(
            self.steps, range(len(self.steps)), config.engine.num_workers, "engine.num_workers",
            pin_memory=device == "cuda",
        )  # fmt: skip
        self.num_tokens = 0
        self.flops = 0.0
        """Like `num_tokens`, the total over all steps so far."""

    def __call__(self) -> int:
        """Run one step; returns its number of samples."""
        step = next(self.reader)
        self.engine.accumulate(step.batches, step.total_weight)
        self.engine.update(1e-5)
        self.num_tokens += step.num_tokens
        self.flops += step.flops
        return round(step.total_weight)

    def close(self) -> None:
        """Stop the workers and free the memory of the model."""
        self.reader.close()
        self.engine.engine.destroy()


def rate(run, seconds: float) -> float:
    """Samples per second, measured over at least `seconds`."""
    started, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - started < seconds:
        count += run()
    return count / (time.perf_counter() - started)


def side_by_side(config, stage: str, rounds: int, seconds: float) -> dict:
    """Measure both sides in turns, after one warm-up step each."""
    from benchmarks.published import PublishedTraining, load_model

    ours, published = Ours(config, stage), PublishedTraining(config, stage, load_model(config.vlm.path))
    ours(), published()
    found = [(rate(ours, seconds), rate(published, seconds)) for _ in range(rounds)]
    return {
        "ours": statistics.median(a for a, _ in found),
        "published": statistics.median(b for _, b in found),
        "ratio": statistics.median(a / b for a, b in found),
    }


def engine_overhead(config, rounds: int) -> float:
    """Duration of an engine step relative to a bare loop with the same tensors, which are in memory for both."""
    from masp.training.engine import optimizer_groups
    from masp.training.stages import open_stage

    ours = Ours(config, "stage2")
    step = ours.steps[0]
    model, _ = open_stage("stage2", config, "cpu").build("cpu")
    optimizer = torch.optim.AdamW(optimizer_groups(model.parts(), config.stage2.weight_decay), lr=1e-5)
    trained = [p for p in model.parameters() if p.requires_grad]

    def bare() -> None:
        for batch in step.batches:
            ((model(batch) * batch.weights).sum() / step.total_weight).backward()
        torch.nn.utils.clip_grad_norm_(trained, config.stage2.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    def engine() -> None:
        ours.engine.accumulate(step.batches, step.total_weight)
        ours.engine.update(1e-5)

    ratios = []
    for _ in range(rounds + 1):
        times = []
        for run in (engine, bare):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios[1:])


def peak_memory_mb(config_path: Path, frozen_prefix: bool) -> float:
    """Peak resident size of a process that runs two steps of stage 2."""
    command = [sys.executable, __file__, "--memory-of", str(config_path), "--frozen-prefix", str(int(frozen_prefix))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return float(done.stdout.split()[-1])


def build(folder: Path, args: argparse.Namespace) -> Path:
    """Write images, VLM, configuration and cache; returns the path of the configuration."""
    import yaml

    from benchmarks.evaluation import make_vlm as make_with_tokenizer
    from masp.config import load_config
    from masp.extraction.job import extract

    sizes = args.hidden, args.layers, args.vocabulary
    if args.tokenizer:
        vlm = make_with_tokenizer(folder / "vlm", args.tokenizer, *sizes)
    else:
        vlm = make_vlm(folder / "vlm", *sizes)
    stage = {"global_batch_size": args.batch, "micro_batch_size": args.batch, "num_epochs": 100_000}
    settings = {
        "output_dir": str(folder / "run"),
        "vlm": {"path": str(vlm)},
        "dataset": {"name": "folder", "root": str(make_images(folder / "images", args.images, args.side))},
        "cache": {"dir": str(folder / "cache"), "dtype": "fp32", "num_shards": 2},
        "extract": {"num_workers": 0, "num_threads": args.threads, "device": "cpu"},
        "stage1": stage,
        "stage2": stage,
        "engine": {"zero_stage": 0, "precision": "fp32", "device": "cpu", "num_workers": 0},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    config = load_config(path)
    extract(config)
    save_untrained(config, "stage1")
    return path


def save_untrained(config, name: str, device: str = "cpu") -> None:
    """Write the artifact of a stage for the next one to build on; its values do not matter here."""
    from masp.training.stages import open_stage

    stage = open_stage(name, config, device)
    model, _ = stage.build(device)
    stage.directory.mkdir(parents=True)
    state = {key: p.detach().float().cpu() for key, p in model.named_parameters() if p.requires_grad}
    stage.export(state, stage.identity())


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `build`, and those of measuring, for every benchmark of this model."""
    for name, default in (("hidden", 256), ("layers", 4), ("vocabulary", 151_936), ("images", 24)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="of the family (default: a small byte-level one)")
    parser.add_argument("--batch", type=int, default=24, help="images per step of MASP")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--side", type=int, default=640, help="pixels of the images' longer side")
    parser.add_argument("--seconds", type=float, default=5.0, help="per side and round")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--frozen-prefix", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    from masp.config import load_config

    if args.memory_of:
        config = load_config(args.memory_of)
        run = Ours(replace(config, stage2=replace(config.stage2, frozen_prefix=bool(args.frozen_prefix))), "stage2")
        run(), run()
        # not ru_maxrss, which starts at the peak of the parent process
        status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
        print(int(status.split()[0]) / 1024)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = build(Path(folder), args)
        config = load_config(path)
        found = {stage: side_by_side(config, stage, args.rounds, args.seconds) for stage in ("stage1", "stage2")}
        found["engine_overhead"] = engine_overhead(config, args.rounds)
        found["peak_memory_mb"] = {
            "frozen_prefix": peak_memory_mb(path, True), "full_pass": peak_memory_mb(path, False),
        }  # fmt: skip
    for stage in ("stage1", "stage2"):
        row = found[stage]
        print(f"{stage}: {row['ours']:.2f} samples/s, published procedure {row['published']:.2f}: "
              f"{row['ratio']:.1f} times (required: 20)")  # fmt: skip
    print(f"engine: {found['engine_overhead']:.3f} times a bare loop (at most 1.10)")
    memory = found["peak_memory_mb"]
    print(f"peak resident, stage 2: {memory['frozen_prefix']:.0f} MB; in one full pass {memory['full_pass']:.0f} MB")
    if args.json:
        args.json.write_text(json.dumps(found | {"arguments": {k: str(v) for k, v in vars(args).items()}}, indent=1))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(main())
