"""A dataset and a feature cache of any number of images, made within minutes, for `benchmarks/scale.py`.

The image files and annotations of the dataset are hard links to thousands of real ones, so that listing, reading and
examining them is real. The cache has real sidecars and a real layout for exactly these images; its tars have their true
sizes but no content (sparse files), except in the second cache, whose shards are all links to one real tar and whose
sidecars say so, so that it can be verified.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from benchmarks.extraction_case import make_model
from masp.cache.codec import store
from masp.cache.fingerprint import machine_part, model_part
from masp.cache.layout import LAYOUT, SHARDS, Layout, Shard, assign, layout_bytes, make_layout, sidecar_path, tar_path
from masp.cache.shard_state import Source, fingerprint_of
from masp.cache.writer import ShardWriter
from masp.config import Config, load_config
from masp.data.answers import read_annotation
from masp.data.keys import sample_key
from masp.data.sample import Sample
from masp.files.sealed import digest_file, digest_of
from masp.taxonomy import CATEGORY_SETS
from masp.vlm.features import Features, ImageLayout

CATEGORIES = CATEGORY_SETS["emoset"]
HIDDEN_SIZE = 64
NUM_TOKENS = 4
NOTES_PER_CATEGORY = 2000
"""Different annotations; each is that of a few hundred images."""
IMAGES_ALIKE = 2000
"""So many images are one file."""
SCENES = ("sea side", "street", "kitchen", "forest path", "concert hall")
SPLITS = (("train", 0.8), ("val", 0.05), ("test", 0.15))


@dataclass(frozen=True)
class Case:
    """What was made, and where."""

    directory: Path
    num_images: int
    num_shards: int

    def config(self, cache: str = "cache", *overrides: str) -> Config:
        """The configuration of a cache in this directory."""
        return load_config(
            None,
            [
                f"vlm.path={self.directory / 'vlm'}",
                f"dataset.root={self.directory / 'data'}",
                "dataset.name=emoset",
                f"cache.dir={self.directory / cache}",
                f"cache.num_shards={self.num_shards}",
                f"output_dir={self.directory / 'run'}",
                "extract.device=cpu",
                "extract.num_threads=1",
                "extract.num_workers=0",
                *overrides,
            ],
        )


def make_case(directory: Path, num_images: int, num_shards: int) -> Case:
    """Write dataset, VLM and both caches, unless they are there already."""
    case = Case(directory, num_images, num_shards)
    done = directory / "done"
    if not done.exists():
        directory.mkdir(parents=True)
        make_model(directory / "vlm", 64, 1)
        samples = list(_make_dataset(directory / "data", num_images))
        shards = assign(samples, num_shards)
        _make_cache(case.config(), shards)
        _make_verifiable(case.config("verifiable"), num_shards, len(samples) // num_shards)
        done.touch()
    return case


def _make_dataset(root: Path, num_images: int) -> Iterator[Sample]:
    """Write image folders with annotations; yields the samples as `read_dataset` will find them."""
    source = root.parent / "source"
    source.mkdir()
    notes_of = {category: _write_notes(source, category) for category in CATEGORIES}
    for split, share in SPLITS:
        count = round(num_images * share)
        for number, category in enumerate(CATEGORIES):
            images, notes = root / split / category, root / "annotation" / category
            images.mkdir(parents=True)
            notes.mkdir(parents=True, exist_ok=True)
            start, stop = (count * end // len(CATEGORIES) for end in (number, number + 1))
            for n in range(start, stop):
                if n % IMAGES_ALIKE == 0 or n == start:
                    image = _write_image(source / f"{split}-{category}-{n}.jpg", n // IMAGES_ALIKE)
                note, text = notes_of[category][n % NOTES_PER_CATEGORY]
                name = f"{split}_{category}_{n:07d}"
                os.link(image, images / f"{name}.jpg")
                os.link(note, notes / f"{name}.json")
                key = sample_key(split, f"{category}/{name}.jpg")
                _SOURCE_OF[key] = image.name
                yield Sample(key, split, images / f"{name}.jpg", category, text)


def _write_image(path: Path, number: int) -> Path:
    """Write an image whose size few others have."""
    Image.new("RGB", (400 + 16 * (number % 40), 480 + 16 * (number // 40 % 20)), (9, 90, number % 200)).save(path)
    status = os.stat(path)
    _SOURCES[path.name] = Source(status.st_size, status.st_mtime_ns, digest_file(path))
    return path


def _write_notes(source: Path, category: str) -> list[tuple[Path, dict[str, str]]]:
    """Write annotations that all differ; returns each file with its answers as text."""
    found = []
    for number in range(NOTES_PER_CATEGORY):
        answers: dict[str, object] = {
            "brightness": number % 11 / 10,
            "colorfulness": number // 11 % 11 / 10,
            "scene": f"{SCENES[number % len(SCENES)]} {number % 251}",
            "object": [f"object {number // 3 % 397}", f"object {number % 389}"],
        }
        answers |= {"facial_expression": category} if number % 2 else {"human_action": f"action {number % 263}"}
        path = source / f"{category}-{number}.json"
        path.write_text(json.dumps(answers))
        found.append((path, read_annotation(path).answers))
    return found


_SOURCES: dict[str, Source] = {}
_SOURCE_OF: dict[str, str] = {}


def _layout(config: Config, shards: list[Shard]) -> Layout:
    return make_layout(
        config.dataset.name, CATEGORIES, config.cache.num_shards, shards, model_part(config), machine_part(config)
    )


def _make_cache(config: Config, shards: list[Shard]) -> None:
    """A cache that lacks only index and manifest: its tars are as long as they say, and empty."""
    directory = Path(config.cache.dir)
    layout = _layout(config, shards)
    (directory / SHARDS).mkdir(parents=True)
    (directory / LAYOUT).write_bytes(layout_bytes(layout))
    value, block = _template(directory, layout, shards[0])
    for shard in shards:
        samples, offset = [], 0
        for sample in shard.samples:
            source = _SOURCES[_SOURCE_OF[sample.key]]
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


def _make_verifiable(config: Config, num_shards: int, num_samples: int) -> None:
    """A finished but for the merge cache whose shards are all the same tar."""
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
    text = sidecar_path(directory, shards[0].name).read_text()
    value = json.loads(text)
    old = value.pop("digest")
    for shard in shards[1:]:
        digest = digest_of({**value, "name": shard.name})
        changed = text.replace(shards[0].name, shard.name).replace(old, digest)
        sidecar_path(directory, shard.name).write_text(changed)
        os.link(tar_path(directory, shards[0].name), tar_path(directory, shard.name))
