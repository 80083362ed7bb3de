"""Where the time of a training step and of scoring goes: matrix products, attention, and what is neither.

    python benchmarks/shares.py [--tokenizer DIR] [--json FILE]

The model, images and settings are those of `benchmarks/throughput.py`. torch's profiler adds up the time of every
operation on the main thread (an operation that uses several threads makes it wait). Printed are the shares of a step of
stage 1, a step of stage 2 and a batch of an evaluation, with the operations that take most among those that are neither
a matrix product nor attention. What no operation takes is Python.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::convolution"),
    "attention": ("aten::_scaled_dot_product",),
}


def kind_of(operation: str) -> str:
    """Kind of an operation of torch; `other` if it is none of `KINDS`."""
    return next((kind for kind, names in KINDS.items() if operation.startswith(names)), "other")


def shares(work: Callable[[], object], rounds: int) -> dict:
    """Shares of the time that `work` takes, over several rounds after a warm-up."""
    from torch.profiler import ProfilerActivity, profile

    work()
    started = time.perf_counter()
    for _ in range(rounds):
        work()
    seconds = time.perf_counter() - started
    with profile(activities=[ProfilerActivity.CPU]) as found:
        started = time.perf_counter()
        for _ in range(rounds):
            work()
        profiled = time.perf_counter() - started
    by_kind = dict.fromkeys((*KINDS, "other"), 0.0)
    others: dict[str, float] = {}
    for event in found.key_averages():
        share = event.self_cpu_time_total / 1e6 / profiled
        kind = kind_of(event.key)
        by_kind[kind] += share
        if kind == "other":
            others[event.key] = share
    largest = dict(sorted(others.items(), key=lambda each: -each[1])[:5])
    python = max(0.0, 1 - sum(by_kind.values()))
    return {"seconds": seconds / rounds, "shares": by_kind | {"Python": python}, "largest_others": largest}


def scoring(config, batch: int) -> Callable[[], object]:
    """Scores the same images again at each call, as an evaluation from the cache does."""
    from benchmarks.sweep import members_of
    from benchmarks.throughput import save_untrained
    from masp.data.questions import questions_of
    from masp.evaluation.feed import open_feed
    from masp.evaluation.run import evaluate_dir
    from masp.evaluation.scorers import load_language
    from masp.evaluation.target import TargetEvaluation

    (member,) = members_of(config, 1)
    member.evaluate.split = "train"
    save_untrained(member, "stage2")
    feed = open_feed(member)
    evaluation = TargetEvaluation(member, evaluate_dir(member), feed, questions_of(member))
    scorer = evaluation.load("cpu", load_language(member, "cpu"), None)
    requests = evaluation.requests(next(iter(feed.batches(feed.keys, batch))))
    return lambda: scorer.score(requests)


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    from benchmarks.throughput import Ours, add_options, build

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--side", type=int, default=640, help="pixels of the images' longer side")
    parser.add_argument("--scored", type=int, default=16, help="images per batch of an evaluation")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    from masp.config import load_config

    found: dict = {"arguments": {key: str(value) for key, value in vars(args).items()}}
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(build(Path(folder), args))
        for name in ("stage1", "stage2"):
            run = Ours(config, name)
            found[name] = shares(run, args.rounds)
            run.close()
        found["evaluation"] = shares(scoring(config, args.scored), args.rounds)
    for name in ("stage1", "stage2", "evaluation"):
        row = found[name]
        parts = ", ".join(f"{kind} {share:.0%}" for kind, share in row["shares"].items())
        print(f"{name}: {row['seconds']:.3f} s; {parts}")
        print("  others: " + ", ".join(f"{key} {share:.1%}" for key, share in row["largest_others"].items()))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(main())
