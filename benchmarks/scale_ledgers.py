"""CPU time and memory of what evaluation does per rank, per batch and once in the end, at 3.3 million images.

    python benchmarks/scale_ledgers.py [--images 330000 3300000] [--ranks 512] [--steps NAME …] [--directory DIR]

Makes the ledgers that ranks would have left, with random scores of eight categories, and runs each step in a process of
its own: its CPU seconds and its largest resident memory. `benchmarks/scale.py` runs the same steps beside others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from masp.experiments.compare import compare
from masp.report.images import Images
from masp.report.mistakes import mistakes
from masp.report.run_config import RunConfig
from masp.results.ledger import DIRECTORY, Ledgers
from masp.results.ledger_file import Ledger
from masp.results.ledger_format import Record, likelihood_problem
from masp.results.ledgers.index import index_path
from masp.results.ledgers.slices import FILE as LOG
from masp.results.ledgers.slices import Slice, SliceLog
from masp.results.ledgers.table import RecordTable
from masp.results.metrics import compute_metrics
from masp.results.metrics_file import MetricsFile
from masp.results.records import FILE, write_target_records
from masp.taxonomy import CATEGORY_SETS

CATEGORIES = CATEGORY_SETS["emoset"]
IDENTITY = {"samples": "0" * 64, "split": "test", "categories": list(CATEGORIES), "scoring": "likelihood"}
MAX_CPU_S, MAX_BYTES = 60.0, 2e9


@dataclass(frozen=True)
class Size:
    """An evaluation whose ledgers are in a directory."""

    directory: Path
    num_images: int
    num_ranks: int

    @cached_property
    def keys(self) -> list[str]:
        """Sample keys, as long as those of EmoSet, in their order."""
        each = -(-self.num_images // len(CATEGORIES))
        return [
            f"test/{category}/{category}_{number:07d}%2Ejpg"
            for category in CATEGORIES
            for number in range(min(each, self.num_images - CATEGORIES.index(category) * each))
        ]

    @cached_property
    def labels(self) -> dict[str, str]:
        """Key -> label, as an evaluation has them in memory."""
        return {key: key.split("/")[1] for key in self.keys}

    @property
    def ledgers(self) -> Path:
        """Directory of the ledgers."""
        return self.directory / "run" / "evaluate" / DIRECTORY

    def problem(self, record: Record) -> str | None:
        """What an evaluation of emotions asks of a record."""
        if record.label != self.labels[record.sample_key]:
            return "has another label"
        return likelihood_problem(record, CATEGORIES)

    def open(self, directory: Path | None = None) -> Ledgers:
        """The ledgers, and the numbers of rows that a feed has in memory beside them."""
        return Ledgers(directory or self.ledgers, self.keys, IDENTITY, problem=self.problem)


def make_records(keys: list[str], seed: int) -> Iterator[Record]:
    """Records with random scores, in fp32 as models give them."""
    random = np.random.default_rng(seed)
    scores = (-8 * random.random((len(keys), len(CATEGORIES)))).astype("f4")
    means = (scores / 3).tolist()
    best = scores.argmax(axis=1)
    for key, total, mean, number in zip(keys, scores.tolist(), means, best.tolist(), strict=True):
        yield Record(key, key.split("/")[1], CATEGORIES[number], tuple(total), tuple(mean))


def prepare(directory: Path, num_images: int, num_ranks: int) -> Size:
    """Make the ledgers of all ranks, their log, the merged table, and the records of two runs."""
    size = Size(directory, num_images, num_ranks)
    size.ledgers.mkdir(parents=True)
    log = SliceLog(size.ledgers, IDENTITY)
    log.create()
    for rank in range(num_ranks):
        mine = Slice(rank, num_ranks)
        log.append("begun", mine)
        with Ledger(size.ledgers, mine.name, IDENTITY) as ledger:
            ledger.append(*make_records(list(mine.of(size.keys)), rank))
        log.append("done", mine)
    table = size.open().merge()
    with open(directory / "table.pickle", "wb") as file:
        pickle.dump(table, file, protocol=5)
    for name in ("run", "other"):
        (directory / name / "evaluate").mkdir(parents=True, exist_ok=True)
        write_target_records(directory / name / "evaluate" / FILE, table, CATEGORIES, (), ())
    return size


def _table(size: Size) -> RecordTable:
    with open(size.directory / "table.pickle", "rb") as file:
        return pickle.load(file)


@contextlib.contextmanager
def _without_rank(size: Size, rank: int) -> Iterator[Path]:
    """A directory in which all ranks but one have finished."""
    directory = size.directory / f"without-{rank}"
    directory.mkdir()
    try:
        for path in size.ledgers.glob("*.jsonl"):
            if path.stem != Slice(rank, size.num_ranks).name:
                os.link(path, directory / path.name)
        shutil.copy(size.ledgers / LOG, directory / LOG)
        yield directory
    finally:
        shutil.rmtree(directory)


def start_rank(size: Size) -> None:
    """A rank begins: all others are done."""
    with _without_rank(size, 3) as directory, size.open(directory).begin(Slice(3, size.num_ranks)) as scoring:
        assert len(scoring.missing) == len(Slice(3, size.num_ranks).of(size.keys))


def append(size: Size) -> None:
    """A rank appends all of its slice in batches of 16; what a start takes is in it."""
    with _without_rank(size, 3) as directory, size.open(directory).begin(Slice(3, size.num_ranks)) as scoring:
        records = list(make_records(list(scoring.missing), seed=3))
        assert size.labels  # which an evaluation has already
        started = time.process_time()
        for start in range(0, len(records), 16):
            scoring.append(records[start : start + 16])
        print(f"    {len(records) / (time.process_time() - started):,.0f} images per second", flush=True)


def end_rank(size: Size) -> None:
    """A rank that is not the last one ends: it asks whether all others are done."""
    with _without_rank(size, 3) as directory, _without_rank(size, 5) as other:
        (directory / "rank-5.jsonl").unlink()
        log = SliceLog(directory, IDENTITY)
        log.append("begun", Slice(5, size.num_ranks))
        assert other.is_dir() and size.open(directory).merge_if_complete(len) is None


def resume(size: Size) -> None:
    """The first rank of a division into another number reads what the ledgers hold."""
    for path in size.ledgers.glob("*.jsonl"):
        index_path(path).unlink(missing_ok=True)
    with size.open().begin(Slice(0, size.num_ranks - 1)) as scoring:
        assert not scoring.missing
    (size.ledgers / LOG).unlink()


def resume_with_index(size: Size) -> None:
    """Another rank of that division, after the first one."""
    with size.open().begin(Slice(1, size.num_ranks - 1)) as scoring:
        assert not scoring.missing
    (size.ledgers / LOG).unlink()


def merge(size: Size) -> None:
    """Read all ledgers, prove that each sample has one record, and make columns of them."""
    assert len(size.open().merge()) == size.num_images


def metrics(size: Size) -> None:
    """All metrics of the merged records."""
    assert compute_metrics(_table(size), CATEGORIES).num_samples == size.num_images


def records(size: Size) -> None:
    """Write `records.h5`."""
    write_target_records(size.directory / FILE, _table(size), CATEGORIES, (), ())


def report(size: Size) -> None:
    """Find the surest mistakes for the report."""
    assert mistakes(size.directory / "run" / "evaluate", MetricsFile(), Images(RunConfig())).num_mistakes


def compare_runs(size: Size) -> None:
    """Compare two runs."""
    compare([str(size.directory / name) for name in ("run", "other")], size.directory / "compare")


STEPS: list[tuple[str, Callable[[Size], None]]] = [
    ("a rank begins", start_rank),
    ("a rank appends", append),
    ("a rank ends", end_rank),
    ("merge", merge),
    ("metrics", metrics),
    ("records.h5", records),
    ("report", report),
    ("compare", compare_runs),
    ("resume on other ranks, first", resume),
    ("resume on other ranks, next", resume_with_index),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[330_000, 3_300_000], help="numbers of images")
    parser.add_argument("--ranks", type=int, default=512)
    parser.add_argument("--steps", nargs="+", default=[name for name, _ in STEPS], metavar="NAME")
    parser.add_argument("--directory", type=Path, default=Path("outputs/scale-ledgers"), help="removed in the end")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        size = Size(arguments.directory, arguments.images[0], arguments.ranks)
        dict([*STEPS, ("prepare", lambda s: prepare(s.directory, s.num_images, s.num_ranks))])[arguments.run](size)
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss * 1024]))
        return 0
    is_fine = True
    for num_images in arguments.images:
        directory = arguments.directory / str(num_images)
        try:
            for name in ("prepare", *arguments.steps):
                command = [sys.executable, __file__, "--run", name, "--images", str(num_images)]
                command += ["--ranks", str(arguments.ranks), "--directory", str(directory)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                *lines, last = done.stdout.splitlines()
                cpu_s, num_bytes = json.loads(last)
                print(
                    "\n".join([*lines, f"{num_images:>9,} {name:<30} {cpu_s:7.1f} s {num_bytes / 1e9:6.2f} GB"]),
                    flush=True,
                )
                is_fine &= name == "prepare" or (cpu_s <= MAX_CPU_S and num_bytes <= MAX_BYTES)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
