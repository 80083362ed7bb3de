"""What evaluation scores, from the cache or live from the images: keys, labels, and features in batches."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from masp.cache.fingerprint import differences
from masp.files.sealed import digest_of
from masp.results.ledger import read_machines


@dataclass(frozen=True)
class Item:
    """One sample to score."""

    key: str
    label: str
    features: Tensor
    """`[T, D]`."""
    grid: tuple[int, int, int]
    answers: dict[str, str]
    """Aspect -> answer, where annotated."""
    aspect_tokens: Tensor | None = None
    """`[A, N, D]` where `cache.aspect_tokens` reads them."""
    source: tuple[int, int] | None = None
    """Bytes and modification time (ns) of the image file that was read live."""


@dataclass
class Feed:
    """The samples of a split, in the order of their keys, and a way to their features."""

    keys: list[str]
    labels: list[str]
    """Category of each, one of `categories`."""
    categories: tuple[str, ...]
    model: dict[str, Any]
    """Model part of the fingerprint of the features."""
    machine: dict[str, Any]
    """Machine part."""
    hidden_size: int
    data_digest: str
    """Digest of keys, labels and, from the cache, of what the features are made of."""
    num_quarantined: int
    """Images of the split that extraction could not read, which are not evaluated."""
    source: Any
    live: bool = False
    """Whether features are computed from the images now; otherwise they come from the cache."""

    def batches(self, keys: Sequence[str], batch_size: int) -> Generator[list[Item]]:
        """Features of some samples, similar lengths together. Close it: it may hold worker processes."""
        return self.source.batches(keys, batch_size)

    @property
    def live_machine(self) -> dict[str, Any] | None:
        """The machine part where features are made here and now, for the ledger; the cache has its own."""
        return self.machine if self.live else None

    def answers(self) -> Iterator[tuple[str, str, dict[str, str]]]:
        """Key, split and answers of every image of the dataset, all splits."""
        return self.source.answers()

    def check_unchanged(self, key: str, source: Sequence[int] | None) -> None:
        """Refuse what was scored from another file than the one that is there now; from the cache, nothing to do.

        Args:
            key: of an image.
            source: `Item.source` when it was scored.

        Raises:
            InputError: the image has changed.
        """
        self.source.check_unchanged(key, source)

    def notes(self) -> list[str]:
        """What whoever reads the results should know about the samples."""
        if not self.num_quarantined:
            return []
        images = "image of the split is" if self.num_quarantined == 1 else "images of the split are"
        return [f"{self.num_quarantined} {images} in quarantine, which extraction could not read: not evaluated"]


def source_of(item: Item) -> dict[str, Any]:
    """What a record says about the image file that it was made from; nothing from the cache."""
    return {} if item.source is None else {"source": list(item.source)}


def machines_of(feed: Feed, ledgers: Path) -> list[dict[str, Any]]:
    """The machine parts of the features that all ledgers were made from: one from the cache, any number live."""
    return read_machines(ledgers) or [feed.machine]


def mixed_notes(machines: Sequence[dict[str, Any]]) -> list[str]:
    """How machines that made features of one evaluation differ; rounding, so it is said and no error."""
    found = {
        name: list(dict.fromkeys(repr(machine.get(name)) for machine in machines))
        for other in machines[1:]
        for name, _, _ in differences(machines[0], other)
    }
    return [f"features come from different machines: {name} was {', '.join(v)}" for name, v in found.items()]


def data_of(feed: Any) -> dict[str, str]:
    """By which two evaluations know whether they scored the same pictures.

    Returns:
        `data_digest`: of keys, labels and features, live of keys and labels alone; `made_by`: digest of what made the
        features, empty where they were made live. Only digests of features that were made alike can be compared.
    """
    cached = hasattr(feed.source, "cache")
    return {
        "data_digest": feed.data_digest,
        "made_by": digest_of({"model": feed.model, "machine": feed.machine}) if cached else "",
    }
