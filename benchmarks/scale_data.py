"""A dataset and a feature cache of any number of images, made within minutes, for `benchmarks/scale.py`.

The image files and annotations of the dataset are hard links to thousands of real ones, so that listing, reading and
examining them is real. The cache has real sidecars and a real layout for exactly these images; its tars have their true
sizes but no content (sparse files), except in the second cache, whose shards are all links to one real tar and whose
sidecars say so, so that it can be verified.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.extraction_case import make_model
from benchmarks.scale_case import Case
from masp.cache.codec import store
from masp.cache.fingerprint import machine_part, model_part
from masp.cache.layout import LAYOUT, SHARDS, Layout, Shard, assign, layout_bytes, make_layout, sidecar_path, tar_path
from masp.cache.merge import finalize
from masp.cache.shard_state import Source, fingerprint_of
from masp.cache.writer import ShardWriter
from masp.config import Config
from masp.data.datasets import dataset_of
from masp.data.sample import Sample
from masp.files.sealed import digest_file, digest_of
from masp.runtime.process_pool import default_processes, map_ahead, process_pool
from masp.taxonomy import CATEGORY_SETS
from masp.vlm.features import Features, ImageLayout

CATEGORIES = CATEGORY_SETS["emoset"]
HIDDEN_SIZE = 64
NUM_TOKENS = 4
NOTES_PER_CATEGORY = 2000
"""Different annotations; at the whole size each is that of two hundred images."""
IMAGES_ALIKE = 2000
"""So many images are one file."""
SCENES = ("sea side", "street", "kitchen", "forest path", "concert hall")
SPLITS = (("train", 0.8), ("val", 0.05), ("test", 0.15))


def make_case(directory: Path, num_images: int, num_shards: int) -> Case:
    """Write dataset, VLM and both caches, unless they are there already; by several processes."""
    case = Case(directory, num_images, num_shards)
    done = directory / "done"
    if not done.exists():
        directory.mkdir(parents=True)
        make_model(directory / "vlm", 64, 1)
        num_processes = default_processes()
        with process_pool(num_processes, None, "makes the case") as pool:
            map_all = functools.partial(map_ahead, pool, num_processes)
            _make_dataset(directory / "data", num_images, map_all)
            samples = dataset_of(case.config()).samples
            assert len(samples) == num_images
            _make_cache(case.config(), assign(samples, num_shards), map_all)
            del samples
            _make_verifiable(case.config("verifiable"), num_shards, num_images // num_shards, map_all)
        done.touch()
    return case


MapAll = Callable[..., Iterator[Any]]
"""Calls a function for each of many things in several processes, and returns what it returns."""


def _make_dataset(root: Path, num_images: int, map_all: MapAll) -> None:
    """Write image folders with annotations."""
    source = root.parent / "source"
    source.mkdir()
    for category in CATEGORIES:
        (root / "annotation" / category).mkdir(parents=True)
        _write_notes(source, category)
    work = []
    for split, share in SPLITS:
        count = round(num_images * share)
        for number, category in enumerate(CATEGORIES):
            (root / split / category).mkdir(parents=True)
            start, stop = (count * end // len(CATEGORIES) for end in (number, number + 1))
            for begin in range(start, stop, IMAGES_ALIKE):
                work.append((split, category, range(begin, min(stop, begin + IMAGES_ALIKE))))
    list(map_all(functools.partial(_link, root), work))


def _link(root: Path, work: tuple[str, str, range]) -> None:
    """Write an image whose size few others have, and make it that of some samples."""
    split, category, numbers = work
    source, number = root.parent / "source", numbers[0] // IMAGES_ALIKE
    image = source / f"{split}-{category}-{numbers[0]}.jpg"
    Image.new("RGB", (400 + 16 * (number % 40), 480 + 16 * (number // 40 % 20)), (9, 90, number % 200)).save(image)
    for n in numbers:
        name = f"{split}_{category}_{n:07d}"
        os.link(image, root / split / category / f"{name}.jpg")
        note = source / f"{category}-{n % NOTES_PER_CATEGORY}.json"
        os.link(note, root / "annotation" / category / f"{name}.json")


def _write_notes(source: Path, category: str) -> None:
    """Write annotations that all differ."""
    for number in range(NOTES_PER_CATEGORY):
        answers: dict[str, object] = {
            "brightness": number % 11 / 10,
            "colorfulness": number // 11 % 11 / 10,
            "scene": f"{SCENES[number % len(SCENES)]} {number % 251}",
            "object": [f"object {number // 3 % 397}", f"object {number % 389}"],
        }
        answers |= {"facial_expression": category} if number % 2 else {"human_action": f"action {number % 263}"}
        (source / f"{category}-{number}.json").write_text(json.dumps(answers))


def _sources(directory: Path) -> dict[int, Source]:
    """Inode of each different image -> what a sidecar says of its file."""
    found = {}
    for path in (directory / "source").glob("*.jpg"):
        status = os.stat(path)
        found[status.st_ino] = Source(status.st_size, status.st_mtime_ns, digest_file(path))
    return found


def _layout(config: Config, shards: list[Shard]) -> Layout:
    return make_layout(
        config.dataset.name, CATEGORIES, config.cache.num_shards, shards, model_part(config), machine_part(config)
    )


def _make_cache(config: Config, shards: list[Shard], map_all: MapAll) -> None:
    """A cache that lacks only index and manifest: its tars are as long as they say, and empty."""
    directory = Path(config.cache.dir)
    layout = _layout(config, shards)
    (directory / SHARDS).mkdir(parents=True)
    (directory / LAYOUT).write_bytes(layout_bytes(layout))
    value, block = _template(directory, layout, shards[0])
    list(map_all(functools.partial(_make_shard, directory, value, block, _sources(directory.parent)), shards, 16))


def _make_shard(directory: Path, value: dict, block: dict, sources: dict[int, Source], shard: Shard) -> None:
    """Write a sidecar, and a tar without content."""
    samples, offset = [], 0
    for sample in shard.samples:
        source = sources[os.stat(sample.image).st_ino]
        fields = {"key": sample.key, "category": sample.category, "answers": dict(sample.answers)}
        members = {
            "json": {**block["json"], "offset": offset + 512},
            "features": {**block["features"], "offset": offset + 1536 + 512},
        }
        origin = {"bytes": source.bytes, "mtime_ns": source.mtime_ns, "sha256": source.sha256}
        samples.append({**block, **fields, **members, "source": origin})
        offset += 2048 + -(-block["features"]["bytes"] // 512) * 512
    size = -(-(offset + 1024) // 10240) * 10240
    _write(directory, {**value, "name": shard.name, "split": shard.split, "samples": samples,
                       "tar": {"bytes": size, "sha256": "5" * 64}})  # fmt: skip
    with open(tar_path(directory, shard.name), "wb") as file:
        file.truncate(size)


def _template(directory: Path, layout: Layout, shard: Shard) -> tuple[dict, dict]:
    """A sidecar as the writer makes it, and a sample in it."""
    writer = ShardWriter(directory, shard, fingerprint_of(layout))
    for sample in shard.samples[:1]:
        _add(writer, sample)
    writer.finish()
    value = json.loads(sidecar_path(directory, shard.name).read_bytes())
    del value["digest"]
    return value, value["samples"][0]


def _add(writer: ShardWriter, sample: Sample) -> None:
    features = torch.full((NUM_TOKENS, HIDDEN_SIZE), 0.5)
    stored, layout = store(Features(features), "bf16"), ImageLayout(NUM_TOKENS, (1, 4, 4))
    writer.add(sample, stored, image_size=(56, 56), layout=layout, source=Source(9, 10, "1" * 64))


def _write(directory: Path, value: dict) -> None:
    """Write a sidecar as `masp.files.sealed.sealed` does, without fsync."""
    whole = {**value, "digest": digest_of(value)}
    text = json.dumps(whole, sort_keys=True, indent=1)
    sidecar_path(directory, value["name"]).write_bytes(text.encode() + b"\n")


def _make_verifiable(config: Config, num_shards: int, num_samples: int, map_all: MapAll) -> None:
    """A finished cache whose shards are all the same tar."""
    directory = Path(config.cache.dir)
    samples = tuple(
        Sample(f"train/awe/{n:07d}%2Ejpg", "train", Path("none"), "awe", {"scene": "sea side", "object": "dog, tree"})
        for n in range(num_samples)
    )
    shards = [Shard(n, f"train-{n:05d}", "train", 0, samples) for n in range(num_shards)]
    layout = _layout(config, shards)
    (directory / SHARDS).mkdir(parents=True)
    (directory / LAYOUT).write_bytes(layout_bytes(layout))
    writer = ShardWriter(directory, shards[0], fingerprint_of(layout))
    for sample in samples:
        _add(writer, sample)
    writer.finish()
    names = [shard.name for shard in shards[1:]]
    list(map_all(functools.partial(_repeat_shard, directory, shards[0].name), names, 16))
    finalize(directory, layout)


def _repeat_shard(directory: Path, name: str, other: str) -> None:
    """Make another shard of the same content."""
    text = sidecar_path(directory, name).read_text()
    value = json.loads(text)
    old = value.pop("digest")
    digest = digest_of({**value, "name": other})
    sidecar_path(directory, other).write_text(text.replace(name, other).replace(old, digest))
    os.link(tar_path(directory, name), tar_path(directory, other))
