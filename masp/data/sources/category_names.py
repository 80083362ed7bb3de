"""From labels, as a dataset writes them, to its categories."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from masp.config.schema import DatasetConfig
from masp.config.yaml_text import read_yaml
from masp.data.findings import look_alike
from masp.errors import InputError
from masp.files.text import shown
from masp.files.typed import is_text
from masp.taxonomy import normalize_category

_MAX_LENGTH = 255
"""Longest category, in characters: as long as names of directories may be."""
_WHOLE = re.compile(r"^([+-]?\d+)\.0*$")


@dataclass(frozen=True)
class CategoryNames:
    """Which categories there are, and which labels mean which."""

    valid: tuple[str, ...] | None
    """Categories, normalized; None where the dataset itself says which there are."""

    translated: Mapping[str, str | None] | None = None
    """Label, normalized, -> category; None for a label whose images are left out. None: labels are categories."""

    def has(self, label: str) -> bool:
        """Whether the configuration or the name of the dataset gives a label by itself."""
        return normalize_category(label) in (self.valid or ()) or _key(label) in (self.translated or {})

    def of(self, label: str, where: Callable[[], str]) -> str | None:
        """The category that a label means; None where its images are left out.

        Args:
            label: As the dataset writes it.
            where: Names its place in errors.

        Raises:
            InputError: It means no category of this dataset.
        """
        category = normalize_category(label)
        if self.translated is not None:
            if _key(label) not in self.translated:
                raise InputError(
                    f"{where()}: {shown(label)}: dataset.label_names does not have this label; it has "
                    f"{', '.join(self.translated)}; null leaves the images of a label out"
                )
            translated = self.translated[_key(label)]
            if translated is None:
                return None
            category = normalize_category(translated)
        elif self.valid is None and is_number(category):
            raise InputError(
                f"{where()} = {shown(label)}: labels are numbers; dataset.label_names must say what they mean, for "
                f"example dataset.label_names={{{category}: joy}}"
            )
        if not category or not is_text(category):
            raise InputError(f"{where()}: {shown(label)} is not a category: must be text that names one")
        if len(category) > _MAX_LENGTH:
            raise InputError(
                f"{where()}: {shown(label)} is not a category: must have at most {_MAX_LENGTH} characters, not "
                f"{len(category):,}; perhaps another column holds the labels (dataset.columns.label)"
            )
        if self.valid is not None and category not in self.valid:
            raise InputError(
                f"{where()}: {shown(category)} is not a category of this dataset; valid are {', '.join(self.valid)} "
                f"(dataset.name chooses the set, dataset.categories sets another one, dataset.label_names translates)"
                f"{did_you_mean(category, self.valid)}"
            )
        return category


def category_names(config: DatasetConfig, valid: tuple[str, ...] | None) -> CategoryNames:
    """The names that the configuration gives.

    Args:
        config: Section `dataset` of the configuration.
        valid: Valid categories, normalized; None takes those of the dataset.

    Raises:
        InputError: `dataset.label_names` is a file that cannot be read, is not such a mapping, is empty, or gives one
            label two categories.
    """
    names = config.label_names
    if names is None:
        return CategoryNames(valid)
    where = "dataset.label_names"
    if isinstance(names, str):
        where = names
        names = read_yaml(Path(where))[0]
        for label, category in names.items():
            if category is not None and not isinstance(category, str):
                raise InputError(f"{where}: {label} = {shown(category)}: must be a category, or null to leave it out")
    if not names:
        raise InputError(f"{where}: is empty; must say what labels mean, as in {{0: joy, 1: fear}}")
    translated: dict[str, str | None] = {}
    written: dict[str, object] = {}
    for label, category in names.items():
        key = _key(str(label))
        meant = None if category is None else normalize_category(category)
        if key in translated and translated[key] != meant:
            raise InputError(
                f"{where}: {shown(written[key])} and {shown(label)} are the same label, but mean {translated[key]} and "
                f"{meant}; leave one out"
            )
        translated[key], written[key] = meant, label
    return CategoryNames(valid, translated)


def is_number(label: str) -> bool:
    """Whether a label is a number, also an infinite one or none (`nan`)."""
    try:
        float(label)
    except ValueError:
        return False
    return True


def _key(label: str) -> str:
    """The form in which labels are compared: normalized, and without the `.0` that tables add to whole numbers."""
    return _WHOLE.sub(r"\1", normalize_category(label))


def did_you_mean(category: str, categories: Sequence[str]) -> str:
    """What to add to an error about a category that is not valid; may be empty."""
    close = look_alike(category, categories) or difflib.get_close_matches(category, categories, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
