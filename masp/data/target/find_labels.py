"""Where the labels of a target come from: the dataset, an annotated aspect, or a table beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard

import numpy as np

from masp.config import Config
from masp.config.aspects import load_aspects
from masp.config.schema import TargetConfig
from masp.data.answer_table import AnswerTable
from masp.data.findings import Finding, examples
from masp.data.image_files.paths import path_inside
from masp.data.keys import path_of
from masp.data.sample import Dataset
from masp.data.sources.category_names import did_you_mean, is_number
from masp.data.sources.labels import NO_LABEL
from masp.data.sources.rows import Value
from masp.data.sources.table import EXTENSIONS, table_columns, table_rows
from masp.data.target.labels import NONE, Labels, relabeled, relabeled_findings
from masp.errors import InputError
from masp.files.text import nfc, shortened, shown
from masp.files.typed import is_text
from masp.taxonomy import normalize_category

_KEY = "target.labels"


@dataclass(frozen=True)
class DatasetImages:
    """The images of a cache or dataset as the dataset labels them, in their order. `N` images, `C` categories."""

    keys: Sequence[str]
    """Sample keys."""
    categories: tuple[str, ...]
    category: np.ndarray
    """`[N]` integers, into `categories`."""
    distribution: np.ndarray | None
    """`[N, C]` probabilities of the categories, zeros where an image has none; None if no image has one."""
    answers: Callable[[], AnswerTable]
    """Reads what people annotated."""
    where: str
    """The setting that names them and its value, for errors."""

    @staticmethod
    def of(dataset: Dataset) -> DatasetImages:
        """Those of a dataset, in the order of its samples."""
        samples, table = dataset.samples, dataset.samples.table
        number = {category: place for place, category in enumerate(dataset.categories)}
        label = table.label[samples.rows]
        nothing = (0.0,) * len(dataset.categories)
        shares = [each.distribution for each in table.labels]
        some = any(each is not None for each in shares)
        return DatasetImages(
            samples.keys,
            dataset.categories,
            np.array([number[each.category] for each in table.labels], dtype=np.int32)[label],
            np.array([each or nothing for each in shares])[label] if some else None,
            lambda: AnswerTable.of([sample.answers for sample in samples]),
            f"dataset.root: {dataset.root}",
        )


@dataclass(frozen=True)
class _Given:
    """Labels before any are left out."""

    names: Sequence[str]
    """The different labels, normalized."""
    code: np.ndarray
    """`[N]` integers, into `names`; `NONE` for an image without a label."""
    findings: tuple[Finding, ...] = ()


def labels_source(target: TargetConfig) -> str:
    """Where the labels of a target come from, in words."""
    if target.labels is None:
        return "dataset"
    return f"table {Path(target.labels).name}" if is_table(target.labels) else f"aspect {target.labels}"


def is_table(labels: str | None) -> TypeGuard[str]:
    """Whether `target.labels` names a table."""
    return labels is not None and labels.lower().endswith(EXTENSIONS)


def with_a_label(target: TargetConfig) -> str:
    """What to add to an error that there is no image; empty where every image has a label."""
    every = target.labels is None and target.categories is None
    return "" if every else f" that target {target.name} has a label for"


def find_labels(config: Config, images: DatasetImages) -> Labels | None:
    """The labels of the target; None where the configuration says nothing of them, so that the dataset's count.

    Args:
        config: Run configuration.
        images: The images.

    Raises:
        InputError: `target.labels` is neither an aspect with answers nor a table with labels of these images, an image
            has two labels, no image has one of `target.categories`, or all labels are the same.
    """
    target = config.target
    if target.labels is None and target.categories is None:
        return None
    if target.labels is None:
        given = _Given(images.categories, images.category)
    elif is_table(target.labels):
        given = _of_table(Path(target.labels), images, target.categories or ())
    else:
        given = _of_aspect(config, target.labels, images)
    present = {given.names[code] for code in np.unique(given.code).tolist() if code != NONE}
    categories = _categories(config, given.names, present)
    number = {name: place for place, name in enumerate(categories)}
    category = np.array([*(number.get(name, NONE) for name in given.names), NONE], dtype=np.int32)[given.code]
    distribution = images.distribution if target.labels is None else None
    if distribution is not None:
        distribution = _restricted(distribution, [images.categories.index(name) for name in categories])
    findings = (*given.findings, *_left_out(config, given.code, category), *_shown_by_aspect(config))
    return Labels(categories, category, distribution, findings)


def label_dataset(config: Config, dataset: Dataset) -> tuple[Dataset, Labels | None]:
    """A dataset with the labels of the target, and these; None and the dataset as it is where its own count.

    Images without a label stay, with the category "".

    Raises:
        InputError: See `find_labels`.
    """
    labels = find_labels(config, DatasetImages.of(dataset))
    if labels is None:
        return dataset, None
    seen = replace(dataset, categories=labels.categories, samples=relabeled(dataset.samples, labels))
    return replace(seen, findings=relabeled_findings(seen.findings, seen.holdings, seen.categories)), labels


def _categories(config: Config, names: Sequence[str], present: set[str]) -> tuple[str, ...]:
    """The categories of the target, in their order."""
    target = config.target
    if target.categories is not None:
        found = tuple(normalize_category(name) for name in target.categories)
        setting = f"target.categories = {shown(target.categories)}"
        if absent := [name for name in found if name not in present]:
            raise InputError(
                f"{setting}: no image has the label {shown(absent[0])}{did_you_mean(absent[0], sorted(present))}; "
                f"there are {shown(', '.join(sorted(present)))}"
            )
    else:
        found, setting = tuple(sorted(present)), f"{_KEY} = {shown(target.labels)}"
    if len(found) < 2:
        raise InputError(
            f"{setting}: {'no label' if not found else f'{shown(found[0])} alone'}, but a target needs two or more "
            "categories"
        )
    return found


def _left_out(config: Config, before: np.ndarray, after: np.ndarray) -> list[Finding]:
    """How many images the target leaves out, and why."""
    without, count = int((before == NONE).sum()), int((after == NONE).sum())
    if not count:
        return []
    why = [f"{without:,} have no label"] * bool(without)
    why += [f"{count - without:,} have a label that is not in target.categories"] * (count > without)
    text = f"target {config.target.name}: {count:,} of {len(after):,} images are left out: {' and '.join(why)}"
    return [Finding("labels", text, count, serious=2 * count > len(after))]


def _shown_by_aspect(config: Config) -> list[Finding]:
    """That an aspect module is trained on the labels of the target, where one is."""
    target, others = config.target, [name for name in config.aspects if name != config.target.labels]
    if len(others) == len(config.aspects) or config.checkpoint.aspect == "none":
        return []
    text = (
        f"target {target.name}: its labels are the answers to aspect {target.labels}, which is in aspects too: stage 1 "
        "trains that aspect module on the labels of the training images, so the prompt of stage 2 already says the "
        f"answer; leave it out with aspects=[{','.join(others)}]"
    )
    return [Finding("labels", text, 1, serious=True)]


def _restricted(distribution: np.ndarray, columns: Sequence[int]) -> np.ndarray:
    """Some columns of distributions `[N, C]`, each row divided by its sum."""
    found = distribution[:, columns]
    sums = found.sum(axis=1, keepdims=True)
    return np.divide(found, sums, out=np.zeros_like(found), where=sums > 0)


def _of_aspect(config: Config, name: str, images: DatasetImages) -> _Given:
    """The annotated answers of an aspect as labels."""
    columns = images.answers().columns
    if name not in columns:
        annotated = ", ".join(columns) or "none"
        raise InputError(
            f"{_KEY} = {shown(name)}: not an aspect that images in {images.where} are annotated with "
            f"({shown(annotated)}), nor a table ({', '.join(EXTENSIONS)}){did_you_mean(name, sorted(columns))}"
        )
    aspect = load_aspects(config.aspect_definitions).get(name)
    if aspect is not None and aspect.kind == "list":
        raise InputError(
            f"{_KEY} = {shown(name)}: its answers name several things at once, and a label is one category; give a "
            f"table ({', '.join(EXTENSIONS)}) or another aspect"
        )
    column = columns[name]
    return _Given([normalize_category(text) for text in column.texts], column.numbers)


def _of_table(path: Path, images: DatasetImages, categories: Sequence[str]) -> _Given:
    """The labels in a table."""
    columns = table_columns(path)
    name = next((each for each in ("key", "image") if each in columns), None)
    if name is None or "label" not in columns:
        raise InputError(
            f"{_KEY}: {path}: must have the columns key (sample keys) or image (paths in the dataset), and label; "
            f"has {shown(', '.join(columns))}"
        )
    row_of = _rows_by_key(images.keys) if name == "key" else _rows_by_path(images.keys)
    named = frozenset(normalize_category(category) for category in categories)
    numbers: dict[str, int] = {}
    code = np.full(len(images.keys), NONE, dtype=np.int32)
    line_of: dict[int, int] = {}
    unknown: list[str] = []
    count = 0
    for line, row in table_rows(path, {name, "label"}):
        count += 1
        where = f"{_KEY}: {path} line {line}"
        image = _image(row.get(name), f"{where}: {name}", is_path=name == "image")
        label = _label(row.get("label"), f"{where}: label", named)
        place = row_of.get(image)
        if place is None:
            unknown.append(image)
            continue
        if place == _SEVERAL:
            raise InputError(
                f"{where}: {name} = {shown(image)}: several images have this path; put the split in front, as in "
                f"train/{shortened(image)}"
            )
        if label is None:
            continue
        number = numbers.setdefault(label, len(numbers))
        if line_of.setdefault(place, line) != line and code[place] != number:
            other = shown(list(numbers)[code[place]])
            raise InputError(
                f"{where}: {shown(image)} has the label {shown(label)}, but {other} in line {line_of[place]}; an image "
                "has one label"
            )
        code[place] = number
    return _Given(list(numbers), code, tuple(_unknown(path, name, unknown, count, images)))


_SEVERAL = -2
"""Instead of the place of an image: the path of several, in different splits."""


def _rows_by_key(keys: Sequence[str]) -> dict[str, int]:
    return {key: row for row, key in enumerate(keys)}


def _rows_by_path(keys: Sequence[str]) -> dict[str, int]:
    """The place of each image by its path, with and without the split in front."""
    found: dict[str, int] = {}
    for row, key in enumerate(keys):
        path = nfc(path_of(key))  # a table may spell a name in another Unicode form than the file system
        for name in (path, f"{key.partition('/')[0]}/{path}"):
            found[name] = row if name not in found else _SEVERAL
    return found


def _image(value: Value, where: str, is_path: bool) -> str:
    """What a row of a table names an image by."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: must name an image, not {'empty' if value is None else shown(value)}")
    text = value.strip()
    return text if not is_path else nfc(path_inside(text, absolute=True) or text)


def _label(value: Value, where: str, categories: frozenset[str]) -> str | None:
    """The label in a row of a table, normalized; None where there is none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    label = normalize_category(value) if isinstance(value, str) and is_text(value) else ""
    if label in categories:
        return label
    if not label or (is_number(label) and label not in NO_LABEL):
        raise InputError(f"{where} = {shown(value)}: must be the words of one category, which the VLM is to answer")
    return None if label in NO_LABEL else label


def _unknown(path: Path, name: str, unknown: Sequence[str], count: int, images: DatasetImages) -> list[Finding]:
    """Images that a table names and that do not exist; an error if no row names one that does."""
    if len(unknown) == count:
        first = images.keys[0]
        like = first if name == "key" else path_of(first)
        named = f", such as {shown(unknown[0])}" if unknown else ""
        raise InputError(
            f"{_KEY}: {path}: none of its {count:,} rows names an image in {images.where}{named}; {name} must be as in "
            f"{shown(like)}"
        )
    if not unknown:
        return []
    text = f"{len(unknown):,} of {count:,} rows of {path} name no image that can be read"
    return [Finding("labels", text, len(unknown), examples(unknown), serious=2 * len(unknown) > count)]
