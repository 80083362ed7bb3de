"""Measures what soft prompts cost as a group, next to the same ones trained and scored one after another.

    python benchmarks/sweep.py [--tokenizer DIR] [--json FILE]

The model is that of `benchmarks/throughput.py` (Qwen2-VL's architecture and vocabulary at a width that a CPU can train,
fp32), with images of 640 and of 1024 pixels. The sides take turns in one process: a step of all members behind one
prefix, and a step of one member, which is counted as often as there are members. Printed beside the measured ratio is
its bound: the FLOP of single steps over those of the group. The bound of a 7B model at 999 features is printed too; no
machine can be faster than that for reasons of arithmetic, however fast it is. Peak memory is that of processes of their
own, which take turns too.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from masp.vlm.cost.flops import LanguageShape, language_flops

QWEN2_VL_7B = LanguageShape(
    num_layers=28, width=3584, num_heads=28, num_kv_heads=4, head_width=128, mlp_width=18944, vocabulary=152064
)
PREFIX, SUFFIX, ANSWER = 1040, 75, 3
"""Positions of a prompt with 999 features and six aspects: before the soft prompt, behind it, and projected ones."""


def bound(single: float, shared: float, count: int) -> float:
    """How much less a group takes than single runs: `count` x single over shared + `count` x (single - shared)."""
    return count * single / (shared + count * (single - shared))


def large_bounds(counts: Sequence[int]) -> dict[str, dict[int, float]]:
    """The bounds of a 7B model."""
    found: dict[str, dict[int, float]] = {}
    for name, gradient in (("training", True), ("evaluation", False)):
        shared = language_flops(QWEN2_VL_7B, prefix=PREFIX, suffix=0, gradient=False)
        single = language_flops(QWEN2_VL_7B, prefix=PREFIX, suffix=SUFFIX, num_logits=ANSWER, gradient=gradient)
        found[name] = {count: bound(single, shared, count) for count in counts}
    return found


def members_of(config, count: int) -> list:
    """Configurations of members that differ in rate, decay, length of training and seed."""
    found = []
    for number in range(count):
        member = copy.deepcopy(config)
        member.order_seed, member.seed = config.seed, number
        member.checkpoint.aspect = f"{config.output_dir}/stage1/aspect.safetensors"
        member.output_dir = f"{config.output_dir}-{number}"
        member.stage2.learning_rate = 1e-3 * (number + 1)
        member.stage2.weight_decay = 0.01 * number
        found.append(member)
    return found


class Group:
    """Real steps of a group, read from the cache."""

    def __init__(self, configs: Sequence):
        from masp.distributed.ranks import Ranks, join
        from masp.models.group import GroupModel
        from masp.runtime.prefetch import ReadAhead
        from masp.training.group.engine import GroupEngine
        from masp.training.group.members import open_members
        from masp.training.group.steps import GroupSteps

        join(Ranks(), "cpu")
        stages = open_members(configs, "cpu")
        model, prompt = stages[0].build("cpu")
        others = [stage.around(model.language, prompt, "cpu", None).soft_prompt for stage in stages[1:]]
        group = GroupModel(model.language, model.aspect_modules, [model.soft_prompt, *others])
        self.engine = GroupEngine(group, configs[0].engine, [stage.settings for stage in stages], Ranks(), "cpu")
        self.steps = GroupSteps(stages, prompt)
        workers = configs[0].engine.num_workers
        self.reader = ReadAhead(self.steps, range(len(self.steps)), workers, "engine.num_workers")
        self.members = range(len(configs))
        self.aspects, self.queries = len(stages[0].aspects), configs[0].aspect_module.num_queries

    def __call__(self) -> None:
        """Run one step of all members."""
        step = next(self.reader)
        self.engine.accumulate_members(step, self.members)
        self.engine.update_members(dict.fromkeys(self.members, 1e-5))

    def flops(self) -> tuple[float, float]:
        """FLOP of a step of one member, and of what all of them share of it."""
        from masp.vlm.cost.flops import aspect_module_flops

        step = self.steps[0]
        shared = 0.0
        for batch in step.batches:
            first = batch.variants[0]
            assert first.prefix is not None
            lengths = first.prefix.mask.sum(1).double()
            shared += float(
                language_flops(
                    self.steps.shape, prefix=lengths, suffix=lengths * 0, num_logits=lengths * 0, gradient=False
                ).sum()
            )
            tokens = first.feature_mask.sum(1).double()
            one = aspect_module_flops(self.steps.shape.width, self.queries, tokens, gradient=False).sum()
            shared += self.aspects * float(one)
        return step.flops[0], shared

    def close(self) -> None:
        """Free the memory of the model."""
        self.reader.close()
        self.engine.engine.destroy()


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def training(config, count: int, rounds: int) -> dict:
    """A step of one member, of the group, of one member … in turns, after a warm-up of each."""
    from benchmarks.throughput import Ours

    group, single = Group(members_of(config, count)), Ours(config, "stage2")
    group(), single()
    found = []
    for _ in range(rounds):
        before, together, after = seconds(single), seconds(group), seconds(single)
        found.append((count * (before + after) / 2, together))
    alone, shared = group.flops()
    group.close()
    single.close()
    return summary(found, bound(alone, shared, count))


def evaluation(config, count: int, rounds: int, batch: int) -> dict:
    """A batch of images scored by one member, by the group, by one member … in turns, after a warm-up of each."""
    from benchmarks.throughput import save_untrained
    from masp.data.questions import questions_of
    from masp.evaluation.feed import open_feed
    from masp.evaluation.group.scorer import GroupScorer
    from masp.evaluation.run import evaluate_dir
    from masp.evaluation.scorers import load_language
    from masp.evaluation.target import TargetEvaluation

    configs = members_of(config, count)
    for member in configs:
        member.evaluate.split = "train"
        if not (Path(member.output_dir) / "stage2").is_dir():
            save_untrained(member, "stage2")
    feed, language = open_feed(configs[0]), load_language(configs[0], "cpu")
    members: list[TargetEvaluation] = []
    scorers: list = []
    for member in configs:
        like = members[0] if members else None
        members.append(TargetEvaluation(member, evaluate_dir(member), feed, questions_of(member), like=like))
        scorers.append(members[-1].load("cpu", language, scorers[0].prompt if scorers else None))
    group = GroupScorer(scorers)
    requests = members[0].requests(next(iter(feed.batches(feed.keys, batch))))

    def single() -> object:
        return scorers[0].score(requests)

    def together() -> object:
        return group.score(requests, range(count))

    together(), single()
    found = []
    for _ in range(rounds):
        before, grouped, after = seconds(single), seconds(together), seconds(single)
        found.append((count * (before + after) / 2, grouped))
    return summary(found, None)


def summary(found: Sequence[tuple[float, float]], largest: float | None) -> dict:
    """Medians of rounds (seconds one after another, seconds as a group), beside the bound of the ratio if known."""
    ratio = statistics.median(alone / together for alone, together in found)
    return {
        "one_after_another_s": statistics.median(alone for alone, _ in found),
        "group_s": statistics.median(together for _, together in found),
        "ratio": ratio,
        "bound": largest,
        "of_bound": None if largest is None else ratio / largest,
    }


def peak_mb(config_path: Path, count: int) -> float:
    """Peak resident size of a process that runs two steps of a group, or of a single run (`count` 0)."""
    command = [sys.executable, __file__, "--memory-of", str(config_path), "--members", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return float(done.stdout.split()[-1])


def measure_memory(config, count: int) -> float:
    """What `peak_mb` starts."""
    from benchmarks.sides import Memory
    from benchmarks.throughput import Ours

    run = Group(members_of(config, count)) if count else Ours(config, "stage2")
    run(), run()
    return Memory("cpu").peak() / 2**20


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    from benchmarks.throughput import add_options, build

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--sides", type=int, nargs="+", default=[640, 1024], help="pixels of the images' longer side")
    parser.add_argument("--members", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--scored", type=int, default=8, help="images per batch of an evaluation")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    from masp.config import load_config

    if args.memory_of:
        print(measure_memory(load_config(args.memory_of), args.members[0]))
        return 0
    found: dict = {"arguments": {key: str(value) for key, value in vars(args).items()}}
    for side in args.sides:
        with tempfile.TemporaryDirectory() as folder:
            path = build(Path(folder), argparse.Namespace(**(vars(args) | {"side": side})))
            config = load_config(path)
            for count in args.members:
                row = training(config, count, args.rounds)
                print(
                    f"{side} pixels, {count} members: training {row['ratio']:.2f} times as fast as one after another, "
                    f"{row['of_bound']:.2f} of the bound {row['bound']:.2f}",
                    flush=True,
                )
                found[f"training-{side}-{count}"] = row
                row = evaluation(config, count, args.rounds, args.scored)
                print(
                    f"{side} pixels, {count} members: evaluation {row['ratio']:.2f} times as fast as one after another",
                    flush=True,
                )
                found[f"evaluation-{side}-{count}"] = row
            largest = max(args.members)
            peaks = [(peak_mb(path, 0), peak_mb(path, largest)) for _ in range(args.rounds)]
            alone, together = (statistics.median(side) for side in zip(*peaks, strict=True))
            ratios = [group / single for single, group in peaks]
            print(
                f"{side} pixels: peak memory {alone:.0f} MB for one, {together:.0f} MB for {largest} members: "
                f"{statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )
            found[f"memory-{side}"] = {"single": alone, str(largest): together, "ratios": ratios}
    found["bound_7b"] = large_bounds(args.members)
    for name, row in found["bound_7b"].items():
        each = ", ".join(f"{count} members {value:.1f}" for count, value in row.items())
        print(f"bound of a 7B model at 999 features, {name}: {each}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(main())
