"""From the columns of a source to what a dataset says of each image: split, category, aspects, distribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from masp.config.aspects import Aspect, Aspects
from masp.config.schema import DatasetConfig
from masp.data.answers import answer_text
from masp.data.findings import Finding, column_findings, examples
from masp.data.sample import NO_SPLIT, SPLITS, Label
from masp.data.sources.category_names import CategoryNames, category_names
from masp.data.sources.columns import Columns, choose_columns
from masp.data.sources.rows import Column, Header, Rows, RowSource, Value
from masp.data.sources.split_words import SPLIT_WORDS
from masp.errors import InputError
from masp.files.json_text import parse_json
from masp.files.text import nfc, shown

_MAX_VOTES = 1e12
"""Most votes of an image for a category: sums of larger numbers are not exact."""
_MANY_CATEGORIES = 20
"""So many different labels are suspicious if most images have one of their own."""
NO_LABEL = frozenset(("nan", "none", "null", "n/a", "na", "<na>"))
"""What programs write for a missing value, in lower case."""

Distributions = tuple[np.ndarray, list[tuple[float, ...] | None]]
"""Code of the distribution of each row `[N]`, and the different distributions."""


@dataclass
class LabeledRows:
    """Rows with what is known of them."""

    rows: Rows
    split: np.ndarray
    """`[N]` uint8, into `SPLITS`, or `NO_SPLIT`."""
    label: np.ndarray
    """`[N]` int32, into `labels`; -1 for an image that is left out."""
    labels: list[Label]
    categories: tuple[str, ...]
    findings: tuple[Finding, ...]


def read_labeled(
    source: RowSource, config: DatasetConfig, categories: tuple[str, ...] | None, aspects: Aspects
) -> LabeledRows:
    """Read all rows of a source and what it says of them.

    Args:
        source: The source.
        config: Section `dataset` of the configuration.
        categories: Valid categories, normalized; None takes those of the rows.
        aspects: Aspects that columns may hold.

    Raises:
        InputError: A column is missing, or a value in it is not valid; the message names row, column and value.
    """
    header = source.header()
    columns = choose_columns(header, config, source, aspects)
    rows = source.read(columns.wanted, columns.image, columns.identity)
    if not len(rows):
        raise InputError(f"dataset.root = {config.root!r}: these {source.kind} hold no image")
    split, findings = _splits(rows, columns, len(rows))
    found = _Labeling(rows, category_names(config, categories), header)
    codes, valid = found.categories(columns)
    answers = [(aspect, *found.answers(aspects[aspect], name)) for aspect, name in columns.aspects.items()]
    label, labels = _combined(codes, valid, answers, found.distributions)
    missing = tuple(aspect for aspect in aspects if aspect not in columns.aspects)
    findings = (*findings, *found.findings, *column_findings(columns.unused(header), missing))
    return LabeledRows(rows, split, label, labels, valid, findings)


def split_number(word: str, where: str | Callable[[], str]) -> int:
    """The split that a word means.

    Raises:
        InputError: None.
    """
    split = SPLIT_WORDS.get(word.strip().lower())
    if split is None:
        place = where if isinstance(where, str) else where()
        raise InputError(f"{place}: {shown(word)} does not name a split; valid are {', '.join(sorted(SPLIT_WORDS))}")
    return SPLITS.index(split)


def _splits(rows: Rows, columns: Columns, count: int) -> tuple[np.ndarray, tuple[Finding, ...]]:
    """The split of each row `[N]`. A column that only has a usual name may hold something else, such as numbers of
    folds, and then counts as absent."""
    column, name = (rows.columns[columns.split], columns.split) if columns.split else (rows.split_names, "")
    findings: tuple[Finding, ...] = ()
    if column is not None and name and not columns.split_is_named:
        odd = [value for value in column.values if not _is_blank(value) and not _is_split(value)]
        if odd:
            text = (
                f"column {shown(name)} is ignored, since {shown(odd[0])} in it does not name a split; "
                f"dataset.columns.split={name} requires that all its values do"
            )
            column, name, findings = rows.split_names, "", (Finding("names", text, len(odd)),)
    if column is None:
        return np.full(count, NO_SPLIT, dtype=np.uint8), findings

    def number(code: int, value: Value) -> int:
        if _is_blank(value):
            return NO_SPLIT
        return split_number(str(value), lambda: _first_place(rows, column, code, name))

    numbers = [number(code, value) for code, value in enumerate(column.values)]
    return np.array([*numbers, NO_SPLIT], dtype=np.uint8)[column.codes], findings


def _is_blank(value: Value) -> bool:
    return isinstance(value, str) and not value.strip()


def _is_split(value: Value) -> bool:
    return str(value).strip().lower() in SPLIT_WORDS


def _first_place(rows: Rows, column: Column, code: int, name: str) -> str:
    """Where a value stands first."""
    where = rows.where(int(np.argmax(column.codes == code)))
    return f"{where}: {name}" if name else where


class _Labeling:
    """Makes categories, answers and distributions of the values in columns."""

    def __init__(self, rows: Rows, names: CategoryNames, header: Header):
        self.rows, self.names, self.header = rows, names, header
        self.findings: list[Finding] = []
        self.distributions: Distributions | None = None

    def categories(self, columns: Columns) -> tuple[np.ndarray, tuple[str, ...]]:
        """The category of each row `[N]`, -1 if it is left out, and the categories."""
        if columns.distribution:
            return self._voted(columns)
        assert columns.label is not None
        return self._labeled(columns.label, ())

    def _labeled(self, name: str, voted: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
        """The category of each row `[N]`, -1 if it is left out, by a column of labels, and the categories: those that
        raters could vote for, then others that labels name, sorted."""
        column = self.rows.columns[name]
        meant = [self._meant(code, value, name, column) for code, value in enumerate(column.values)]
        present = {category for each in meant for category in each}
        valid = self.names.valid or (*voted, *sorted(present - set(voted)))
        numbers = {category: number for number, category in enumerate(valid)}
        several = [each for each in meant if len(each) > 1]
        if several:
            self.distributions = self._of_lists(meant, column, valid)
        first = [numbers[each[0]] if each else -1 for each in meant]
        codes = np.array([*first, -1], dtype=np.int32)[column.codes]
        self._left_out(codes, name)
        self._check_plausible(codes, name)
        return codes, valid

    def _check_plausible(self, codes: np.ndarray, name: str) -> None:
        """Say where values that hardly repeat are probably names or captions, and no labels."""
        used = codes[codes >= 0]
        count = len(np.unique(used))
        if self.names.valid is None and count >= _MANY_CATEGORIES and 2 * count > len(used):
            text = (
                f"the {len(used):,} images have {count:,} different labels in column {shown(name)}, which probably "
                "holds something else; dataset.columns.label names the column of the labels"
            )
            self.findings.append(Finding("labels", text, count, serious=True))

    def _meant(self, code: int, value: Value, name: str, column: Column) -> tuple[str, ...]:
        """The categories that a label means; none where its images are left out."""
        if isinstance(value, tuple):
            return tuple(dict.fromkeys(c for each in value for c in self._meant(code, each, name, column)))
        if isinstance(value, str) and (several := _listed(value)) is not None:
            return self._meant(code, several, name, column)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ()
        text = nfc(str(value).strip())
        if not text or (text.lower() in NO_LABEL and not self.names.has(text)):
            return ()
        if isinstance(value, bool) and self.names.translated is None:
            where = _first_place(self.rows, column, code, name)
            raise InputError(
                f"{where} = {shown(value)}: labels are true and false; dataset.label_names must say what they mean, "
                "for example dataset.label_names={true: joy, false: fear}"
            )
        known = self.header.label_names.get(name)
        if known is not None and isinstance(value, int):
            if value == -1:  # how `datasets` marks an image without label
                return ()
            if not 0 <= value < len(known):
                where = _first_place(self.rows, column, code, name)
                raise InputError(f"{where} = {value}: the file itself names only the labels 0 to {len(known) - 1}")
            text = known[value]
        category = self.names.of(text, lambda: _first_place(self.rows, column, code, name))
        return () if category is None else (category,)

    def _left_out(self, codes: np.ndarray, name: str) -> None:
        places = np.flatnonzero(codes < 0)
        if len(places) == len(codes):
            raise InputError(
                f"{self.rows.where(0)}: {name}: no image has a label, or dataset.label_names leaves all out"
            )
        if len(places):
            text = f"{len(places):,} of {len(codes):,} images have no label, or one that is left out; they are not used"
            shown_rows = examples(self.rows.where(int(row)) for row in places[:3])
            self.findings.append(Finding("labels", text, len(places), shown_rows, serious=2 * len(places) > len(codes)))

    def _of_lists(self, meant: Sequence[tuple[str, ...]], column: Column, valid: tuple[str, ...]) -> Distributions:
        """Several labels of an image as a distribution over them."""
        numbers = {category: number for number, category in enumerate(valid)}
        found: list[tuple[float, ...] | None] = []
        for each in meant:
            weights = [0.0] * len(valid)
            for category in each:
                weights[numbers[category]] = 1 / len(each)
            found.append(tuple(weights))
        return column.codes, found

    def _voted(self, columns: Columns) -> tuple[np.ndarray, tuple[str, ...]]:
        """Categories and distributions from the votes of raters."""
        meant = {name: self.names.of(name, lambda: "dataset.distribution") for name in columns.distribution}
        valid = self.names.valid or tuple(dict.fromkeys(c for c in meant.values() if c is not None))
        labeled = None
        if columns.label is not None:  # its labels may name categories that nobody could vote for
            labeled, valid = self._labeled(columns.label, valid)
        votes = np.zeros((len(self.rows), len(valid)))
        for name, category in meant.items():
            if category is not None:
                votes[:, valid.index(category)] += self._numbers(name)
        total = votes.sum(1)
        has_votes = total > 0
        shares = np.where(has_votes[:, None], votes, 1) / np.where(has_votes, total, len(valid))[:, None]
        best = shares.max(1)
        is_tied = has_votes & ((shares == best[:, None]).sum(1) > 1)
        codes = shares.argmax(1).astype(np.int32)
        if labeled is not None:
            codes = labeled
        else:
            codes[~has_votes | is_tied] = -1
            if (codes < 0).all():
                votes_of = ", ".join(columns.distribution)
                why = "are tied or have none" if has_votes.any() else "have none"
                raise InputError(
                    f"dataset.distribution = [{votes_of}]: no image can be used: by these columns all {len(codes):,} "
                    f"images {why}; the first one is {self.rows.where(0)}"
                )
            self._say_left_out(~has_votes, "nobody voted on")
            self._say_left_out(is_tied, "with as many votes for one category as for another")
        kinds, inverse = np.unique(shares, axis=0, return_inverse=True)
        inverse = np.where(has_votes, inverse.reshape(-1), len(kinds)).astype(np.int32)
        self.distributions = inverse, [*map(tuple, kinds.tolist()), None]
        return codes, valid

    def _say_left_out(self, which: np.ndarray, why: str) -> None:
        places = np.flatnonzero(which)
        if len(places):
            text = f"{len(places):,} of {len(which):,} images, {why}, are not used"
            self.findings.append(
                Finding("labels", text, len(places), examples(self.rows.where(int(row)) for row in places[:3]))
            )

    def _numbers(self, name: str) -> np.ndarray:
        """Votes or probabilities of a column `[N]`; none counts as 0."""
        column = self.rows.columns[name]
        found = [0.0] * (len(column.values) + 1)
        for code, value in enumerate(column.values):
            try:
                number = float(value) if isinstance(value, str | int | float) else -1.0
            except (ValueError, OverflowError):
                number = -1.0
            if not 0 <= number <= _MAX_VOTES:
                where = _first_place(self.rows, column, code, name)
                raise InputError(
                    f"{where} = {shown(value)}: must be a number of votes or a probability, from 0 to "
                    f"{_MAX_VOTES:,.0f}, or empty where nobody voted"
                )
            found[code] = number
        return np.array(found)[column.codes]

    def answers(self, aspect: Aspect, name: str) -> tuple[np.ndarray, list[str | None]]:
        """Code of the answer of each row `[N]`, and the answers; the last one is None."""
        column = self.rows.columns[name]
        found: list[str | None] = []
        for code, value in enumerate(column.values):
            try:
                found.append(answer_text(aspect, _annotated(aspect, value)))
            except ValueError as error:
                where = _first_place(self.rows, column, code, name)
                raise InputError(f"{where} = {shown(value)}: {error}, or be left out") from None
        return column.codes, [*found, None]


def _listed(text: str) -> tuple[str, ...] | None:
    """Several labels in the text of a table: those of a list of strings in JSON; None for any other text."""
    if not text.startswith("["):
        return None
    try:
        found = parse_json(text)
    except ValueError:
        return None
    return tuple(found) if isinstance(found, list) and all(isinstance(each, str) for each in found) else None


def _annotated(aspect: Aspect, value: Value) -> Any:
    """A value of a column as annotation files have it: tables know only text."""
    if isinstance(value, tuple):
        return list(value)
    if not isinstance(value, str):
        return value
    if aspect.kind == "level":
        try:
            return float(value)
        except ValueError:
            return value
    if aspect.kind == "list":
        if value.startswith("["):
            try:
                return parse_json(value)
            except ValueError:
                return [value]
        return [value]
    return value


def _combined(
    category: np.ndarray,
    valid: tuple[str, ...],
    aspects: Sequence[tuple[str, np.ndarray, list[str | None]]],
    distributions: Distributions | None,
) -> tuple[np.ndarray, list[Label]]:
    """The label of each row `[N]` and the different labels."""
    code = category.astype(np.int64) + 1
    kinds: list[tuple[int, ...]] = [(number,) for number in range(len(valid) + 1)]
    columns: list[tuple[np.ndarray, Sequence[object]]] = [(codes, answers) for _, codes, answers in aspects]
    for codes, values in [*columns, *([distributions] if distributions else [])]:
        size = len(values)
        mixed = code * size + np.where(codes < 0, size - 1, codes)
        found, code = np.unique(mixed, return_inverse=True)
        kinds = [(*kinds[each // size], each % size) for each in found.tolist()]
    labels: list[Label] = []
    numbers = np.full(len(kinds), -1, dtype=np.int32)
    for number, (place, *places) in enumerate(kinds):
        if place:
            texts = {
                aspect: answer
                for (aspect, _, answers), at in zip(aspects, places, strict=False)
                if (answer := answers[at]) is not None
            }
            shares = distributions[1][places[-1]] if distributions else None
            numbers[number] = len(labels)
            labels.append(Label(valid[place - 1], tuple(texts), tuple(texts.values()), shares))
    return numbers[code], labels
