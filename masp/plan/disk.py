"""How many bytes a cache takes, from the arithmetic of its tars, and whether they fit on the disk."""

from __future__ import annotations

import functools
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masp.cache.layout import SHARDS, Layout, shards_of
from masp.data.sample import Samples
from masp.errors import InputError
from masp.files.text import reason
from masp.plan.tokens import PlannedImages

PRECISIONS = ("fp32", "bf16", "fp16", "int8", "fp8")
_SCALES = (("deep_scales", "F32", 4, False), ("scales", "F32", 4, False))
_TENSORS = {
    "fp32": (("deep", "F32", 4, True), ("features", "F32", 4, True)),
    "bf16": (("deep", "BF16", 2, True), ("features", "BF16", 2, True)),
    "fp16": (("deep", "F16", 2, True), ("features", "F16", 2, True)),
    "int8": (*_SCALES, ("deep", "I8", 1, True), ("features", "I8", 1, True)),
    "fp8": (*_SCALES, ("deep", "F8_E4M3", 1, True), ("features", "F8_E4M3", 1, True)),
}
"""Per precision the tensors of a sample: name, type in safetensors' spelling, bytes of a number, and whether it has one
number per token and channel or one per token. In safetensors' order: the widest type first, then by name."""

_BLOCK = 512
"""Bytes of a tar header, and the unit of what follows it."""
_RECORD = 10240
"""Bytes to whose multiple a tar is filled up."""
_LONG_NAME = 100
"""Bytes of a name that a tar header holds."""

INDEX_BYTES = 125
"""Per sample, see `masp.cache.index`; its keys add their own length."""

_SIDECAR_BYTES = 900
"""About, per sample: labels, offsets, checksums and the image file's digest, as indented JSON."""

_PROBABILITY_BYTES = 32
"""About, per number of a distribution: 8 bytes in the index, the rest as a line of the sidecar."""


@functools.lru_cache(maxsize=1 << 16)
def features_bytes(num_tokens: int, hidden_size: int, precision: str, num_deep_maps: int = 0) -> int:
    """Compute the bytes of the features' safetensors file: numbers, per-token scales and header."""
    entries, end = [], 0
    for name, kind, width, per_channel in _TENSORS[precision]:
        shape = (num_tokens, hidden_size) if per_channel else (num_tokens,)
        if name.startswith("deep"):
            shape = (num_deep_maps, *shape)
        if not all(shape):
            continue  # safetensors files hold `deep` only where there are maps
        start, end = end, end + math.prod(shape) * width
        numbers = ",".join(map(str, shape))
        entries.append(f'"{name}":{{"dtype":"{kind}","shape":[{numbers}],"data_offsets":[{start},{end}]}}')
    header = len(",".join(entries)) + 2
    return 8 + -(-header // 8) * 8 + end  # the header is padded so that the numbers are aligned


def _member(length: np.ndarray, num_bytes: np.ndarray) -> np.ndarray:
    """A member of a GNU tar: a header, what it holds in whole blocks, and for a long name two blocks or more before.

    Args:
        length: Bytes of its name, int64 `[N]`; sample keys are ASCII.
        num_bytes: Bytes that it holds, int64 `[N]`.
    """
    long_name = np.where(length > _LONG_NAME, _BLOCK + _blocks(length + 1), 0)
    return long_name + _BLOCK + _blocks(num_bytes)


def _blocks(num_bytes: np.ndarray) -> np.ndarray:
    return -(-num_bytes // _BLOCK) * _BLOCK


Shards = Mapping[str, np.ndarray]
"""Name of each shard -> the places of its images with readable headers among all of them."""


def shard_contents(samples: Samples, planned: PlannedImages, num_shards: int, layout: Layout | None) -> Shards:
    """Assign the images to shards as extraction will.

    Args:
        samples: Samples of the whole dataset, also those with damaged headers: they too decide which image is where.
        planned: Images with readable headers, some of these samples.
        num_shards: `cache.num_shards`.
        layout: Layout of the cache, None if it has not been begun.
    """
    place_of = np.full(len(samples.table.keys), -1, dtype=np.int32)
    place_of[planned.samples.rows] = np.arange(len(planned), dtype=np.int32)
    places = {shard.name: place_of[shard.samples.rows] for shard in shards_of(layout, samples, num_shards)}
    return {name: found[found >= 0] for name, found in places.items()}


def tar_sizes(
    images: PlannedImages, shards: Shards, hidden_size: int, precision: str, num_deep_maps: int = 0
) -> dict[str, int]:
    """Compute the bytes of every tar.

    Args:
        images: Images with readable headers.
        shards: Which of them are in which shard, as `shard_contents` returns it.
        hidden_size: Hidden size D of the language model.
        precision: Number format, one of `PRECISIONS`.
        num_deep_maps: Number K of the deep maps of a VLM with DeepStack.
    """
    sizes = sample_bytes(images, hidden_size, precision, num_deep_maps)
    return {name: tar_bytes(int(sizes[places].sum())) for name, places in shards.items()}


def sample_bytes(images: PlannedImages, hidden_size: int, precision: str, num_deep_maps: int = 0) -> np.ndarray:
    """Compute the bytes that each sample adds to its tar, int64 `[N]`: both members with their headers."""
    features = [features_bytes(kind.num_tokens, hidden_size, precision, num_deep_maps) for _, kind in images.kinds]
    lengths = images.key_lengths.astype(np.int64)
    found = _member(lengths + len(".json"), images.record_bytes)
    found += _member(lengths + len(".safetensors"), np.array(features, dtype=np.int64)[images.kind])
    return found


def tar_bytes(members: int) -> int:
    """Compute the bytes of a tar from those of its members: two empty blocks close it, and it is filled up to a whole
    record."""
    return -(-(members + 2 * _BLOCK) // _RECORD) * _RECORD


def index_bytes(planned: PlannedImages) -> int:
    """Estimate the bytes of index and sidecars."""
    table, rows = planned.samples.table, planned.samples.rows
    probabilities = np.array([len(label.distribution or ()) for label in table.labels], dtype=np.int64)
    return (
        (INDEX_BYTES + _SIDECAR_BYTES) * len(planned)
        + 3 * int(planned.key_lengths.sum(dtype=np.int64))
        + _PROBABILITY_BYTES * int(probabilities[table.label[rows]].sum())
    )


@dataclass(frozen=True)
class Space:
    """Free space where the cache will be."""

    folder: str
    """The nearest directory that exists."""
    free_bytes: int
    needed_bytes: int
    """Bytes that are still to be written."""
    present_bytes: int
    """Bytes of tars that are there already."""

    @property
    def fits(self) -> bool:
        """Whether what is still to be written fits."""
        return self.free_bytes >= self.needed_bytes

    @property
    def verdict(self) -> str:
        """The same as a line for the user."""
        free, needed = self.free_bytes / 1e9, self.needed_bytes / 1e9
        there = f" beside {self.present_bytes / 1e9:.2f} GB that are there already" if self.present_bytes else ""
        if self.fits:
            return f"fits: needs {needed:.2f} GB{there}, {free:.2f} GB are free at {self.folder}"
        return (
            f"DOES NOT FIT: needs {needed:.2f} GB{there}, {free:.2f} GB are free at {self.folder}: "
            f"{needed - free:.2f} GB too few"
        )


def check_space(directory: str | Path, num_bytes: int) -> Space:
    """Compare what a cache will take with what is free; tars that are there already count as written.

    Args:
        directory: `cache.dir`; need not exist yet.
        num_bytes: Bytes of the whole cache.

    Raises:
        InputError: The file system gives no answer.
    """
    directory = Path(directory).expanduser().absolute()
    try:
        existing = next(p for p in (directory, *directory.parents) if p.is_dir())
        free = shutil.disk_usage(existing).free
        present = 0
        if (directory / SHARDS).is_dir():
            with os.scandir(directory / SHARDS) as entries:
                present = sum(entry.stat().st_size for entry in entries if entry.name.endswith(".tar"))
    except OSError as error:
        raise InputError(f"cache.dir: {directory} cannot be examined: {reason(error)}") from None
    return Space(str(existing), free, max(0, num_bytes - present), present)
