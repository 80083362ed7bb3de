"""A small dataset of labeled images, some of them broken, and a configuration that extracts it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from masp.config import Config, load_config

CATEGORIES = ("anger", "awe", "joy")


def make_dataset(root: Path, num_train: int = 18, num_test: int = 6, broken: bool = False, seed: int = 0) -> Path:
    """Write images of mixed sizes and formats as image folders, two thirds of them annotated.

    With `broken`, one file is truncated, one is not an image and one is empty.
    """
    random = np.random.default_rng(seed)
    for split, count in (("train", num_train), ("test", num_test)):
        for i in range(count):
            category = CATEGORIES[i % len(CATEGORIES)]
            width, height = (int(n) for n in random.integers(40, 200, 2))
            image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
            directory = root / split / category
            directory.mkdir(parents=True, exist_ok=True)
            image.save(directory / f"{split}.{i:03d}.{'png' if i % 2 else 'jpg'}")
            if i % 3:
                notes = root / "annotation" / category
                notes.mkdir(parents=True, exist_ok=True)
                answer = {"brightness": i % 11 / 10, "scene": "sea_side", "object": ["dog", "tree"]}
                (notes / f"{split}.{i:03d}.json").write_text(json.dumps(answer))
    if broken:
        whole = root / "train" / "anger" / "train.000.jpg"
        whole.write_bytes(whole.read_bytes()[:900])
        (root / "train" / "awe" / "words.png").write_text("no picture")
        (root / "test" / "joy" / "empty.jpg").write_bytes(b"")
    return root


def make_config(root: Path, vlm: Path, cache: Path, *overrides: str) -> Config:
    """A configuration for the dataset of `make_dataset`: fp32 on one CPU thread, four shards, no workers."""
    return load_config(
        None,
        [
            f"vlm.path={vlm}",
            f"dataset.root={root}",
            "dataset.name=folder",
            f"cache.dir={cache}",
            "cache.dtype=fp32",
            "cache.num_shards=4",
            "extract.num_workers=0",
            "extract.num_threads=1",
            "extract.batch_tokens=64",
            "extract.max_bad_fraction=0.5",
            "extract.device=cpu",
            *overrides,
        ],
    )
