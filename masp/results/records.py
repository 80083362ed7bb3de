"""`records.h5`: what an evaluation found for every sample, for whoever wants to look further than `metrics.json`.

Datasets (`N` samples in the order of their keys, `C` categories):

    sample_key, label, prediction, text   [N] texts; an empty prediction: the generated line named no category
    categories                            [C] texts, the order of the columns below
    scores, mean_scores                   [N, C] fp32, nats: summed over a category's tokens, and per token; NaN under
                                          `generate`
    attention/aspects                     [A] texts; the group is there only on request
    attention/weights                     [sum of T, A] fp32: where each aspect looks, a mean over its queries
    attention/offsets, attention/grid     [N + 1] where a sample's rows start; [N, 2] its height and width in tokens

Evaluations of stage 1 have `aspect` [N] beside `sample_key`, and instead of `categories` and `scores` a group
`answers/<aspect>` with `row` (into the datasets above), `categories`, `scores` and `mean_scores` for every aspect whose
answers are compared by likelihood.

Attributes of the file: `format_version`, and of evaluations of emotions `data_digest` and `made_by`, see `data_of`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from masp.errors import DataError, InputError
from masp.files.atomic import replacing
from masp.files.text import first_line

FILE = "records.h5"


VERSION = 1


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
    data: dict[str, str] = field(default_factory=dict)
    """What was scored, see `data_of`; empty in files from before it was kept."""


def write_emotion_records(
    path: Path,
    records: Sequence[dict[str, Any]],
    categories: Sequence[str],
    aspects: Sequence[str],
    maps: Any,
    data: dict[str, str] | None = None,
) -> None:
    """Write the records of an evaluation of emotions to a temporary name, then rename it.

    Args:
        path: `records.h5`.
        records: merged, see `masp.results.ledger`.
        categories: in the order of the scores.
        aspects: of the attention maps; empty writes none.
        maps: one per record, `[A, height, width]` each; read one after another.
        data: what was scored, see `data_of`.
    """
    with _writing(path) as file:
        for name, digest in (data or {}).items():
            file.attrs[name] = digest
        _texts(file, "sample_key", [r["sample_key"] for r in records])
        _outcomes(file, records)
        _scores(file, records, categories)
        if aspects:
            _attention(file.create_group("attention"), len(records), aspects, maps)


def write_aspect_records(path: Path, records: Sequence[dict[str, Any]], answers: Mapping[str, Sequence[str]]) -> None:
    """Write the records of an evaluation of stage 1.

    Args:
        path: `records.h5`.
        records: each with `key` and `aspect` beside what a record of the ledger has.
        answers: aspect -> answers in the order of the scores, where they are compared by likelihood.
    """
    with _writing(path) as file:
        _texts(file, "sample_key", [r["key"] for r in records])
        _texts(file, "aspect", [r["aspect"] for r in records])
        _outcomes(file, records)
        for aspect, choices in answers.items():
            rows = [i for i, r in enumerate(records) if r["aspect"] == aspect]
            group = file.create_group(f"answers/{aspect}")
            group.create_dataset("row", data=np.array(rows, dtype="i8"))
            _scores(group, [records[i] for i in rows], choices)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Any]:
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["format_version"] = VERSION
        yield file


def _texts(group, name: str, texts: Sequence[str]) -> None:
    # generated lines may hold what HDF5's texts cannot: a NUL ends them, a lone surrogate is no UTF-8
    plain = [t.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "backslashreplace") for t in texts]
    group.create_dataset(name, data=plain, shape=(len(plain),), dtype=h5py.string_dtype())


def _outcomes(file, records: Sequence[dict[str, Any]]) -> None:
    _texts(file, "label", [r["label"] for r in records])
    _texts(file, "prediction", [r["prediction"] or "" for r in records])
    _texts(file, "text", [r.get("text") or "" for r in records])


def _scores(group, records: Sequence[dict[str, Any]], categories: Sequence[str]) -> None:
    _texts(group, "categories", categories)
    none = [float("nan")] * len(categories)
    for name in ("scores", "mean_scores"):
        rows = [none if r.get(name) is None else r[name] for r in records]
        group.create_dataset(name, data=np.array(rows, dtype="f4").reshape(len(records), len(categories)))


def _attention(group, count: int, aspects: Sequence[str], maps) -> None:
    _texts(group, "aspects", aspects)
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
        InputError: there is no such file, or it is of another format or another stage. DataError: it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; run `masp evaluate` first")
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
            data={n: str(file.attrs[n]) for n in ("data_digest", "made_by") if n in file.attrs},
        )
        _check(records)
        return records


def _check(records: Records) -> None:
    """Raise ValueError unless the datasets belong together."""
    counts = {"sample_key": len(records.keys), "label": len(records.labels), "prediction": len(records.predictions)}
    if len(set(counts.values())) > 1:
        raise ValueError(f"lengths differ: {', '.join(f'{name} {count}' for name, count in counts.items())}")
    if not records.keys:
        raise ValueError("it holds no sample")
    if len(set(records.keys)) < len(records.keys):
        raise ValueError("a sample_key occurs twice")
    expected = (len(records.keys), len(records.categories))
    if records.scores.dtype.kind != "f" or records.scores.shape != expected:
        raise ValueError(
            f"scores are {records.scores.dtype} {list(records.scores.shape)}, not numbers {list(expected)}"
        )


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
        group, wanted = file["attention"], set(keys)
        aspects, offsets, grid = _strings(group, "aspects"), group["offsets"][()], group["grid"][()]
        found = {}
        for row, key in enumerate(_strings(file, "sample_key")):
            if key in wanted:
                weights = group["weights"][offsets[row] : offsets[row + 1]]
                found[key] = {a: weights[:, i].reshape(grid[row]) for i, a in enumerate(aspects)}
        return found


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Any]:
    try:
        # the file never changes once it has its name, and some cluster file systems cannot lock
        with h5py.File(path, "r", locking=False) as file:
            version = file.attrs.get("format_version")
            if version != VERSION:
                raise InputError(f"{path}: format_version is {version!r}, this version of MASP reads {VERSION}")
            yield file
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        # what has another name may be somebody else's file, and none to delete
        ours = path.name == FILE
        remedy = "delete it and run `masp evaluate` again" if ours else f"name a {FILE} that `masp evaluate` wrote"
        what = "is damaged" if ours else "is damaged or no file of MASP"
        raise DataError(f"{path} {what}: {first_line(error)}; {remedy}") from None


def _dataset(group, name: str):
    found = group[name]
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{name} is no dataset")
    return found


def _strings(group, name: str) -> list[str]:
    found = _dataset(group, name)
    if h5py.check_string_dtype(found.dtype) is None or found.ndim != 1:
        raise ValueError(f"{name} is no list of texts")
    return [text.decode("utf-8") for text in found[()]]
