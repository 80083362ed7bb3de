"""`records.h5`: what an evaluation found for every sample, for whoever wants to look further than `metrics.json`.

Datasets (`N` samples in the order of their keys, `C` categories):

    sample_key, label, prediction, text   [N] strings; an empty prediction: the generated line named no category
    categories                            [C] strings, the order of the columns below
    scores, mean_scores                   [N, C] fp32, nats: summed over a category's tokens, and per token; NaN under
                                          `generate`
    attention/aspects                     [A] strings; the group is there only on request
    attention/weights                     [sum of T, A] fp32: where each aspect looks, a mean over its queries
    attention/offsets, attention/grid     [N + 1] where a sample's rows start; [N, 2] its height and width in tokens

Evaluations of stage 1 have `aspect` [N] beside `sample_key`, and instead of `categories` and `scores` a group
`answers/<aspect>` with `row` (into the datasets above), `categories`, `scores` and `mean_scores` for every aspect whose
answers are compared by likelihood.

Attributes of the file: `format_version`, and of evaluations of emotions those of `DataDigests`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from masp.errors import DataError, InputError
from masp.files.atomic import replacing
from masp.files.regular import is_file
from masp.files.text import first_line, shown
from masp.results.ledger_format import Record

FILE = "records.h5"

VERSION = 1


@dataclass(frozen=True)
class DataDigests:
    """By which two evaluations know whether they scored the same images."""

    data_digest: str
    """Digest of keys, labels and features; live, of keys and labels alone."""
    made_by: str
    """Digest of what made the features; empty where they were made live. Only those made alike can be compared."""


@dataclass(frozen=True)
class Records:
    """An evaluation of emotions, read from `records.h5`."""

    keys: list[str]
    labels: list[str]
    predictions: list[str | None]
    categories: tuple[str, ...]
    scores: np.ndarray
    """`[N, C]`; NaN under `generate`."""
    aspects: tuple[str, ...]
    """Aspects with attention maps; none if there are no maps."""
    data: DataDigests | None = None
    """What was scored; None in files from before it was kept."""


def write_emotion_records(
    path: Path,
    records: Sequence[Record],
    categories: Sequence[str],
    aspects: Sequence[str],
    maps: Iterable[np.ndarray],
    data: DataDigests | None = None,
) -> None:
    """Write the records of an evaluation of emotions to a temporary name, then rename it.

    Args:
        path: `records.h5`.
        records: Merged records, see `masp.results.ledger`.
        categories: Categories in the order of the scores.
        aspects: Aspects of the attention maps; empty writes none.
        maps: One per record, `[A, height, width]` each; read one after another.
        data: What was scored.

    Raises:
        OSError: the file cannot be written.
    """
    with _writing(path) as file:
        if data:
            file.attrs["data_digest"], file.attrs["made_by"] = data.data_digest, data.made_by
        _write_strings(file, "sample_key", [r.sample_key for r in records])
        _write_outcomes(file, records)
        _write_scores(file, records, categories)
        if aspects:
            _write_attention(file.create_group("attention"), len(records), aspects, maps)


def write_aspect_records(path: Path, records: Sequence[Record], answers: Mapping[str, Sequence[str]]) -> None:
    """Write the records of an evaluation of stage 1.

    Args:
        path: `records.h5`.
        records: Merged records.
        answers: Aspect -> answers in the order of the scores, where they are compared by likelihood.

    Raises:
        OSError: the file cannot be written.
    """
    with _writing(path) as file:
        _write_strings(file, "sample_key", [r.image_key for r in records])
        _write_strings(file, "aspect", [r.aspect for r in records])
        _write_outcomes(file, records)
        for aspect, choices in answers.items():
            rows = [i for i, r in enumerate(records) if r.aspect == aspect]
            group = file.create_group(f"answers/{aspect}")
            group.create_dataset("row", data=np.array(rows, dtype="i8"))
            _write_scores(group, [records[i] for i in rows], choices)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[h5py.File]:
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["format_version"] = VERSION
        yield file


def _write_strings(group: h5py.Group, name: str, texts: Sequence[str]) -> None:
    # generated lines may hold what HDF5's strings cannot: a NUL ends them, a lone surrogate is not UTF-8
    plain = [t.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "backslashreplace") for t in texts]
    group.create_dataset(name, data=plain, shape=(len(plain),), dtype=h5py.string_dtype())


def _write_outcomes(file: h5py.File, records: Sequence[Record]) -> None:
    _write_strings(file, "label", [r.label for r in records])
    _write_strings(file, "prediction", [r.prediction or "" for r in records])
    _write_strings(file, "text", [r.text or "" for r in records])


def _write_scores(group: h5py.Group, records: Sequence[Record], categories: Sequence[str]) -> None:
    _write_strings(group, "categories", categories)
    none = (float("nan"),) * len(categories)
    for name, found in (("scores", [r.scores for r in records]), ("mean_scores", [r.mean_scores for r in records])):
        rows = np.array([none if scores is None else scores for scores in found], dtype="f4")
        group.create_dataset(name, data=rows.reshape(len(records), len(categories)))


def _write_attention(group: h5py.Group, count: int, aspects: Sequence[str], maps: Iterable[np.ndarray]) -> None:
    _write_strings(group, "aspects", aspects)
    weights = group.create_dataset("weights", (0, len(aspects)), maxshape=(None, len(aspects)), dtype="f4")
    offsets, grid = np.zeros(count + 1, dtype="i8"), np.zeros((count, 2), dtype="i4")
    for i, found in enumerate(maps):
        offsets[i + 1], grid[i] = offsets[i] + found[0].size, found.shape[1:]
        weights.resize(offsets[i + 1], axis=0)
        weights[offsets[i] :] = found.reshape(len(aspects), -1).T
    group.create_dataset("offsets", data=offsets)
    group.create_dataset("grid", data=grid)


def read_records_file(path: str | Path) -> Records:
    """Read an evaluation of emotions.

    Raises:
        InputError: The file is missing, or of another format or stage. DataError: It is damaged.
    """
    path = Path(path)
    with _reading(path) as file:
        if "scores" not in file:
            raise InputError(f"{path}: holds no scores of categories: it is an evaluation of stage 1, not of emotions")
        records = Records(
            keys=_strings(file, "sample_key"),
            labels=_strings(file, "label"),
            predictions=[text or None for text in _strings(file, "prediction")],
            categories=tuple(_strings(file, "categories")),
            scores=_dataset(file, "scores")[()],
            aspects=tuple(_strings(file, "attention/aspects")) if "attention" in file else (),
            data=_digests(file),
        )
        _check(records)
        return records


def _digests(file: h5py.File) -> DataDigests | None:
    values = [file.attrs.get(name) for name in ("data_digest", "made_by")]
    if None in values:
        return None
    if not all(isinstance(value, str) for value in values):
        raise ValueError("data_digest and made_by must be strings")
    return DataDigests(*values)


def _check(records: Records) -> None:
    """Raise ValueError unless the datasets belong together."""
    counts = {"sample_key": len(records.keys), "label": len(records.labels), "prediction": len(records.predictions)}
    if len(set(counts.values())) > 1:
        raise ValueError(f"lengths differ: {', '.join(f'{name} {count}' for name, count in counts.items())}")
    if not records.keys:
        raise ValueError("it holds no sample")
    if len(set(records.keys)) < len(records.keys):
        raise ValueError("a sample_key occurs twice")
    _expect("scores", records.scores, "f", (len(records.keys), len(records.categories)))


def _expect(name: str, values: np.ndarray | h5py.Dataset, kind: str, shape: tuple[int, ...]) -> None:
    if values.dtype.kind != kind or values.shape != shape:
        what = "integers" if kind == "i" else "floating-point numbers"
        raise ValueError(f"{name} are {values.dtype} {list(values.shape)}; must be {what} {list(shape)}")


def read_maps(path: str | Path, keys: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Attention maps of some samples.

    Returns:
        key -> aspect -> `[height, width]`, each map summing to one; empty if the file has no maps.

    Raises:
        InputError, DataError: as `read_records_file`.
    """
    with _reading(Path(path)) as file:
        if "attention" not in file:
            return {}
        all_keys, wanted = _strings(file, "sample_key"), set(keys)
        aspects = _strings(file, "attention/aspects")
        offsets, grid = _dataset(file, "attention/offsets")[()], _dataset(file, "attention/grid")[()]
        weights = _dataset(file, "attention/weights")
        _expect("attention/offsets", offsets, "i", (len(all_keys) + 1,))
        _expect("attention/grid", grid, "i", (len(all_keys), 2))
        _expect("attention/weights", weights, "f", (int(offsets[-1]), len(aspects)))
        if offsets[0] != 0 or (grid < 1).any() or (np.diff(offsets) != grid.astype("i8").prod(axis=1)).any():
            raise ValueError("attention/offsets do not belong to attention/grid")
        found = {}
        for row, key in enumerate(all_keys):
            if key in wanted:
                maps = weights[offsets[row] : offsets[row + 1]]
                found[key] = {a: maps[:, i].reshape(grid[row]) for i, a in enumerate(aspects)}
        return found


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    if not is_file(path):
        raise InputError(f"{path}: no such file; run `masp evaluate` first")
    try:
        # the file never changes once it has its name, and some cluster file systems cannot lock
        with h5py.File(path, "r", locking=False) as file:
            version = file.attrs.get("format_version")
            if not isinstance(version, np.integer) or version != VERSION:
                raise InputError(f"{path}: format_version is {shown(version)}, this version of MASP reads {VERSION}")
            yield file
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:  # whatever h5py raises of damaged files
        # what has another name may be somebody else's file, and not ours to delete
        ours = path.name == FILE
        remedy = "delete it and run `masp evaluate` again" if ours else f"name a {FILE} that `masp evaluate` wrote"
        what = "is damaged" if ours else "is damaged or not a file of MASP"
        raise DataError(f"{path} {what}: {first_line(error)}; {remedy}") from None


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset whose values are in the file itself, all of them.

    Data stored elsewhere could be any file of the user, and a declared shape without values could be terabytes.
    """
    group, parts = file, name.split("/")
    for part in parts:
        if not isinstance(group, h5py.Group) or not isinstance(group.get(part, getlink=True), h5py.HardLink | None):
            raise ValueError(f"{name} is not a dataset in the file itself")
        group = group[part]
    if not isinstance(group, h5py.Dataset):
        raise ValueError(f"{name} is not a dataset")
    if group.external or group.is_virtual:
        raise ValueError(f"{name} is not a dataset in the file itself")
    if group.shape is None or group.nbytes > group.id.get_storage_size():
        raise ValueError(f"{name} claims values that the file does not hold")
    return group


def _strings(file: h5py.File, name: str) -> list[str]:
    found = _dataset(file, name)
    if h5py.check_string_dtype(found.dtype) is None or found.ndim != 1:
        raise ValueError(f"{name} is not a list of strings")
    return [text.decode("utf-8") for text in found[()]]
