"""What is known about the dataset of a cache: `findings.json`, written when the cache is finished.

Extraction reads every byte of every image, so it can tell what no listing can: images that are there twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from masp.cache.layout import Layout
from masp.cache.manifest import Manifest, read_manifest
from masp.cache.merge import merge_sidecars
from masp.cache.reader import Cache
from masp.cache.shard_state import remedy
from masp.data.findings import FILE, DatasetRecord, Finding, load_findings, save_findings
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


def findings_of(cache: Cache) -> DatasetRecord | None:
    """As `read_findings`, with the images counted by the labels that the cache was opened with."""
    record = read_findings(cache.directory, cache.manifest)
    if record is None or cache.labels is None:
        return record
    return cache.labels.record(record, cache.splits, cache.index.split)


__all__ = ["FILE", "findings_of", "read_findings", "record_findings"]
