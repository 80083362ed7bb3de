"""How many bytes a cache takes, from the arithmetic of its tars, and whether they fit on the disk."""

from __future__ import annotations

import functools
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from masp.cache.layout import SHARDS, Layout, shards_of
from masp.data.sample import Sample
from masp.errors import InputError
from masp.files.text import reason
from masp.plan.tokens import PlannedImage

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


def _member(length: int, num_bytes: int) -> int:
    """A member of a GNU tar: a header, what it holds in whole blocks, and for a long name two blocks or more before.

    Args:
        length: Bytes of its name; sample keys are ASCII.
        num_bytes: Bytes that it holds.
    """
    long_name = _BLOCK + _blocks(length + 1) if length > _LONG_NAME else 0
    return long_name + _BLOCK + _blocks(num_bytes)


def _blocks(num_bytes: int) -> int:
    return -(-num_bytes // _BLOCK) * _BLOCK


def shard_contents(
    samples: Sequence[Sample], planned: Iterable[PlannedImage], num_shards: int, layout: Layout | None
) -> dict[str, list[PlannedImage]]:
    """Assign the images to shards as extraction will.

    Args:
        samples: Samples of the whole dataset, also those with damaged headers: they too decide which image is where.
        planned: Images with readable headers.
        num_shards: `cache.num_shards`.
        layout: Layout of the cache, None if it has not been begun.

    Returns:
        Name of each shard -> its images with readable headers.
    """
    by_key = {p.sample.key: p for p in planned}
    return {
        shard.name: [by_key[key] for key in shard.samples.keys if key in by_key]
        for shard in shards_of(layout, samples, num_shards)
    }


def tar_sizes(
    shards: dict[str, list[PlannedImage]], hidden_size: int, precision: str, num_deep_maps: int = 0
) -> dict[str, int]:
    """Compute the bytes of every tar.

    Args:
        shards: Name of each shard -> its images, as `shard_contents` returns them.
        hidden_size: Hidden size D of the language model.
        precision: Number format, one of `PRECISIONS`.
        num_deep_maps: Number K of the deep maps of a VLM with DeepStack.
    """
    return {
        name: tar_bytes(
            count * sample_bytes(*kind, hidden_size, precision, num_deep_maps)
            for kind, count in Counter((len(p.sample.key), p.record_bytes, p.num_tokens) for p in members).items()
        )
        for name, members in shards.items()
    }


def sample_bytes(
    key_length: int, record_bytes: int, num_tokens: int, hidden_size: int, precision: str, num_deep_maps: int = 0
) -> int:
    """Compute the bytes that a sample adds to its tar: both members with their headers."""
    features = features_bytes(num_tokens, hidden_size, precision, num_deep_maps)
    return _member(key_length + len(".json"), record_bytes) + _member(key_length + len(".safetensors"), features)


def tar_bytes(members: Iterable[int]) -> int:
    """Compute the bytes of a tar of members: two empty blocks close it, and it is filled up to a whole record."""
    return -(-(sum(members) + 2 * _BLOCK) // _RECORD) * _RECORD


def index_bytes(planned: Iterable[PlannedImage]) -> int:
    """Estimate the bytes of index and sidecars."""
    return sum(
        INDEX_BYTES + _SIDECAR_BYTES + 3 * len(p.sample.key) + _PROBABILITY_BYTES * len(p.sample.distribution or ())
        for p in planned
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
