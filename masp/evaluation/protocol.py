"""What an evaluation is, to whoever runs one: which records it needs, how they are scored, what is made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from masp.evaluation.feed import Feed, Item
from masp.results.ledger_format import Record
from masp.results.ledgers.table import RecordTable
from masp.vlm.language import LanguageHalf


class Evaluation(Protocol):
    """One question about every image of a split: the target, or its aspects."""

    what: str
    """What is counted: `samples`, `answers`, `prompts`."""
    feed: Feed
    identity: dict[str, Any]
    """What a score depends on, see `masp.results.ledger.Ledgers`."""
    images: Sequence[str]
    """Keys of the images."""
    notes: list[str]
    """What the user should know before anything is scored."""

    def keys_of(self, image: str) -> Sequence[str]:
        """Keys of the records that an image needs."""

    def load(self, device: str, language: LanguageHalf) -> object:
        """Get ready to score.

        Args:
            device: `cpu` or `cuda`.
            language: The VLM's language half, there.
        """

    def score(
        self, items: Sequence[Item], missing: Mapping[str, Sequence[str]]
    ) -> tuple[list[Record], Sequence[np.ndarray | None]]:
        """Score a batch of images.

        Args:
            items: The images.
            missing: Image -> keys of the records that it lacks.

        Returns:
            Those records, and the attention maps of each, `[A, height, width]`, or None; no maps unless they are asked
            for.
        """

    def problem(self, record: Record) -> str | None:
        """Why a record of an expected key cannot be one of this evaluation, as the end of a sentence.

        Raises:
            InputError: the image that it was scored from has changed.
        """

    def finish(self, records: RecordTable) -> Path:
        """Write `records.h5`, then what is computed from it, such as `metrics.json`; returns the latter.

        Args:
            records: All that the images need, in their order.

        Raises:
            DataError: attention maps are damaged.
        """
