"""Which column of a source holds what: named by the configuration, or by its usual name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from masp.config.aspects import Aspects
from masp.config.schema import DatasetConfig
from masp.data.findings import close_to
from masp.data.sources.rows import Header, RowSource
from masp.errors import InputError
from masp.files.text import shown

USUAL: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "img", "image_path", "file_name", "filename", "file", "path", "filepath", "file_path", "name"),
    "label": ("label", "emotion", "category", "class", "labels", "emotions", "emotion_category", "target", "cls"),
    "split": ("split", "subset", "partition", "usage", "set", "fold"),
}
"""The usual names of columns, in the order in which they are looked for."""


@dataclass(frozen=True)
class Columns:
    """Which column of a source holds what."""

    image: str | None
    label: str | None
    split: str | None
    identity: str | None
    aspects: dict[str, str]
    """Aspect -> column."""
    distribution: tuple[str, ...] = ()
    """Votes or probabilities, a column per category."""
    split_is_named: bool = False
    """Whether the configuration names the column of splits, which only its usual name says otherwise."""

    def unused(self, header: Header) -> list[str]:
        """The columns that hold none of this."""
        used = {self.image, self.label, self.split, self.identity, *self.aspects.values(), *self.distribution}
        return [name for name in header.columns if name not in used]

    @property
    def wanted(self) -> tuple[str, ...]:
        """Those whose values are needed."""
        named = (self.label, self.split, *self.aspects.values(), *self.distribution)
        return tuple(dict.fromkeys(name for name in named if name is not None))


def image_column(header: Header, named: str | None) -> str | None:
    """The column of images alone, as `choose_columns` finds it; None if there is none, or rows are images.

    Args:
        header: What the source says of itself.
        named: What the configuration calls it; another dataset's name, which this source does not have, counts as none.
    """
    usual = (name for wanted in USUAL["image"] for name in header.columns if name.lower() == wanted)
    own = named if named in header.columns else None
    return own or next(iter(header.image_columns), None) or next(usual, None)


def choose_columns(header: Header, config: DatasetConfig, source: RowSource, aspects: Aspects) -> Columns:
    """Which columns hold what: those that the configuration names, else those with the usual names.

    Raises:
        InputError: A named column is not there, or none can hold the images or the labels.
    """
    lower: dict[str, list[str]] = {}
    for name in header.columns:
        lower.setdefault(name.lower(), []).append(name)
    named = config.columns or {}
    for key, name in named.items():
        if name not in header.columns:
            raise InputError(f"dataset.columns.{key} = {shown(name)}: {_no_column(name, header, source)}")
    for name in config.distribution or ():
        if name not in header.columns:
            raise InputError(f"dataset.distribution = {config.distribution}: {_no_column(name, header, source)}")

    def called(name: str) -> str:
        found = lower[name]
        if len(found) > 1 and name not in found:
            raise InputError(
                f"dataset.root = {config.root!r}: these {source.kind} have the columns {shown(found[0])} and "
                f"{shown(found[1])}, which differ only in case; rename one to {name}"
            )
        return name if name in found else found[0]

    def usual(key: str) -> str | None:
        if key in named:
            return named[key]
        return next((called(name) for name in USUAL[key] if name in lower), None)

    image = named.get("image") or next(iter(header.image_columns), None) or usual("image")
    if image is None and not header.rows_are_images:
        raise InputError(
            f"dataset.root = {config.root!r}: no column of these {source.kind} seems to hold the images; name it, as "
            f"in dataset.columns.image={header.columns[0] if header.columns else 'file'}; {_there_are(header)}"
        )
    distribution = tuple(config.distribution or header.distribution)
    label = None if config.distribution and "label" not in named else usual("label") or header.label
    if label is None and not distribution:
        others = [name for name in header.columns if name != image]
        raise InputError(
            f"dataset.root = {config.root!r}: no column of these {source.kind} seems to hold the labels; name it, as "
            f"in dataset.columns.label={others[0] if others else 'emotion'}; {_there_are(header)}"
        )
    found = {
        aspect: named.get(aspect) or called(aspect.lower())
        for aspect in aspects
        if aspect in named or aspect.lower() in lower
    }
    return Columns(image, label, usual("split"), named.get("id"), found, distribution, "split" in named)


def _no_column(name: str, header: Header, source: RowSource) -> str:
    close = close_to(name, header.columns)
    meant = f"; did you mean {shown(close)}?" if close else ""
    return f"these {source.kind} have no column {shown(name)}; {_there_are(header)}{meant}"


def _there_are(header: Header) -> str:
    return f"there are {', '.join(header.columns)}" if header.columns else "there is none at all"
