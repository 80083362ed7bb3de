"""`records.h5`: what an evaluation found for every sample, for whoever wants to look further than `metrics.json`.

Datasets (`N` samples in the order of their keys, `C` categories):

    sample_key, label, prediction, text   [N] strings; an empty prediction: the generated line named no category
    categories                            [C] strings, the order of the columns below
    scores, mean_scores                   [N, C] fp32, nats: summed over a category's tokens, and per token; NaN under
                                          `generate`
    distribution                          [N, C] fp64: the data's own probabilities, zeros where a sample has none; only
                                          where some sample has one
    attention/aspects                     [A] strings; the group is there only on request
    attention/weights                     [sum of T, A] fp32: where each aspect looks, a mean over its queries
    attention/offsets, attention/grid     [N + 1] where a sample's rows start; [N, 2] its height and width in tokens
    attention/crc32                       [N] checksum of a sample's rows

Evaluations of stage 1 have `aspect` [N] beside `sample_key`, and instead of `categories` and `scores` a group
`answers/<aspect>` with `row` (into the datasets above), `categories`, `scores` and `mean_scores` for every aspect whose
answers are compared by likelihood; `masp.results.aspect_records` writes and reads them.

Strings are UTF-8, of a fixed number of bytes that is that of the longest one. Attributes of the file: `format_version`,
`digest` (the version and SHA-256 of all datasets but `attention/weights`, and of the attributes), and of evaluations of
targets those of `DataDigests`. Whoever reads the file checks the digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np

from masp.errors import InputError
from masp.files.atomic import replacing
from masp.files.fields import DISTRIBUTION_ROUNDING
from masp.files.hdf5 import Column, Hdf5File, naming_damage
from masp.files.regular import is_file
from masp.files.text import shown
from masp.results.ledger_format import Record
from masp.results.ledgers.table import CHUNK, Numbers, RecordTable, Texts

FILE = "records.h5"

VERSION = 2
WITH_DISTRIBUTIONS = 3
"""`format_version` of a file that has them; everything else is as in `VERSION`."""
_READABLE = (VERSION, WITH_DISTRIBUTIONS)

STRINGS = Column("S", (None,))
OUTCOMES = ("sample_key", "label", "prediction", "text")


@dataclass(frozen=True)
class DataDigests:
    """By which two evaluations know whether they scored the same images."""

    data_digest: str
    """Digest of keys, labels and features; live, of keys and labels alone."""
    made_by: str
    """Digest of what made the features; empty where they were made live. Only those made alike can be compared."""


@dataclass(frozen=True)
class Records:
    """An evaluation of a target, read from `records.h5`; a column is read into memory once."""

    columns: Mapping[str, np.ndarray]
    """`sample_key`, `label`, `prediction` and `text`: `[N]` bytes each; see there."""
    categories: tuple[str, ...]
    scores: np.ndarray
    """`[N, C]`; NaN under `generate`."""
    aspects: tuple[str, ...]
    """Aspects with attention maps; none if there are no maps."""
    digest: str
    """Of the whole content."""
    data: DataDigests | None = None
    """What was scored; None if it is not known."""
    distribution: np.ndarray | None = None
    """`[N, C]`, the data's own, zeros where a sample has none; None if no sample has one."""

    def __len__(self) -> int:
        return len(self.columns["sample_key"])

    @cached_property
    def keys(self) -> list[str]:
        """Sample keys."""
        return [key.decode() for key in self.columns["sample_key"].tolist()]

    @cached_property
    def labels(self) -> list[str]:
        """The right categories."""
        return words_of(self.columns["label"])

    @cached_property
    def predictions(self) -> list[str | None]:
        """The predicted categories; None: the generated line named no category."""
        return [text or None for text in words_of(self.columns["prediction"])]

    def outcome(self, row: int) -> tuple[str, str, str | None]:
        """Sample key, label and prediction of one sample."""
        key, label, prediction = (self.columns[name][row].decode() for name in OUTCOMES[:3])
        return key, label, prediction or None

    @cached_property
    def order(self) -> np.ndarray:
        """The rows in the order of their keys."""
        keys = self.columns["sample_key"]
        is_sorted = bool((keys[1:] > keys[:-1]).all())
        return np.arange(len(keys)) if is_sorted else np.argsort(keys, kind="stable")

    def ordered(self, name: str) -> np.ndarray:
        """A column in the order of the keys."""
        return self.columns[name][self.order]

    @cached_property
    def is_right(self) -> np.ndarray:
        """Which predictions are right, `[N]` bool."""
        return self.columns["label"] == self.columns["prediction"]


def words_of(column: np.ndarray) -> list[str]:
    """The strings of a column with few different ones, each decoded once."""
    different, numbers = np.unique(column, return_inverse=True)
    words = [text.decode() for text in different.tolist()]
    return [words[number] for number in numbers.tolist()]


def write_target_records(
    path: Path,
    records: Sequence[Record],
    categories: Sequence[str],
    aspects: Sequence[str],
    maps: Iterable[np.ndarray],
    data: DataDigests | None = None,
    distribution: np.ndarray | None = None,
) -> str:
    """Write the records of an evaluation of a target to a temporary name, then rename it.

    Args:
        path: `records.h5`.
        records: Merged records, see `masp.results.ledger`.
        categories: Categories in the order of the scores.
        aspects: Aspects of the attention maps; empty writes none.
        maps: One per record, `[A, height, width]` each; read one after another.
        data: What was scored.
        distribution: `[N, C]` fp64, the data's own, zeros where a sample has none; None if no sample has one.

    Returns:
        Digest of the content.

    Raises:
        OSError: the file cannot be written.
    """
    table = RecordTable.of(records)
    with RecordsWriter(path) as writer:
        writer.strings("sample_key", table.keys)
        writer.outcomes(table)
        writer.scores("", table.scores, table.mean_scores, np.arange(len(table)), categories)
        if distribution is not None:
            writer.version = WITH_DISTRIBUTIONS
            writer.put("distribution", distribution.astype("<f8", copy=False))
        if aspects:
            writer.attention(len(table), aspects, maps)
        return writer.seal({} if data is None else vars(data))


class ContentDigest:
    """SHA-256 of named arrays and attributes, whatever their order."""

    def __init__(self) -> None:
        self._parts: dict[str, str] = {}

    def add(self, name: str, values: np.ndarray) -> None:
        """Add an array under its name."""
        found = hashlib.sha256(f"{values.dtype.str} {values.shape} ".encode())
        for start in range(0, len(values), CHUNK):
            found.update(np.ascontiguousarray(values[start : start + CHUNK]).tobytes())
        self._parts[name] = found.hexdigest()

    def of(self, attributes: Mapping[str, str]) -> str:
        """The digest of what was added, and of attributes."""
        lines = [f"{name} {value}\n" for name, value in sorted((self._parts | dict(attributes)).items())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


class RecordsWriter(contextlib.AbstractContextManager):
    """A file that is written and gets its name at the end of the block."""

    def __init__(self, path: Path):
        self._stack, self._digest, self._path = contextlib.ExitStack(), ContentDigest(), path
        self.version = VERSION

    def __enter__(self) -> RecordsWriter:
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(replacing(self._path))
            # checksums of its own for the library's metadata, which the format's first version has not
            self._file = stack.enter_context(h5py.File(temporary, "w", libver=("v110", "v110")))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> bool | None:
        return self._stack.__exit__(*exception)  # type: ignore[arg-type]

    def put(self, name: str, values: np.ndarray) -> None:
        """Write a dataset."""
        is_text = values.dtype.kind == "S"
        shown = values.view(h5py.string_dtype("utf-8", values.dtype.itemsize)) if is_text else values
        self._file.create_dataset(name, data=shown, track_times=False)
        self._digest.add(name, values)

    def strings(self, name: str, texts: Sequence[str]) -> None:
        """Write a column of strings."""
        self.put(name, _as_bytes(texts))

    def words(self, name: str, column: Texts) -> None:
        """Write a column of strings of which many are equal."""
        self.put(name, _as_bytes([*column.words, ""])[column.codes])  # -1 is the last one

    def outcomes(self, table: RecordTable) -> None:
        """Write labels, predictions and texts."""
        self.words("label", table.labels)
        self.words("prediction", table.predictions)
        self.words("text", table.texts)

    def scores(self, group: str, scores: Numbers, means: Numbers, rows: np.ndarray, categories: Sequence[str]) -> None:
        """Write the scores of some rows, and what they are scores of."""
        self.strings(f"{group}categories", categories)
        for name, column in (("scores", scores), ("mean_scores", means)):
            values = np.empty((len(rows), len(categories)), dtype="<f4")
            for start in range(0, len(rows), CHUNK):
                part = rows[start : start + CHUNK]
                values[start : start + CHUNK] = column.block(part, len(categories))
            self.put(group + name, values)

    def attention(self, count: int, aspects: Sequence[str], maps: Iterable[np.ndarray]) -> None:
        """Write attention maps, one after another."""
        group = self._file.create_group("attention")
        self.strings("attention/aspects", aspects)
        shape = (0, len(aspects))
        weights = group.create_dataset("weights", shape, maxshape=(None, len(aspects)), dtype="<f4", track_times=False)
        offsets, grid = np.zeros(count + 1, dtype="<i8"), np.zeros((count, 2), dtype="<i4")
        checksums = np.zeros(count, dtype="<u4")
        for i, found in enumerate(maps):
            rows = found.reshape(len(aspects), -1).T.astype("<f4")
            offsets[i + 1], grid[i], checksums[i] = (
                offsets[i] + found[0].size,
                found.shape[1:],
                zlib.crc32(rows.tobytes()),
            )
            weights.resize(offsets[i + 1], axis=0)
            weights[offsets[i] :] = rows
        for name, values in (("offsets", offsets), ("grid", grid), ("crc32", checksums)):
            self.put(f"attention/{name}", values)

    def seal(self, attributes: Mapping[str, str]) -> str:
        """Add the attributes and the digest, which is returned."""
        digest = self._digest.of(attributes)
        self._file.attrs["format_version"] = self.version
        for name, value in {**attributes, "digest": f"{self.version}:{digest}"}.items():
            self._file.attrs[name] = np.bytes_(value)
        return digest


def _as_bytes(texts: Sequence[str]) -> np.ndarray:
    # generated lines may hold what HDF5's strings cannot: a NUL ends them, a lone surrogate is not UTF-8
    plain = [t.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "backslashreplace") for t in texts]
    return np.array(plain, dtype=f"S{max(map(len, plain), default=0) or 1}")


def read_records_file(path: str | Path) -> Records:
    """Read an evaluation of a target, and check its digest.

    Raises:
        InputError: The file is missing, or of another format or stage. DataError: It is damaged.
    """
    path = Path(path)
    with reading_records(path) as file:
        if file.has("answers") or file.has("aspect"):
            raise InputError(f"{path}: holds no scores of categories: it is an evaluation of stage 1, not of stage 2")
        digest = ContentDigest()
        columns = {name: read_column(file, name, STRINGS, digest) for name in (*OUTCOMES, "categories")}
        categories = columns.pop("categories")
        count = len(columns["sample_key"])
        for name in OUTCOMES:
            if len(columns[name]) != count:
                raise ValueError(f"lengths differ: sample_key {count}, {name} {len(columns[name])}")
        if not count:
            raise ValueError("it holds no sample")
        if not len(categories):
            raise ValueError("it holds no category")
        floats = Column("<f4", (count, len(categories)))
        scores = read_column(file, "scores", floats, digest)
        read_column(file, "mean_scores", floats, digest)
        distribution = _read_distribution(file, scores.shape, digest)
        maps = _read_attention(file, count, digest)
        attributes = {name: value for name in ("data_digest", "made_by") if (value := _text(file, name)) is not None}
        if attributes and len(attributes) < 2:
            raise ValueError("it must have data_digest and made_by, or neither")
        found = digest.of(attributes)
        check_digest(file, found)
        records = Records(
            columns=columns,
            categories=tuple(text.decode() for text in categories.tolist()),
            scores=scores,
            aspects=() if maps is None else maps.aspects,
            digest=found,
            data=DataDigests(**attributes) if attributes else None,
            distribution=distribution,
        )
        keys = records.ordered("sample_key")
        if (keys[1:] == keys[:-1]).any():
            raise ValueError("a sample_key occurs twice")
        return records


def _read_distribution(file: Hdf5File, shape: tuple[int, ...], digest: ContentDigest) -> np.ndarray | None:
    if file.attribute("format_version") != WITH_DISTRIBUTIONS:
        return None
    found = read_column(file, "distribution", Column("<f8", shape), digest)
    sums = found.sum(axis=1)
    if not (found >= 0).all() or not ((sums == 0) | (np.abs(sums - 1) <= 2 * DISTRIBUTION_ROUNDING)).all():
        raise ValueError("distribution holds rows that are not distributions")
    return found


@dataclass(frozen=True)
class _Attention:
    aspects: tuple[str, ...]
    offsets: np.ndarray
    grid: np.ndarray
    checksums: np.ndarray


def _read_attention(file: Hdf5File, count: int, digest: ContentDigest) -> _Attention | None:
    """All of the attention maps but themselves; None if there are none."""
    if not file.has("attention"):
        return None
    aspects = read_column(file, "attention/aspects", STRINGS, digest)
    offsets = read_column(file, "attention/offsets", Column("<i8", (count + 1,)), digest)
    grid = read_column(file, "attention/grid", Column("<i4", (count, 2)), digest)
    checksums = read_column(file, "attention/crc32", Column("<u4", (count,)), digest)
    if offsets[0] != 0 or (grid < 1).any() or (np.diff(offsets) != grid.astype("i8").prod(axis=1)).any():
        raise ValueError("attention/offsets do not belong to attention/grid")
    return _Attention(tuple(text.decode() for text in aspects.tolist()), offsets, grid, checksums)


def read_maps(path: str | Path, records: Records, keys: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Attention maps of some samples.

    Args:
        path: The file.
        records: What was read from it.
        keys: Sample keys.

    Returns:
        key -> aspect -> `[height, width]`, each map summing to one; empty if the file has no maps.

    Raises:
        InputError, DataError: as `read_records_file`.
    """
    if not records.aspects:
        return {}
    with reading_records(Path(path)) as file:
        found_maps = _read_attention(file, len(records), ContentDigest())
        if found_maps is None or found_maps.aspects != records.aspects:
            raise ValueError("it is not the file that its records were read from")
        offsets, grid = found_maps.offsets, found_maps.grid
        weights = file.dataset("attention/weights", Column("<f4", (int(offsets[-1]), len(records.aspects))))
        wanted = {key.encode() for key in keys}
        found = {}
        for row in np.flatnonzero(np.isin(records.columns["sample_key"], sorted(wanted))).tolist() if wanted else ():
            maps = weights.rows(int(offsets[row]), int(offsets[row + 1]))
            if zlib.crc32(maps.tobytes()) != found_maps.checksums[row]:
                raise ValueError(f"the attention maps of sample {row} are not those of their checksum")
            key = records.columns["sample_key"][row].decode()
            found[key] = {aspect: maps[:, i].reshape(grid[row]) for i, aspect in enumerate(records.aspects)}
        return found


@contextlib.contextmanager
def reading_records(path: Path) -> Iterator[Hdf5File]:
    """Open a `records.h5` of this version; whatever is wrong with it is one line.

    Raises:
        InputError: The file is missing, or of another format. DataError: It is damaged, or the block raised something.
    """
    if not is_file(path):
        raise InputError(f"{path}: no such file; run `masp evaluate` first")
    # what has another name may be somebody else's file, and not ours to delete
    ours = path.name == FILE
    remedy = "delete it and run `masp evaluate` again" if ours else f"or not a {FILE} that `masp evaluate` wrote"
    with naming_damage(path, remedy), Hdf5File(path) as file:
        version = file.attribute("format_version")
        if version == 1:
            raise InputError(
                f"{path}: format 1 of an earlier version, without checksums; run the same `masp evaluate` again, which "
                "writes it anew from the ledgers and scores nothing"
            )
        sealed_as = (_text(file, "digest") or "").partition(":")[0]
        is_ours = sealed_as in map(str, _READABLE)
        if version not in _READABLE and not is_ours:
            raise InputError(
                f"{path}: format_version is {shown(version)}, this version of MASP reads up to {WITH_DISTRIBUTIONS}"
            )
        if is_ours and str(version) != sealed_as:
            raise ValueError(f"its format_version is {shown(version)}, its digest is one of {sealed_as}")
        yield file


def _text(file: Hdf5File, name: str) -> str | None:
    value = file.attribute(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"its {name} must be a string")
    return value


def read_column(file: Hdf5File, name: str, column: Column, digest: ContentDigest) -> np.ndarray:
    """Read a dataset, and add it to the digest."""
    values = file.dataset(name, column).read()
    digest.add(name, values)
    return values


def check_digest(file: Hdf5File, found: str) -> None:
    """Raises ValueError unless the content has the digest that the file states."""
    if _text(file, "digest") != f"{file.attribute('format_version')}:{found}":
        raise ValueError("its content is not that of its digest")
