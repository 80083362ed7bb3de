"""`index.h5`: one row per sample in columns of fixed shape, so that a million rows open in a moment."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import h5py
import numpy as np

from masp.cache.fingerprint import FORMAT_VERSION
from masp.cache.shard_state import Sidecar
from masp.errors import DataError
from masp.files.atomic import replacing
from masp.files.fields import DISTRIBUTION_ROUNDING
from masp.files.hdf5 import Column, Hdf5File, naming_damage
from masp.files.regular import is_file
from masp.files.text import shown
from masp.runtime.growing_array import GrowingArray


class Keys(Sequence):
    """Sample keys as one run of bytes: a million Python strings would take longer to make than all the rest."""

    def __init__(self, text: np.ndarray, offsets: np.ndarray):
        self._text, self._offsets = text, offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row):
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        row = int(row)
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        return self._text[self._offsets[row] : self._offsets[row + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        text, offsets = self._text.tobytes(), self._offsets.tolist()
        for start, stop in itertools.pairwise(offsets):
            yield text[start:stop].decode()


@dataclass(frozen=True)
class Index:
    """The columns, `[N]` unless said otherwise. Rows are sorted by shard, in the order of the tars."""

    key_text: np.ndarray
    """uint8 `[bytes of all keys]`."""
    key_offsets: np.ndarray
    """int64 `[N + 1]`: where each key starts in `key_text`."""
    split: np.ndarray
    """uint8, into the manifest's `splits`."""
    shard: np.ndarray
    """int32, into the manifest's `shards`."""
    offset: np.ndarray
    """int64: where the sample's JSON starts in its tar."""
    length: np.ndarray
    """int64: from there to the end of its features; one read gets both members."""
    json_length: np.ndarray
    """int32: bytes of the JSON."""
    features_start: np.ndarray
    """int32: where the features' file starts, from `offset`."""
    json_crc32: np.ndarray
    """uint32."""
    features_crc32: np.ndarray
    """uint32."""
    num_tokens: np.ndarray
    """int32: T."""
    category: np.ndarray
    """int16, into the manifest's `categories`."""
    aspects: np.ndarray
    """uint64: bit i says that there is an answer for the manifest's `aspects[i]`."""
    grid: np.ndarray
    """int32 `[N, 3]`: patches in time, height and width, before the merge; zeros where the VLM has no grid."""
    image_size: np.ndarray
    """int32 `[N, 2]`: width and height of the image that was given to the image processor."""
    distribution: np.ndarray | None = None
    """float64 `[N, C]`: probability of each of the manifest's categories, zeros where a sample has none; None if no
    sample has one, as in every cache of an earlier version."""

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def keys(self) -> Keys:
        """The sample keys as strings."""
        return Keys(self.key_text, self.key_offsets)

    def distributions(self, rows: np.ndarray) -> np.ndarray:
        """Distributions of some samples, `[n, C]`, zeros where a sample has none; `[n, 0]` if no sample has one."""
        return np.zeros((len(rows), 0)) if self.distribution is None else self.distribution[rows]


_TYPES = {
    "key_text": "u1", "key_offsets": "i8", "split": "u1", "shard": "i4", "offset": "i8", "length": "i8",
    "json_length": "i4", "features_start": "i4", "json_crc32": "u4", "features_crc32": "u4", "num_tokens": "i4",
    "category": "i2", "aspects": "u8", "grid": "i4", "image_size": "i4",
}  # fmt: skip
_WIDTHS = {"grid": 3, "image_size": 2}
_NO_GRID = (0, 0, 0)
_KEY_LENGTH = 40
"""Bytes of a key, about: memory for so many is set aside."""
_DISTRIBUTION = "distribution"
_COLUMNS = {
    name: Column(f"<{kind}", (None, _WIDTHS[name]) if name in _WIDTHS else (None,)) for name, kind in _TYPES.items()
}


Columns = dict[str, np.ndarray]
"""The columns of one shard's samples; `key_offsets` holds the length of each key instead, and `distribution` is
`[N, 0]` where none of them has one."""


def shard_columns(
    sidecar: Sidecar, number: int, split: int, categories: Mapping[str, int], aspects: Mapping[str, int]
) -> Columns:
    """The columns of one shard's samples.

    Args:
        sidecar: Sidecar of the shard.
        number: Number of the shard.
        split: Number of its split.
        categories: Category -> its number.
        aspects: Aspect -> its bit, as an integer with this bit set.

    Raises:
        DataError: The sidecar has a category or aspect that is not among the given ones, or a distribution over
            others; names it.
    """
    samples = sidecar.samples
    keys = [s.key.encode() for s in samples]
    try:
        values = {
            "key_text": np.frombuffer(b"".join(keys), dtype="u1"),
            "key_offsets": [len(k) for k in keys],
            "split": [split] * len(samples),
            "shard": [number] * len(samples),
            "offset": [s.json.offset for s in samples],
            "length": [s.features.offset + s.features.bytes - s.json.offset for s in samples],
            "json_length": [s.json.bytes for s in samples],
            "features_start": [s.features.offset - s.json.offset for s in samples],
            "json_crc32": [s.json.crc32 for s in samples],
            "features_crc32": [s.features.crc32 for s in samples],
            "num_tokens": [s.num_tokens for s in samples],
            "category": [categories[s.category] for s in samples],
            "aspects": [sum([aspects[a] for a in s.answers]) for s in samples],
            "grid": [s.grid or _NO_GRID for s in samples],
            "image_size": [s.image_size for s in samples],
        }
    except KeyError as error:
        raise DataError(f"sidecar {sidecar.name}: {error} is not a category or aspect of the cache") from None
    columns = {
        name: np.asarray(found, dtype=_TYPES[name]).reshape((-1, _WIDTHS[name]) if name in _WIDTHS else -1)
        for name, found in values.items()
    }
    return {**columns, _DISTRIBUTION: _distributions(sidecar, len(categories))}


def _distributions(sidecar: Sidecar, num_categories: int) -> np.ndarray:
    """The column `distribution` of one shard's samples."""
    for sample in sidecar.samples:
        if sample.distribution is not None and len(sample.distribution) != num_categories:
            raise DataError(
                f"sidecar {sidecar.name}: the distribution of {sample.key} has {len(sample.distribution)} numbers, for "
                f"{num_categories} categories"
            )
    if all(sample.distribution is None for sample in sidecar.samples):
        return np.zeros((len(sidecar.samples), 0))
    nothing = (0.0,) * num_categories
    return np.array([sample.distribution or nothing for sample in sidecar.samples], dtype=np.float64)


def widened(values: np.ndarray, width: int) -> np.ndarray:
    """A column `distribution` of `width` categories, or as it is where it has as many."""
    return values if values.shape[1] == width else np.zeros((len(values), width))


class IndexColumns:
    """The columns of all shards, added in the order of their numbers."""

    def __init__(self, num_rows: int):
        """Nothing yet of about so many rows."""
        self._parts = {
            name: GrowingArray(kind, num_rows * (_KEY_LENGTH if name == "key_text" else 1), _width(name))
            for name, kind in _TYPES.items()
        }
        self._parts["key_offsets"].extend(np.zeros(1, dtype="i8"))
        self._num_rows = num_rows
        self._distribution: GrowingArray | None = None
        """Made with the first sample that has one."""

    def add(self, columns: Columns) -> None:
        """Add the columns of a shard, as `shard_columns` makes them."""
        key_end, start = len(self._parts["key_text"]), len(self._parts["shard"])
        self._add_distributions(columns[_DISTRIBUTION], start)
        for name, values in columns.items():
            if name == _DISTRIBUTION:
                continue
            self._parts[name].extend(key_end + np.cumsum(values) if name == "key_offsets" else values)

    def index(self) -> Index:
        """The index of what was added; its columns are not copies."""
        distribution = None if self._distribution is None else self._distribution.values
        return Index(distribution=distribution, **{name: part.values for name, part in self._parts.items()})

    def _add_distributions(self, values: np.ndarray, start: int) -> None:
        """Add the column `distribution` of the rows from `start` on."""
        if self._distribution is None:
            if not values.shape[1]:
                return
            width = values.shape[1]
            self._distribution = GrowingArray(np.float64, self._num_rows, (width,))
            self._distribution.extend(np.zeros((start, width)))
        self._distribution.extend(widened(values, self._distribution.values.shape[1]))


def _width(name: str) -> tuple[int, ...]:
    return (_WIDTHS[name],) if name in _WIDTHS else ()


def save_index(path: Path, index: Index) -> None:
    """Write the index to a temporary name, then rename it; equal indices are equal bytes."""
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["format_version"] = FORMAT_VERSION
        for field in fields(Index):
            if getattr(index, field.name) is None:  # so that an index without distributions is what it was before
                continue
            file.create_dataset(field.name, data=getattr(index, field.name), track_times=False)


def load_index(path: Path) -> Index:
    """Read the whole index (about 130 bytes per sample); the file is closed on return.

    Raises:
        DataError: Missing, damaged or of another format.
    """
    if not is_file(path, key="cache.dir"):
        raise DataError(f"{path} is damaged or missing: no such file")
    with naming_damage(path), Hdf5File(path, key="cache.dir") as file:
        version = file.attribute("format_version")
        if version != FORMAT_VERSION:
            raise DataError(f"{path}: format_version is {shown(version)}, this version of masp reads {FORMAT_VERSION}")
        columns = {name: file.dataset(name, column).read() for name, column in _COLUMNS.items()}
        if file.has(_DISTRIBUTION):
            columns[_DISTRIBUTION] = file.dataset(_DISTRIBUTION, Column("<f8", (None, None))).read()
        index = Index(**columns)
        _check(index)
        return index


def _check(index: Index) -> None:
    """Check that columns agree with each other.

    Raises:
        ValueError: They do not; names one.
    """
    num_rows = len(index.shard)
    for field in fields(Index):
        if field.name != "key_text" and getattr(index, field.name) is not None:
            expected = num_rows + 1 if field.name == "key_offsets" else num_rows
            _require(len(getattr(index, field.name)) == expected, field.name)
    offsets = index.key_offsets
    _require(offsets[0] == 0 and offsets[-1] == len(index.key_text), "key_offsets")
    _require((np.diff(offsets) > 0).all(), "key_offsets")
    _require((index.key_text < 128).all(), "key_text")
    _require((np.diff(index.shard) >= 0).all() and (index.shard >= 0).all(), "shard")
    _require((index.offset >= 0).all(), "offset")
    _require((index.json_length > 0).all(), "json_length")
    _require((index.features_start >= index.json_length).all(), "features_start")
    _require((index.length > index.features_start).all(), "length")
    for name in ("num_tokens", "image_size"):
        _require((getattr(index, name) > 0).all(), name)
    _require((index.grid >= 0).all() and ((index.grid > 0).all(axis=1) == (index.grid > 0).any(axis=1)).all(), "grid")
    _require((index.category >= 0).all(), "category")
    if index.distribution is not None:
        # a NaN or infinite number makes the sum so too, and fails; a sum of 0 marks a sample without a distribution
        sums = index.distribution.sum(axis=1)
        _require((index.distribution >= 0).all(), _DISTRIBUTION)
        _require(((sums == 0) | (np.abs(sums - 1) <= 2 * DISTRIBUTION_ROUNDING)).all(), _DISTRIBUTION)


def _require(condition: bool | np.bool_, name: str) -> None:
    if not condition:
        raise ValueError(f"column {name} holds values that cannot be")
