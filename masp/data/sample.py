"""What a dataset is, once read."""

from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a dataset."""

    key: str
    """Its name in caches and ledgers, see `masp.data.keys`."""

    split: str
    """`train`, `val` or `test`."""

    image_path: Path
    """Where it lies. Nothing has looked into the file yet."""

    category: str
    """The emotion that it evokes."""

    answers: dict[str, str]
    """The answer text of every aspect that is annotated, for example `{"brightness": "very low"}`."""


@dataclass(frozen=True)
class Dataset:
    """A dataset that has been read: what there is, in an order that depends on nothing but the files' names."""

    name: str
    """`dataset.name` of the configuration."""

    root: Path
    """The dataset's folder."""

    categories: tuple[str, ...]
    """All categories, in the order in which questions list them."""

    samples: tuple[Sample, ...]
    """All images of all splits, sorted by key."""

    ignored: tuple[str, ...] = ()
    """Files and folders that are no part of the dataset, relative to the root, so that a command can name them."""

    notes: tuple[str, ...] = ()
    """What else the user should know, one line each."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One image as a layout lists it, before its key is made and its annotation read."""

    split: str
    """`train`, `val` or `test`."""

    relative_path: str
    """Its path as it enters the key, with `/` between folders."""

    image_path: Path
    """Where it lies."""

    category: str
    """The emotion, normalised."""

    annotation_path: Path | None
    """Where its annotation should lie, if the layout names one."""

    where: str
    """Where it is listed, for errors."""


@dataclass(frozen=True)
class Listing:
    """What a layout lists."""

    entries: list[Entry]
    """All images of all splits."""

    categories: tuple[str, ...]
    """The categories that the layout itself knows, in its order."""

    ignored: tuple[str, ...] = ()
    """See `Dataset.ignored`."""

    lists_annotations: bool = False
    """Whether an annotation path in an entry was written down by the author, so that its file must exist."""
