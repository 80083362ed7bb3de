"""How many bytes a cache takes, from the arithmetic of its tars, and whether they fit on the disk."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masp.cache.codec import encode_record
from masp.cache.layout import SHARDS, shards_of
from masp.errors import InputError
from masp.files.text import reason

PRECISIONS = ("fp32", "bf16", "fp16", "int8", "fp8")


_TENSORS = {
    "fp32": (("features", "F32", 4, True),),
    "bf16": (("features", "BF16", 2, True),),
    "fp16": (("features", "F16", 2, True),),
    "int8": (("scales", "F32", 4, False), ("features", "I8", 1, True)),
    "fp8": (("scales", "F32", 4, False), ("features", "F8_E4M3", 1, True)),
}
"""Per precision the tensors of a sample: name, type in safetensors' spelling, bytes of a number, and whether it has one
number per token and channel or one per token. In safetensors' order: the widest type first."""


_BLOCK = 512


_RECORD = 10240


_LONG_NAME = 100


_DIGEST = "0" * 64
"""As long as the digest that the record will hold."""


INDEX_BYTES = 125
"""Per sample, see `masp.cache.index`; its keys add their own length."""


_SIDECAR_BYTES = 900
"""Per sample: labels, offsets, checksums and the image file's digest, as indented JSON."""


@dataclass(frozen=True)
class Planned:
    """A sample that has a readable header."""

    sample: Any
    """The dataset's `Sample`."""
    size: tuple[int, int]
    """Width and height as the image processor gets it."""
    grid: tuple[int, int, int]
    num_tokens: int

    @functools.cached_property
    def record_bytes(self) -> int:
        """Bytes of the JSON member; all that it holds is known but for a digest, whose length is."""
        sample = self.sample
        labels = {"key": sample.key, "split": sample.split, "category": sample.category}
        facts = {"image_size": list(self.size), "grid": list(self.grid), "source_sha256": _DIGEST}
        return len(encode_record({**labels, "answers": dict(sample.answers), **facts}))


@functools.lru_cache(maxsize=1 << 16)
def features_bytes(num_tokens: int, hidden_size: int, precision: str) -> int:
    """Bytes of the features' safetensors file: numbers, per-token scales and header."""
    entries, end = [], 0
    for name, kind, width, per_channel in _TENSORS[precision]:
        shape = f"{num_tokens},{hidden_size}" if per_channel else f"{num_tokens}"
        start, end = end, end + num_tokens * (hidden_size if per_channel else 1) * width
        entries.append(f'"{name}":{{"dtype":"{kind}","shape":[{shape}],"data_offsets":[{start},{end}]}}')
    header = len(",".join(entries)) + 2
    return 8 + -(-header // 8) * 8 + end  # the header is padded so that the numbers are aligned


def _member(name: str, num_bytes: int) -> int:
    """A member of a GNU tar: a header, what it holds in whole blocks, and for a long name two blocks or more before."""
    length = len(name.encode())
    long_name = _BLOCK + _blocks(length + 1) if length > _LONG_NAME else 0
    return long_name + _BLOCK + _blocks(num_bytes)


def _blocks(num_bytes: int) -> int:
    return -(-num_bytes // _BLOCK) * _BLOCK


def shard_contents(
    samples: Sequence[Any], planned: Iterable[Planned], num_shards: int, layout: dict | None
) -> dict[str, list[Planned]]:
    """Which images extraction will put into which shard.

    Args:
        samples: of the whole dataset, also those with broken headers: they too decide which image lies where.
        planned: those with readable headers.
        num_shards: `cache.num_shards`.
        layout: of the cache, if it has been begun.
    """
    by_key = {p.sample.key: p for p in planned}
    return {
        shard.name: [by_key[sample.key] for sample in shard.samples if sample.key in by_key]
        for shard in shards_of(layout, samples, num_shards)
    }


def tar_sizes(shards: dict[str, list[Planned]], hidden_size: int, precision: str) -> dict[str, int]:
    """Bytes of every tar.

    Args:
        shards: as `shard_contents` gives them.
        hidden_size: D.
        precision: one of PRECISIONS.
    """
    return {
        name: tar_bytes(sample_bytes(p, hidden_size, precision) for p in members) for name, members in shards.items()
    }


def sample_bytes(planned: Planned, hidden_size: int, precision: str) -> int:
    """What a sample adds to its tar: both members with their headers."""
    key = planned.sample.key
    features = features_bytes(planned.num_tokens, hidden_size, precision)
    return _member(f"{key}.json", planned.record_bytes) + _member(f"{key}.safetensors", features)


def tar_bytes(members: Iterable[int]) -> int:
    """A tar of members: two empty blocks close it, and it is filled up to a whole record."""
    return -(-(sum(members) + 2 * _BLOCK) // _RECORD) * _RECORD


def index_bytes(planned: Iterable[Planned]) -> int:
    """About what index and sidecars take beside the tars."""
    return sum(INDEX_BYTES + _SIDECAR_BYTES + 3 * len(p.sample.key) for p in planned)


@dataclass(frozen=True)
class Space:
    """Room at the target."""

    folder: str
    """The nearest folder that exists."""
    free_bytes: int
    needed_bytes: int
    """That are still to be written."""
    present_bytes: int
    """Of tars that are there already."""

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return self.free_bytes >= self.needed_bytes

    def verdict(self) -> str:
        """One line for the user."""
        free, needed = self.free_bytes / 1e9, self.needed_bytes / 1e9
        there = f" beside {self.present_bytes / 1e9:.2f} GB that are there already" if self.present_bytes else ""
        if self.fits:
            return f"fits: needs {needed:.2f} GB{there}, {free:.2f} GB are free at {self.folder}"
        return (
            f"DOES NOT FIT: needs {needed:.2f} GB{there}, {free:.2f} GB are free at {self.folder}: "
            f"{needed - free:.2f} GB too few"
        )


def check_space(folder: str | Path, num_bytes: int) -> Space:
    """Compare what a cache will take with what is free; tars that are there already count as written.

    Args:
        folder: `cache.dir`; need not exist yet.
        num_bytes: of the whole cache.

    Raises:
        InputError: the file system gives no answer.
    """
    folder = Path(folder).expanduser().absolute()
    try:
        existing = next(p for p in (folder, *folder.parents) if p.is_dir())
        free = shutil.disk_usage(existing).free
        present = 0
        if (folder / SHARDS).is_dir():
            with os.scandir(folder / SHARDS) as entries:
                present = sum(entry.stat().st_size for entry in entries if entry.name.endswith(".tar"))
    except OSError as error:
        raise InputError(f"cache.dir: {folder} cannot be looked at: {reason(error)}") from None
    return Space(str(existing), free, max(0, num_bytes - present), present)
