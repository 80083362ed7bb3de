"""What is known about the dataset of a cache: `findings.json`, written when the cache is finished.

Extraction reads every byte of every image, so it can tell what no listing can: images that are there twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from masp.cache.annotations.manifest import read_stored
from masp.cache.layout import Layout
from masp.cache.manifest import Manifest, read_manifest
from masp.cache.merge import merge_sidecars
from masp.cache.reader import Cache
from masp.cache.shard_state import remedy
from masp.data.findings import (
    FILE,
    NO_ANNOTATIONS,
    DatasetRecord,
    Finding,
    Holdings,
    coverage_findings,
    load_findings,
    save_findings,
)
from masp.data.sample import Dataset
from masp.errors import DataError


def record_findings(
    directory: Path, layout: Layout, dataset: Dataset, more: Sequence[Finding] | None = None
) -> DatasetRecord:
    """Write what the dataset holds and what is to be known about it; deterministic for a dataset and its cache.

    Args:
        directory: Directory of the finished cache.
        layout: Its layout.
        dataset: The dataset that it was made from.
        more: What the bytes of the images show, if the sidecars have been merged just now.
    """
    if more is None:
        more = merge_sidecars(directory, layout).content_findings()
    record = dataset.record(read_manifest(directory).dataset.digest, more)
    save_findings(directory, record)
    return record


def read_findings(directory: Path, manifest: Manifest) -> DatasetRecord | None:
    """What extraction found out about the dataset; None if it was not recorded for this state of the cache.

    Raises:
        DataError: Damaged.
        InputError: It may not be read.
    """
    try:
        record = load_findings(directory)
    except DataError as error:
        raise DataError(f"{error}; {remedy(directory)}") from None
    return record if record is not None and record.dataset == manifest.dataset.digest else None


def present_findings(directory: Path, manifest: Manifest) -> DatasetRecord | None:
    """As `read_findings`, but what is said about missing annotations is what is true with the stored answers.

    Raises:
        As `read_findings`.
    """
    record, stored = read_findings(directory, manifest), read_stored(directory)
    answered = [name for name, found in stored.items() if found.num_answers]
    if record is None or not answered:
        return record
    people = record.holdings
    # of a stored answer no split is known here, and people's counts stay as they are
    both = Holdings(
        people.categories, {s: {**dict.fromkeys(answered, 1), **found} for s, found in people.aspects.items()}
    )
    before, after = (_aspect_findings(manifest, holdings) for holdings in (people, both))
    kept = [f for f in record.findings if f not in before and f.text != NO_ANNOTATIONS]
    return replace(record, findings=(*kept, *after))


def _aspect_findings(manifest: Manifest, holdings: Holdings) -> list[Finding]:
    """Which aspects are absent, as listing a dataset with these holdings finds it."""
    defined = manifest.answer_forms or ()
    return [f for f in coverage_findings(holdings, manifest.categories, defined) if f.kind == "aspects"]


def findings_of(cache: Cache) -> DatasetRecord | None:
    """As `present_findings`, with the images counted by the labels that the cache was opened with, and the subset that
    training sees."""
    record = present_findings(cache.directory, cache.manifest)
    if record is not None and cache.labels is not None:
        record = cache.labels.record(record, cache.splits, cache.index.split)
    return record if record is None or cache.subset is None else cache.subset.record(record)


__all__ = ["FILE", "findings_of", "present_findings", "read_findings", "record_findings"]
