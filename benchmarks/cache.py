"""Compares the feature cache with the best that the machine can do.

    python benchmarks/cache.py [reading] [extraction] [index] [--rounds 5] [--dir DIR] [--json FILE]

- reading: samples of 7 MB in training order, with checksums, by two processes, compared with `pread` of the same bytes
  by two processes. The page cache is dropped before each cold pass. Target: at least 0.7 of its speed.
- extraction: the whole `masp extract` of a dataset, compared with the bare encoder on preloaded tensors, on a model in
  which the encoder dominates. Target: at least 0.9.
- index: opening a cache of a million samples. Target: less than 1 s and 200 MB.

The sides take turns, so that other load on the machine affects both; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

TARGETS = {"reading": 0.7, "extraction": 0.9, "index_seconds": 1.0, "index_mb": 200.0}
STEP = 8
"""Positions that a reader processes at a time, as in a training step."""


def alternate(rounds: int, **sides: Callable[[int], float]) -> dict[str, list[float]]:
    """Call each side once per round, in turns; returns the seconds of each call."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            seconds[name].append(side(number))
    return seconds


def ratios(seconds: dict[str, list[float]], best: str) -> dict[str, float]:
    """Speed of MASP relative to the other side: from medians, and from the fastest (least disturbed) rounds."""
    ours, theirs = seconds["masp"], seconds[best]
    return {"ratio": statistics.median(theirs) / statistics.median(ours), "ratio_of_fastest": min(theirs) / min(ours)}


def _fingerprint() -> tuple:
    """Model and machine part of a cache that was made of nothing."""
    from masp.cache.fingerprint import FORMAT_VERSION, OWN_FIELDS, this_machine

    model = {**dict.fromkeys(OWN_FIELDS), "format_version": FORMAT_VERSION, "weights": "0" * 64, "dtype": "bf16"}
    return {**model, "config.model_type": "none"}, this_machine("cpu", "bf16", 1, 1)


def make_cache(folder: Path, num_samples: int, num_tokens: int, hidden: int, num_shards: int) -> Path:
    """Write a finished cache of random bf16 features."""
    import torch

    from masp.cache.codec import store
    from masp.cache.layout import LAYOUT, SHARDS, assign, layout_bytes, make_layout
    from masp.cache.merge import finalize
    from masp.cache.shard_state import Source, fingerprint_of
    from masp.cache.writer import ShardWriter
    from masp.data.datasets import Sample
    from masp.files.atomic import write_bytes
    from masp.vlm.features import Features, ImageLayout

    (folder / SHARDS).mkdir(parents=True)
    samples = [Sample(f"train%2Fjoy%2F{n:06d}", "train", Path("none"), "joy", {}) for n in range(num_samples)]
    shards = assign(samples, num_shards)
    layout = make_layout("folder", ("joy",), num_shards, shards, *_fingerprint())
    write_bytes(folder / LAYOUT, layout_bytes(layout))
    features = torch.randn(num_tokens, hidden).to(torch.bfloat16)
    made_of = {
        "image_size": (1024, 768),
        "layout": ImageLayout(num_tokens, (1, 2, 2 * num_tokens)),
        "source": Source(1, 1, "0" * 64),
    }
    for shard in shards:
        writer = ShardWriter(folder, shard, fingerprint_of(layout))
        for number, sample in enumerate(shard.samples):
            writer.add(sample, store(Features(features.roll(number, 0)), "bf16"), **made_of)
        writer.finish()
    finalize(folder, layout)
    return folder


def _reader(folder: Path, pipe) -> None:
    """A reader process: for each `(side, rows)` it receives, read these rows and send the number of bytes."""
    from masp.cache.layout import tar_path
    from masp.cache.reader import open_cache

    cache = open_cache(folder)
    index = cache.index
    tars = [os.open(tar_path(folder, shard.name), os.O_RDONLY) for shard in cache.manifest.shards]
    while (task := pipe.recv()) is not None:
        side, rows = task
        num_bytes = 0
        for row in rows:
            if side == "masp":
                cache.read(row)
                num_bytes += int(index.length[row])
            else:
                num_bytes += len(os.pread(tars[index.shard[row]], int(index.length[row]), int(index.offset[row])))
        pipe.send(num_bytes)


def drop_pages(folder: Path) -> None:
    """Drop the shards from the page cache, so that the next pass reads from disk."""
    for path in folder.rglob("*.tar"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)  # dirty pages are not dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def reading(arguments: argparse.Namespace, base: Path) -> dict:
    """Speed of `Cache.read` in training order compared with `os.pread`, cold and warm."""
    from masp.cache.reader import open_cache
    from masp.training.schedule import epoch_order
    from masp.training.steps import WINDOW_SHARDS

    folder = make_cache(base / "reading", arguments.samples, arguments.tokens, arguments.hidden, arguments.shards)
    cache = open_cache(folder)
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(arguments.readers):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=_reader, args=(folder, theirs), daemon=True))
        processes[-1].start()
        pipes.append(ours)

    def run(side: str, number: int, cold: bool) -> float:
        order = epoch_order(cache.index, cache.rows("train"), 0, number, WINDOW_SHARDS)
        steps = [order[start : start + STEP] for start in range(0, len(order), STEP)]
        if cold:
            drop_pages(folder)
        start = time.perf_counter()
        for place, pipe in enumerate(pipes):
            pipe.send((side, [int(row) for step in steps[place :: len(pipes)] for row in step]))
        total = sum(pipe.recv() for pipe in pipes)
        seconds = time.perf_counter() - start
        if total != int(cache.index.length.sum()):
            raise RuntimeError(f"{side} read {total} bytes")
        return seconds

    for side in ("masp", "plain"):  # warm up imports and page tables
        run(side, 0, False)
    found = {"bytes": int(cache.index.length.sum()), "sample_bytes": int(cache.index.length.mean())}
    for state in ("cold", "warm"):
        sides = {s: lambda number, s=s: run(s, number, state == "cold") for s in ("masp", "plain")}  # noqa: B023
        seconds = alternate(arguments.rounds, **sides)
        medians = {side: statistics.median(values) for side, values in seconds.items()}
        found[state] = {f"{side}_gb_per_s": found["bytes"] / 1e9 / value for side, value in medians.items()}
        found[state] |= {**ratios(seconds, "plain"), "seconds": seconds}
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    return found


def extraction(arguments: argparse.Namespace, base: Path) -> dict:
    """Images per second of the whole extraction compared with the encoder alone."""
    import shutil

    import torch

    from benchmarks.extraction_case import make_images, make_model
    from masp.cache.shard_state import Source
    from masp.config import load_config
    from masp.data.images import load_image
    from masp.extraction.image_stream import PreparedImage, batches
    from masp.extraction.job import extract
    from masp.extraction.progress import TIMINGS
    from masp.vlm.preprocessor import load_preprocessor
    from masp.vlm.vision import load_vision_half

    root = make_images(base / "images", arguments.images, arguments.side)
    vlm = make_model(base / "vlm", arguments.width, arguments.depth)
    config = load_config(
        None,
        [
            *(f"vlm.path={vlm}", f"dataset.root={root}", f"cache.dir={base / 'extracted'}", "cache.dtype=fp32"),
            *("cache.num_shards=2", "extract.num_workers=1", "extract.num_threads=1", "extract.device=cpu"),
            f"extract.batch_tokens={arguments.batch_tokens}",
        ],
    )
    preprocessor, vision = load_preprocessor(str(vlm)), load_vision_half(vlm)
    images = []
    for path in sorted(root.rglob("*.jpg")):
        images.append(PreparedImage(*preprocessor(load_image(path)), (0, 0), Source(None, None, None)))
    ready = list(batches(images, arguments.batch_tokens))

    def bare(_: int) -> float:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        start = time.perf_counter()
        for batch in ready:
            vision.encode([p.inputs for p in batch], [p.layout for p in batch])
        seconds = time.perf_counter() - start
        torch.set_num_threads(threads)
        return seconds

    shares = []

    def whole(_: int) -> float:
        shutil.rmtree(config.cache.dir, ignore_errors=True)
        start = time.perf_counter()
        extract(config)
        seconds = time.perf_counter() - start
        shares.append(json.loads((Path(config.cache.dir) / TIMINGS).read_text())["share_encoding"])
        return seconds

    seconds = alternate(arguments.rounds, masp=whole, encoder=bare)
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    rates = {f"{side}_images_per_s": len(images) / value for side, value in medians.items()}
    share = statistics.median(shares)
    return {**rates, **ratios(seconds, "encoder"), "share_encoding": share, "seconds": seconds}


_OPEN = """
import json, re, sys, time
import h5py, numpy
from masp.cache.reader import open_cache
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
before, start = peak(), time.perf_counter()
cache = open_cache(sys.argv[1])
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "mb": peak() - before, "process_mb": peak(), "rows": len(cache)}))
"""


def index(arguments: argparse.Namespace, base: Path) -> dict:
    """Time and memory to open an index of many samples, each in a fresh process; memory is the growth of the peak."""
    from masp.cache.fingerprint import FORMAT_VERSION, fingerprint_digest
    from masp.cache.index import _TYPES, _WIDTHS, Index, save_index
    from masp.cache.layout import INDEX, MANIFEST, Generation
    from masp.cache.manifest import (
        DatasetId,
        Fingerprint,
        IndexFile,
        Manifest,
        QuarantineFile,
        ShardFile,
        SplitCounts,
    )
    from masp.files.atomic import write_bytes
    from masp.files.sealed import digest_file, sealed

    count, folder = arguments.rows, base / "index"
    folder.mkdir()
    random = np.random.default_rng(0)
    columns = {
        name: random.integers(1, 100, (count, _WIDTHS[name]) if name in _WIDTHS else count).astype(kind)
        for name, kind in _TYPES.items()
    }
    for name in ("split", "shard", "category"):
        columns[name][:] = 0
    columns["features_start"] += 100
    columns["length"] += 200
    key = np.frombuffer(b"train%2Fcontentment%2Fcontentment_00000%2Ejpg", dtype="u1")
    columns["key_text"], columns["key_offsets"] = np.tile(key, count), np.arange(count + 1, dtype="i8") * len(key)
    save_index(folder / INDEX, Index(**columns))
    (model, machine), nothing = _fingerprint(), "0" * 64
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        dataset=DatasetId("folder", nothing),
        fingerprint=Fingerprint(fingerprint_digest(model), model, machine),
        dtype="bf16",
        hidden_size=1,
        categories=("joy",),
        aspects=(),
        splits={"train": SplitCounts(1, count, 0, count, {"joy": count}, {})},
        generations=(Generation(1, {"train-00000": count}),),
        shards=(ShardFile("train-00000", count, 1, nothing, nothing),),
        index=IndexFile((folder / INDEX).stat().st_size, digest_file(folder / INDEX)),
        quarantine=QuarantineFile(0, nothing),
    )
    write_bytes(folder / MANIFEST, sealed(manifest, omit_none=True))
    runs = []
    for _ in range(arguments.rounds):
        command = [sys.executable, "-c", _OPEN, str(folder)]
        runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def report(found: dict) -> None:
    """Print a table of the measurements and their targets."""
    rows = []
    if "reading" in found:
        for state, target in (("cold", f">= {TARGETS['reading']}"), ("warm", "")):
            part = found["reading"][state]
            sides = f"{part['masp_gb_per_s']:.2f} of {part['plain_gb_per_s']:.2f} GB/s"
            rows.append((f"reading, {state}", sides, _both(part), target))
    if "extraction" in found:
        part = found["extraction"]
        sides = f"{part['masp_images_per_s']:.2f} of {part['encoder_images_per_s']:.2f} images/s"
        rows.append(("extraction", sides, _both(part), f">= {TARGETS['extraction']}"))
        rows.append(("", "share of its time in the encoder", f"{part['share_encoding']:.3f}", ""))
    if "index" in found:
        part = found["index"]
        rows.append(
            (f"index, {part['rows']:,} rows", "time", f"{part['seconds']:.2f} s", f"< {TARGETS['index_seconds']:g} s")
        )
        memory = f"process {part['process_mb']:.0f} MB"
        rows.append(("", memory, f"{part['mb']:.0f} MB", f"< {TARGETS['index_mb']:g} MB"))
    print(f"\n{'':<24}{'MASP of the best possible':<34}{'ratio (fastest)':>16}{'target':>11}")
    for name, sides, figure, target in rows:
        print(f"{name:<24}{sides:<34}{figure:>16}{target:>11}")


def _both(part: dict) -> str:
    return f"{part['ratio']:.2f} ({part['ratio_of_fastest']:.2f})"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"reading": reading, "extraction": extraction, "index": index}
    parser.add_argument("parts", nargs="*", choices=[[], *parts], metavar="PART", help="reading, extraction, index")
    for name, value in (
        *(("rounds", 5), ("samples", 128), ("tokens", 999), ("hidden", 3584), ("shards", 16), ("readers", 2)),
        *(("images", 48), ("side", 336), ("width", 384), ("depth", 8), ("batch_tokens", 512), ("rows", 1_000_000)),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, metavar="N")
    parser.add_argument(
        "--dir", type=Path, default=None, help="directory for temporary files, on the disk to be measured"
    )
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    arguments = parser.parse_args(argv)
    if arguments.dir:
        arguments.dir.mkdir(parents=True, exist_ok=True)
    found: dict = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(dir=arguments.dir) as base:
        for name in arguments.parts or parts:
            found[name] = parts[name](arguments, Path(base))
    print(f"{found['cores']} cores, load {found['load']:.1f} before, {os.getloadavg()[0]:.1f} after", end="")
    report(found)
    if arguments.json:
        arguments.json.write_text(json.dumps({**found, "wanted": TARGETS}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.exit(main())
