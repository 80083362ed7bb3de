"""Memory of the process that merges the sidecars of 3.3 million images, without the processes that read them.

    python benchmarks/scale_merge.py [--shards 20000]

Lists as many sample keys as a dataset would, merges the summaries of one shard again and again under other keys, and
does what follows: findings, digest of the dataset, index, answers. Takes half a minute; `benchmarks/scale.py` runs the
whole step, which takes many times that.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import masp.extraction.job  # noqa: F401 - what a merge has imported counts
from masp.cache.fingerprint import FORMAT_VERSION, Machine
from masp.cache.index import save_index
from masp.cache.layout import Generation, Layout
from masp.cache.merge import Merged, _summarize
from masp.cache.shard_state import Member, SampleEntry, Sidecar, SidecarFingerprint, Source, TarFile
from masp.data.answer_table import save_answers

PER_SHARD = 165
CATEGORIES = ("awe", "contentment")
MACHINE = Machine(64, "cpu", "fp32", "none", 1, "none", "none", "none", "none", "none")
KEY = "train/contentment/train_contentment_{:07d}%2Ejpg"
DIGITS = slice(KEY.index("{"), KEY.index("{") + 7)


def a_sidecar() -> Sidecar:
    """A shard's sidecar; its answers differ as much as those of a real one."""
    samples = tuple(
        SampleEntry(
            key=KEY.format(n),
            category=CATEGORIES[n % 2],
            answers={"scene": f"place {n}", "object": f"thing {n % 40}, tree", "brightness": "low"},
            image_size=(640, 480),
            grid=(1, 34, 46),
            num_tokens=391,
            json=Member(10 * n, 5, 7),
            features=Member(10 * n + 5, 5, 7),
            source=Source(9, 10, hashlib.sha256(str(n).encode()).hexdigest()),
        )
        for n in range(PER_SHARD)
    )
    tar = TarFile(10 * PER_SHARD, "1" * 64)
    return Sidecar(
        FORMAT_VERSION, "train-00000", "train", 0, tar, SidecarFingerprint("0" * 64, MACHINE), 8, samples, ()
    )


def mark(what: str) -> None:
    """Print resident memory, its largest value so far, and CPU time."""
    status = Path("/proc/self/status").read_text()
    now, peak = (int(status.split(f"{name}:")[1].split()[0]) / 1e6 for name in ("VmRSS", "VmHWM"))
    print(f"{what:<24} {now:.2f} GB, at most {peak:.2f} GB; {time.process_time():.1f} s of CPU", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=20_000)
    num_shards = parser.parse_args().shards
    names = [f"train-{n:05d}" for n in range(num_shards)]
    generation = Generation(num_shards, dict.fromkeys(names, PER_SHARD))
    layout = Layout(FORMAT_VERSION, "emoset", CATEGORIES, {}, MACHINE, (generation,))
    summary = _summarize(a_sidecar(), "0" * 64, 0, {category: n for n, category in enumerate(CATEGORIES)})
    mark("imported")
    keys = [KEY.format(n) for n in range(num_shards * PER_SHARD)]
    mark("listed")
    numbers = np.random.default_rng(0).permutation(len(keys)).reshape(num_shards, PER_SHARD)
    merged = Merged(layout)
    for name, own in zip(names, numbers, strict=True):
        shard = copy.copy(summary)
        shard.shard = replace(summary.shard, name=name)
        shard.columns = {column: values.copy() for column, values in summary.columns.items()}
        text = shard.columns["key_text"].reshape(PER_SHARD, -1)
        text[:, DIGITS] = own[:, None] // 10 ** np.arange(6, -1, -1) % 10 + ord("0")
        shard.digests = summary.digests.copy()
        shard.digests[:, 1, :8] = own[:, None].view(np.uint8)
        merged.add(shard)
    mark("merged")
    keys.clear()  # as `ListedDataset.forget_keys` does
    merged.content_findings()
    mark("content_findings")
    aspects = merged.summary().aspects
    mark("digest of the dataset")
    with tempfile.TemporaryDirectory() as directory:
        save_index(Path(directory) / "index.h5", merged.index(aspects))
        save_answers(Path(directory), "0" * 64, merged.answers.table())
    mark("written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
