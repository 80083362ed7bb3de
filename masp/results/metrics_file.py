"""The files that evaluations leave their numbers in, and their readers.

metrics.json    one evaluation: of a target, or of stage 1 with `per_aspect`
datasets.json   name of the dataset -> row of the table over several datasets
prompts.json    one evaluation with several wordings of the question
linear_probe.json    a linear probe on the images of an evaluation
summary.json    name of the variant -> its accuracy, as `masp demo` writes it
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field

from masp.config.schema import Layout, Quantization, Scoring, Source, StageName
from masp.errors import DataError
from masp.files.atomic import write_bytes
from masp.files.json_text import parse_json
from masp.files.regular import is_file, read_bytes
from masp.files.sealed import digest_of
from masp.files.text import all_lines
from masp.files.typed import Json, as_json, decode
from masp.results.breakdown import GroupAccuracy, MajorityClass
from masp.results.metrics import CalibrationBin, CategoryMetrics, Count, Share
from masp.results.probabilities.distributions import DistributionMetrics
from masp.results.probabilities.temperature import TemperatureScaling
from masp.taxonomy import Split

METRICS = "metrics.json"
DATASETS = "datasets.json"
"""In the directory of a run's own evaluation: the table over it and those on other datasets."""
PROMPTS = "prompts.json"
"""In the directory of an evaluation: the table over several wordings of the question."""
PROBE = "linear_probe.json"
"""In the directory of an evaluation: what a linear probe gives on the same images."""
SUMMARY = "summary.json"

T = TypeVar("T")

_END_OF_YEAR_9999 = 253_402_300_800

_ROUNDING = 1e-9

Interval = tuple[Share, Share]
"""Both ends of a 95 % interval."""
Number = Annotated[int, Field(ge=1, le=2**53)]
"""Of a template or an order."""


def _rectangular(rows: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    if len({len(row) for row in rows}) > 1:
        raise ValueError("must have rows of one length")
    return rows


Confusion = Annotated[tuple[tuple[Count, ...], ...], AfterValidator(_rectangular)]
"""Counts: a row per label, a column per prediction."""


@dataclass(frozen=True)
class MetricsFile:
    """`metrics.json`, or one aspect of it; what the evaluation does not have is None."""

    num_samples: Count | None = None
    num_expected: Count | None = None
    num_correct: Count | None = None
    num_unparsable: Count | None = None
    coverage: Share | None = None
    accuracy: Share | None = None
    accuracy_ci95: Interval | None = None
    balanced_accuracy: Share | None = None
    macro_f1: Share | None = None
    weighted_f1: Share | None = None
    per_category: dict[str, CategoryMetrics] | None = None
    categories: tuple[str, ...] | None = None
    confusion: Confusion | None = None
    confusion_columns: tuple[str | None, ...] | None = None
    top2_accuracy: Share | None = None
    nll: float | None = None
    brier: float | None = None
    ece: Share | None = None
    calibration: tuple[CalibrationBin, ...] | None = None
    macro_f1_ci95: Interval | None = None
    nll_ci95: tuple[float, float] | None = None
    brier_ci95: tuple[float, float] | None = None
    ece_ci95: Interval | None = None
    distributions: DistributionMetrics | None = None
    num_in_split: Count | None = None
    num_quarantined: Count | None = None
    num_left_out: Count | None = None
    left_out: dict[str, Count] | None = None
    accuracy_of_split: Share | None = None
    accuracy_of_split_ci95: Interval | None = None
    majority_class: MajorityClass | None = None
    temperature_scaling: TemperatureScaling | None = None
    by_value: dict[str, dict[str, GroupAccuracy]] | None = None
    num_values: dict[str, Count] | None = None
    remark: str | None = None
    protocol: str | None = None
    """Digest of what was asked and how, whatever the images."""
    mean_accuracy: Share | None = None
    kind: Literal["closed", "open"] | None = None
    token_f1: Share | None = None
    per_aspect: Mapping[str, MetricsFile] | None = None
    stage: StageName | None = None
    target: str | None = None
    """`target.name`; None where it is the emotion."""
    dataset: str | None = None
    split: Split | None = None
    scoring: Scoring | None = None
    source: Source | None = None
    question: str | None = None
    layout: Layout | None = None
    quantization: Quantization | None = None
    """`vlm.quantization`; None where the language half was not quantized."""
    without: tuple[str, ...] | None = None
    """`evaluate.without`; None where nothing was left out."""
    category_map: dict[str, str] | None = None
    notes: tuple[str, ...] | None = None
    time: Annotated[float, Field(ge=0, lt=_END_OF_YEAR_9999)] | None = None
    """When it was written, in seconds since 1970."""
    lineage: dict[str, Json] | None = None

    @property
    def records_digest(self) -> str | None:
        """Digest of the `records.h5` that was written with it; None in files of earlier versions."""
        found = (self.lineage or {}).get("records")
        return found if isinstance(found, str) else None

    def numbers(self) -> dict[str, float]:
        """Every number of the file by its name, those of an aspect after the aspect's name."""
        found = {
            name: float(value)
            for name, value in vars(self).items()
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "time"
        }
        for name, ends in vars(self).items():
            if name.endswith("_ci95") and ends is not None:
                found |= {f"{name}_low": ends[0], f"{name}_high": ends[1]}
        for aspect, metrics in (self.per_aspect or {}).items():
            found |= {f"{aspect}/{name}": value for name, value in metrics.numbers().items()}
        return found

    def digests(self) -> dict[str, str]:
        """What it was made from, by digest, as far as the file says so."""
        lineage = self.lineage or {}
        wanted = {name: (name, "digest") for name in ("aspect", "soft_prompt", "dataset")}
        wanted |= {"vlm": ("vlm", "fingerprint"), "weights": ("vlm", "weights"), "cache": ("dataset", "cache")}
        wanted["questions"] = ("questions", "file")
        found = {}
        for name, (part, key) in wanted.items():
            inside = lineage.get(part)
            value = inside.get(key) if isinstance(inside, dict) else None
            if isinstance(value, str):
                found[name] = value
        return found | ({} if self.records_digest is None else {"records": self.records_digest})


@dataclass(frozen=True)
class DatasetRow:
    """One dataset of `datasets.json`."""

    num_samples: Count | None = None
    num_correct: Count | None = None
    accuracy: Share | None = None
    accuracy_ci95: Interval | None = None
    macro_f1: Share | None = None
    balanced_accuracy: Share | None = None
    category_map: dict[str, str] = field(default_factory=dict)
    """Category of the dataset -> category that was asked."""
    split: Split | None = None
    metrics: str | None = None
    """Its `metrics.json`, relative to the directory of `datasets.json`."""
    num_in_split: Count | None = None
    coverage: Share | None = None
    accuracy_of_split: Share | None = None
    """With images that were not scored counted as wrong."""

    def to_json(self) -> dict[str, Any]:
        """The row as `datasets.json` spells it."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class PromptRow:
    """One wording of the question."""

    template: Number
    """Its number in the questions file, from 1."""
    order: Number
    """1: the categories in their own order; others are other orders."""
    question: str
    accuracy: Share
    accuracy_ci95: Interval
    macro_f1: Share | None
    nll: float | None
    agreement: Share
    """Share of the images with the same prediction as with the first wording."""


@dataclass(frozen=True)
class PromptTable:
    """`prompts.json`."""

    num_samples: Count
    rows: dict[str, PromptRow]
    """Name of the wording -> its row; the first is the evaluation itself."""
    mean: Share
    """Of the accuracies."""
    spread: Annotated[float, Field(ge=0)]
    """Their standard deviation."""
    lowest: Share
    highest: Share
    agreement_of_pairs: Share
    """Mean over pairs of wordings: share of the images with the same prediction."""
    agreement_of_all: Share
    """Share of the images with the same prediction under every wording."""

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("must hold at least one wording")
        if not self.lowest <= self.mean + _ROUNDING <= self.highest + 2 * _ROUNDING:
            raise ValueError("must have a mean between lowest and highest")


@dataclass(frozen=True)
class ProbeFile:
    """`linear_probe.json`."""

    num_samples: Count
    num_correct: Count
    accuracy: Share
    accuracy_ci95: Interval
    num_train: Count
    """Training images that it was fitted on."""
    num_train_in_split: Count
    """Images of the training split, of a subset those that training sees."""
    data_digest: str
    """Of the images that were evaluated, see `masp.results.records.DataDigests`."""

    def __post_init__(self) -> None:
        if not self.num_samples or abs(self.accuracy - self.num_correct / self.num_samples) > _ROUNDING:
            raise ValueError("must have the accuracy num_correct / num_samples")


@dataclass(frozen=True)
class VariantRow:
    """One variant of `summary.json`."""

    accuracy: Share | None = None
    accuracy_ci95: Interval | None = None
    num_samples: Count | None = None


def write_metrics(path: Path, values: dict[str, Any]) -> None:
    """Write `metrics.json` with the digest of its content in `lineage`, which its reader checks.

    Raises:
        OSError: it cannot be written.
    """
    plain = as_json(values)
    digest = digest_of(plain)
    plain["lineage"]["digest"] = digest
    write_bytes(path, json.dumps(plain, indent=1).encode() + b"\n")


def write_object(path: Path, value: PromptTable | ProbeFile) -> None:
    """Write `prompts.json` or `linear_probe.json` with the digest of its content, which its reader checks.

    Raises:
        OSError: it cannot be written.
    """
    plain = as_json(dataclasses.asdict(value))
    write_bytes(path, json.dumps({**plain, "digest": digest_of(plain)}, indent=1).encode() + b"\n")


def write_rows(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `datasets.json` or `summary.json`; each row has the digest of its name and content, which readers check.

    Raises:
        OSError: it cannot be written.
    """
    plain = as_json(rows)
    sealed = {name: {**row, "digest": digest_of([name, row])} for name, row in plain.items()}
    write_bytes(path, json.dumps(sealed, indent=1).encode() + b"\n")


def read_metrics(path: Path, problems: list[str]) -> MetricsFile:
    """Read `metrics.json`.

    Args:
        path: File.
        problems: What is damaged is left out, and a line appended that says so.

    Raises:
        InputError: it may not be read. DataError: it is not a JSON object.
    """
    values = _read_object(path)
    lineage = values.get("lineage")
    # files of earlier versions have no digest
    if isinstance(lineage, dict) and (digest := lineage.pop("digest", None)) is not None and digest != _digest(values):
        raise _not_its_digest(path)
    return _metrics(values, str(path), problems)


def check_written_with(records: Path, digest: str) -> MetricsFile | None:
    """Refuse records that belong to another evaluation than the `metrics.json` beside them, as after copying one file.

    Args:
        records: `records.h5`.
        digest: Digest of its content.

    Returns:
        The metrics beside them; None if there are none.

    Raises:
        InputError: `metrics.json` may not be read. DataError: It is damaged, or was written with other records.
    """
    path = records.with_name(METRICS)
    if not is_file(path):
        return None
    metrics = read_metrics(path, [])
    if metrics.records_digest not in (None, digest):
        raise DataError(
            f"{records}: not the file that {METRICS} beside it was written with; delete both and run the same "
            "`masp evaluate` again, which writes them from the ledgers"
        )
    return metrics


def read_datasets(path: Path, problems: list[str]) -> dict[str, DatasetRow]:
    """Read `datasets.json`; arguments and errors as `read_metrics`."""
    return _rows(DatasetRow, path, problems)


def read_summary(path: Path, problems: list[str]) -> dict[str, VariantRow]:
    """Read `summary.json`; arguments and errors as `read_metrics`."""
    return _rows(VariantRow, path, problems)


def read_prompts(path: Path) -> PromptTable | None:
    """Read `prompts.json`; None if there is none.

    Raises:
        InputError: it may not be read. DataError: it is damaged.
    """
    return _read_object_of(PromptTable, path)


def read_probe(path: Path) -> ProbeFile | None:
    """Read `linear_probe.json`; results and errors as `read_prompts`."""
    return _read_object_of(ProbeFile, path)


def _read_object_of(kind: type[T], path: Path) -> T | None:
    if not is_file(path):
        return None
    values = _read_object(path)
    if values.pop("digest", None) != _digest(values):
        raise _not_its_digest(path)
    return decode(kind, json.dumps(values).encode(), str(path), surrogates=True)


def _rows(kind: type[T], path: Path, problems: list[str]) -> dict[str, T]:
    found = {}
    for name, row in _read_object(path).items():
        if not isinstance(row, dict):
            continue
        if (digest := row.pop("digest", None)) is not None and digest != _digest([name, row]):
            problems.append(f"{path}: {name}: its content is not that of its digest")
        else:
            found[name] = _lenient(kind, row, f"{path}: {name}", problems)
    return found


def _metrics(values: dict[str, Any], where: str, problems: list[str]) -> MetricsFile:
    metrics = _lenient(MetricsFile, values, where, problems, skip=("per_aspect",))
    per_aspect = values.get("per_aspect")
    if per_aspect is None:
        return metrics
    if not isinstance(per_aspect, dict):
        problems.append(f"{where}: per_aspect: must be an object")
        return metrics
    found = {}
    for aspect, entry in per_aspect.items():
        if isinstance(entry, dict):
            found[aspect] = _lenient(MetricsFile, entry, f"{where}: {aspect}", problems, skip=("per_aspect",))
        else:
            problems.append(f"{where}: per_aspect: {aspect} must be an object")
    return dataclasses.replace(metrics, per_aspect=found)


def _read_object(path: Path) -> dict[str, Any]:
    data = read_bytes(path)
    remedy = "delete it and run the command that writes it again"
    try:
        # a number that is not finite is left out with its key, not with the whole file
        value = parse_json(data or b"", finite=False)
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {all_lines(error)}; {remedy}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: not a JSON object; {remedy}")
    return value


def _not_its_digest(path: Path) -> DataError:
    return DataError(
        f"{path} is damaged: its content is not that of its digest; delete it and run the command that writes it again"
    )


def _digest(value: Any) -> str | None:
    """The digest of what was read; None if nothing that was written can be read like this."""
    try:
        return digest_of(value)
    except (ValueError, RecursionError):  # not finite
        return None


def _lenient(
    kind: type[T], values: Mapping[str, Any], where: str, problems: list[str], skip: tuple[str, ...] = ()
) -> T:
    """A dataclass of what is valid in `values`; unknown keys are ignored, and null is as good as missing.

    A report is for looking, and half of it is better than none.
    """
    found = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if name in skip or values.get(name) is None:
            continue
        try:
            text = json.dumps(values[name]).encode()
            found[name] = decode(_without_none(hint), text, f"{where}: {name}", surrogates=True)
        except DataError as error:
            problems.append(str(error))
    return kind(**found)


def _without_none(hint: Any) -> Any:
    """`int` of `int | None`."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    (only,) = [argument for argument in typing.get_args(hint) if argument is not types.NoneType]
    return only
