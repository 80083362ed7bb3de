"""CPU time and memory of what MASP does per image, shard or rank besides encoding and scoring, at 3.3 million images.

    python benchmarks/scale.py [--fraction 0.1 1.0] [--steps NAME …] [--directory DIR] [--results FILE]

Makes a dataset of 3.3 million images and a feature cache of 20,000 shards (`benchmarks/scale_data.py` says what is real
about them), and the ledgers of 512 ranks (`benchmarks/scale_ledgers.py`), runs each step in a process of its own, and
prints a table: CPU seconds of the process that used most and of all that the step started, and the largest resident
memory of one, for a part of the images and for all. With `--results`, the table also has what earlier calls measured.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

# The processes that the steps start import this file, so what is large is imported where it is needed.
from benchmarks.scale_case import Case

NUM_IMAGES = 3_300_000
NUM_SHARDS = 20_000
NUM_RANKS = 512
FEWER_RANKS = 64
"""To compare what a rank takes."""
MAX_CPU_S, MAX_BYTES = 60.0, 2e9


def read_data(case: Case) -> None:
    """List the dataset, read its annotations, and assign the images to shards."""
    from masp.cache.layout import shards_of
    from masp.data.datasets import read_dataset

    config = case.config()
    dataset = read_dataset(config.dataset, config.cache.dir)
    assert len(dataset.samples) == case.num_images
    assert len(shards_of(None, dataset.samples, case.num_shards)) == case.num_shards


def start_task(case: Case) -> None:
    """One of 512 extraction tasks that finds its shards finished and another's missing."""
    from masp.extraction.job import extract

    with _hidden(case.directory / "cache" / "shards" / "train-00000.json"):
        extract(case.config(), num_tasks=NUM_RANKS, task_index=3)


def merge(case: Case) -> None:
    """Compare all finished shards with the dataset, and merge them into index and manifest."""
    from masp.extraction.job import finish

    (case.directory / "cache" / "manifest.json").unlink(missing_ok=True)
    finish(case.config())


def find_complete(case: Case) -> None:
    """One of 512 extraction tasks that finds the cache finished."""
    from masp.extraction.job import extract

    extract(case.config(), num_tasks=NUM_RANKS, task_index=3)


def extend_nothing(case: Case) -> None:
    """`masp cache extend` where no image is new."""
    from masp.extraction.extend import extend

    extend(case.config(), num_tasks=NUM_RANKS, task_index=3)


def write_shards(case: Case) -> None:
    """Write 39 shards, the share of one of 512 tasks, into a directory that has 20,000."""
    from benchmarks.scale_data import _add
    from masp.cache.layout import Shard, read_layout
    from masp.cache.shard_state import fingerprint_of
    from masp.cache.writer import ShardWriter
    from masp.data.sample import Sample

    directory = case.directory / "cache"
    fingerprint = fingerprint_of(read_layout(directory))
    for number in range(NUM_SHARDS // NUM_RANKS):
        sample = Sample(f"train/awe/{number}", "train", Path("none"), "awe", {})
        shard = Shard(number, f"train-{90000 + number}", "train", 0, (sample,))
        writer = ShardWriter(directory, shard, fingerprint)
        _add(writer, sample)
        writer.finish()
    for path in (directory / "shards").glob("train-9????.*"):
        path.unlink()


def describe_cache(case: Case) -> None:
    """`masp cache info`."""
    from masp.cache.describe import describe

    describe(case.directory / "cache")


def verify(case: Case) -> None:
    """`masp cache verify` on tars of very small features: what it does besides reading bytes."""
    from masp.cache.verify import verify_cache

    assert not verify_cache(case.directory / "verifiable")


def open_for_training(case: Case) -> None:
    """What each rank of training does: open the cache, plan the steps, order two epochs, divide steps over ranks."""
    from masp.cache.reader import open_cache
    from masp.data.questions import questions_of
    from masp.training.schedule import plan_step
    from masp.training.stages import STAGES
    from masp.training.steps import Steps

    config = case.config("cache", "stage1.global_batch_size=4096", "stage1.validate_every=100")
    cache = open_cache(config.cache.dir)
    stage = STAGES["stage1"](config, cache, questions_of(config))
    steps = Steps(stage, None, rank=3, num_ranks=NUM_RANKS)
    for step in (0, 1, steps.schedule.steps_per_epoch):
        rows = steps.rows_of(step)
        plan_step(stage.cache.index.num_tokens[rows].tolist(), NUM_RANKS, 16, 32768)


def plan(case: Case) -> None:
    """`masp plan`."""
    from masp.plan.plan import make_plan

    make_plan(case.config())


STEPS: dict[str, Callable[[Case], None]] = {
    "read-dataset": read_data,
    "task-start": start_task,
    "merge": merge,
    "task-complete": find_complete,
    "extend": extend_nothing,
    "write-shards": write_shards,
    "info": describe_cache,
    "verify": verify,
    "train-open": open_for_training,
    "plan": plan,
    "plan-again": plan,
}

LEDGER_STEPS = {
    "evaluate: a rank begins": ("start_rank", NUM_RANKS),
    "evaluate: a rank appends": ("append", NUM_RANKS),
    "evaluate: a rank ends": ("end_rank", NUM_RANKS),
    "evaluate: merge": ("merge", NUM_RANKS),
    "evaluate: metrics": ("metrics", NUM_RANKS),
    "evaluate: records.h5": ("records", NUM_RANKS),
    "report: mistakes": ("report", NUM_RANKS),
    "compare": ("compare_runs", NUM_RANKS),
    "evaluate: other ranks, first": ("resume", NUM_RANKS),
    "evaluate: other ranks, next": ("resume_with_index", NUM_RANKS),
    f"evaluate: one of {FEWER_RANKS} begins": ("start_rank", FEWER_RANKS),
    f"evaluate: one of {FEWER_RANKS} ends": ("end_rank", FEWER_RANKS),
}
"""Step -> its function in `benchmarks/scale_ledgers.py`, and the number of ranks that left the ledgers."""


def _ledger_step(function: str, num_ranks: int, case: Case) -> None:
    """One step of an evaluation."""
    from benchmarks import scale_ledgers

    directory = case.directory / f"ledgers-{num_ranks}"
    getattr(scale_ledgers, function)(scale_ledgers.Size(directory, case.num_images, num_ranks))


def _make_ledgers(num_ranks: int, case: Case) -> None:
    from benchmarks import scale_ledgers

    directory = case.directory / f"ledgers-{num_ranks}"
    if not directory.exists():
        scale_ledgers.prepare(directory, case.num_images, num_ranks)


@contextlib.contextmanager
def _hidden(path: Path) -> Iterator[None]:
    """A file that is not there for a moment."""
    aside = path.with_suffix(".aside")
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)


@dataclass(frozen=True)
class Cost:
    """What a step took."""

    cpu_s: float
    """User and system time of the process and its children."""
    max_cpu_s: float
    """The same of the one of them that used most."""
    peak_bytes: int
    """Resident memory, the largest of process and children."""
    wall_s: float


def measure(step: Callable[[], object]) -> Cost:
    """Run a step in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(step, theirs))
    process.start()
    theirs.close()
    try:
        cost = ours.recv()
    except EOFError:
        raise SystemExit("the step failed; see above") from None
    process.join()
    return cost


def _make(case: Case) -> None:
    from benchmarks.scale_data import make_case

    make_case(case.directory, case.num_images, case.num_shards)


def measure_all(case: Case, steps: list[str]) -> Iterator[tuple[str, Cost]]:
    """Make what the steps need and run them. This process stays small: those that it starts count its memory too."""
    made: set[int] = set()
    if not LEDGER_STEPS.keys() >= set(steps):
        measure(functools.partial(_make, case))
    for name in steps:
        if name in STEPS:
            yield name, measure(functools.partial(STEPS[name], case))
            continue
        function, num_ranks = LEDGER_STEPS[name]
        if num_ranks not in made:
            made.add(num_ranks)
            measure(functools.partial(_make_ledgers, num_ranks, case))
        yield name, measure(functools.partial(_ledger_step, function, num_ranks, case))


def _run(step: Callable[[], object], pipe: Connection) -> None:
    import torch  # noqa: F401 - importing is not what is measured

    import masp.evaluation.run
    import masp.plan.plan
    import masp.training.stages  # noqa: F401

    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the process ends with it
    ended: list[float] = []
    _note_children(ended)
    started, before = time.perf_counter(), _cpu_s(resource.getrusage(resource.RUSAGE_SELF))
    step()
    own = _cpu_s(resource.getrusage(resource.RUSAGE_SELF)) - before
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    pipe.send(Cost(own + sum(ended), max([own, *ended]), peak * 1024, time.perf_counter() - started))


def _note_children(ended: list[float]) -> None:
    """Append the CPU seconds of every child that is waited for, of which the system keeps only the sum."""

    def waitpid(pid: int, options: int) -> tuple[int, int]:
        pid, status, usage = os.wait4(pid, options)
        if pid:
            ended.append(_cpu_s(usage))
        return pid, status

    os.waitpid = waitpid


def _cpu_s(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


def table(found: dict[str, dict[float, Cost]]) -> str:
    """The measurements as a Markdown table."""
    fractions = sorted({fraction for costs in found.values() for fraction in costs})
    heads = [f"{NUM_IMAGES * f:,.0f} images: CPU s, of all; GB" for f in fractions]
    lines = [f"| step | {' | '.join(heads)} | growth of CPU | limits |", "|---" * (len(heads) + 3) + "|"]
    for name in [*STEPS, *LEDGER_STEPS]:
        if costs := found.get(name):
            cells = [_cell(costs.get(fraction)) for fraction in fractions]
            last = costs[max(costs)]
            growth = f"{last.cpu_s / max(costs[min(costs)].cpu_s, 0.01):.1f}" if len(costs) > 1 else ""
            kept = last.max_cpu_s <= MAX_CPU_S and last.peak_bytes <= MAX_BYTES
            verdict = "" if 1.0 not in costs else "kept" if kept else "exceeded"
            lines.append(f"| {name} | {' | '.join(cells)} | {growth} | {verdict} |")
    return "\n".join(lines)


def _cell(cost: Cost | None) -> str:
    return f"{cost.max_cpu_s:.1f}, {cost.cpu_s:.1f}; {cost.peak_bytes / 1e9:.2f}" if cost else "not measured"


def _read_results(path: Path | None) -> dict[str, dict[float, Cost]]:
    if path is None or not path.exists():
        return {}
    stored = json.loads(path.read_text())
    return {name: {float(f): Cost(**cost) for f, cost in costs.items()} for name, costs in stored.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*STEPS, *LEDGER_STEPS]
    parser.add_argument("--fraction", type=float, nargs="+", default=[0.1, 1.0], metavar="F")
    parser.add_argument("--steps", nargs="+", default=names, choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--directory", type=Path, default=Path("/tmp/masp-scale"))
    parser.add_argument("--results", type=Path, metavar="FILE", help="JSON file to which the measurements are added")
    parser.add_argument("--keep", action="store_true", help="keep the data for another call")
    arguments = parser.parse_args()
    found = _read_results(arguments.results)
    os.environ["XDG_CACHE_HOME"] = str(arguments.directory / "memory")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    for fraction in sorted(arguments.fraction):
        directory = arguments.directory / f"{fraction:g}"
        case = Case(directory, round(NUM_IMAGES * fraction), round(NUM_SHARDS * fraction))
        for name, cost in measure_all(case, arguments.steps):
            found.setdefault(name, {})[fraction] = cost
            print(f"{name:<30} {case.num_images:>10,} images: {_cell(cost)}, {cost.wall_s:.1f} s, "
                  f"load {os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip
            if arguments.results:
                stored = {n: {str(f): dataclasses.asdict(c) for f, c in costs.items()} for n, costs in found.items()}
                arguments.results.write_text(json.dumps(stored, indent=1) + "\n")
        if not arguments.keep:
            shutil.rmtree(directory)
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
