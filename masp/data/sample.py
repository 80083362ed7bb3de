"""Samples, datasets, and how a layout lists them."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from masp.data.findings import DatasetRecord, Finding, Holdings, Ignored, holdings_of

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a dataset."""

    key: str
    """Sample key, its name in caches and ledgers; see `masp.data.keys`."""

    split: str
    """`train`, `val` or `test`."""

    image_path: Path
    """Path of the image file, which has not been opened yet."""

    category: str
    """The emotion that it evokes."""

    answers: dict[str, str]
    """Aspect -> answer text, of every aspect that is annotated, for example `{"brightness": "very low"}`."""


@dataclass(frozen=True)
class Dataset:
    """A dataset that has been read: what there is, in an order that depends on nothing but the files' names."""

    name: str
    """`dataset.name` of the configuration."""

    root: Path
    """Directory of the dataset."""

    categories: tuple[str, ...]
    """All categories, in the order in which questions list them."""

    samples: tuple[Sample, ...]
    """All images of all splits, sorted by key."""

    ignored: tuple[str, ...] = ()
    """Files and directories that are not part of the dataset, relative to the root, sorted."""

    findings: tuple[Finding, ...] = ()
    """What the user should know about it."""

    @cached_property
    def holdings(self) -> Holdings:
        """How many images of what there are."""
        return holdings_of(self.samples)

    def record(self, digest: str = "", more: Iterable[Finding] = ()) -> DatasetRecord:
        """What `findings.json` says of it: the same wherever the dataset is.

        Args:
            digest: Digest of the dataset, if it is known.
            more: What is known beside `findings`.
        """
        start = f"{self.root}{os.sep}"
        findings = tuple(
            replace(f, text=f.text.replace(start, ""), examples=tuple(e.replace(start, "") for e in f.examples))
            for f in (*self.findings, *more)
        )
        return DatasetRecord(1, digest, self.holdings, findings)


@dataclass(frozen=True, slots=True)
class Entry:
    """One image as a layout lists it, before its key is made and its annotation read."""

    split: str
    """`train`, `val` or `test`."""

    relative_path: str
    """Its path as it enters the key, with `/` between directories."""

    image_path: Path
    """Path of the image file."""

    category: str
    """The emotion, normalized."""

    annotation_path: Path | None
    """Path that its annotation should have, if the layout gives one."""

    where: str
    """Where it is listed, for errors."""


@dataclass(frozen=True)
class Listing:
    """What a layout lists."""

    entries: list[Entry]
    """All images of all splits."""

    categories: tuple[str, ...]
    """The categories that the layout itself knows, in its order."""

    ignored: tuple[Ignored, ...] = ()
    """What is not part of the dataset."""

    findings: tuple[Finding, ...] = ()
    """What the layout itself shows."""

    lists_annotations: bool = False
    """Whether an annotation path in an entry was written down by the author, so that its file must exist."""
