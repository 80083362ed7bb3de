"""Images that look nearly alike in two splits: resized, cropped a little or compressed again, so no digest tells.

A perceptual hash of 64 bits per image, from the library imagehash, which is an optional requirement.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from masp.cache.findings import read_findings
from masp.cache.manifest import read_manifest
from masp.config import Config
from masp.config.feature_source import cache_directory
from masp.data.datasets import dataset_of
from masp.data.findings import DatasetRecord, Finding, examples, save_findings
from masp.data.image_files.stored import Location
from masp.data.images import UnreadableImage, load_image
from masp.data.sample import Sample
from masp.errors import InputError
from masp.files.text import reason
from masp.runtime.process_pool import process_pool

MAX_BITS = 4
"""Bits of 64 in which two images that look alike may differ."""
_CHUNKS = MAX_BITS + 1
"""Hashes that differ in at most 4 bits agree in at least one of 5 runs of bits, by which candidates are found."""
_SIDE = 256
"""Longer side to which images are brought before they are hashed."""


def record_near_duplicates(config: Config) -> DatasetRecord:
    """Compare the images of all splits by their looks, and add what is found to the cache's `findings.json`.

    Args:
        config: Configuration of the cache; reads images with `extract.num_workers` processes.

    Raises:
        InputError: imagehash is not installed, the cache is not finished, or its findings were not recorded.
    """
    if importlib.util.find_spec("imagehash") is None:
        raise InputError(
            "--near-duplicates: imagehash is not installed; install it with `pip install masp[duplicates]`"
        )
    directory = cache_directory(config)
    record = read_findings(directory, read_manifest(directory))
    if record is None:
        raise InputError(f"cache.dir: {directory}: findings were not recorded; run `masp extract` again, which does so")
    samples = dataset_of(config).samples
    hashes, is_known = _hashes(samples, config.extract.num_workers)
    readable = [sample for sample, known in zip(samples, is_known, strict=True) if known]
    pairs = list(near_pairs(readable, hashes[is_known]))
    found = [*(f for f in record.findings if f.kind != "near duplicates"), *_findings(pairs)]
    record = replace(record, findings=tuple(found), near_duplicates=True)
    try:
        save_findings(directory, record)
    except OSError as error:
        raise InputError(f"cache.dir: {directory} cannot be written: {reason(error)}") from None
    return record


def _hashes(samples: Sequence[Sample], num_workers: int) -> tuple[np.ndarray, np.ndarray]:
    """The hash of each image as bits `[N, 64]`, and which images could be read `[N]`."""
    images = [sample.image for sample in samples]
    bar = tqdm(total=len(images), desc="looks", unit="img", disable=not sys.stderr.isatty())
    found = []
    if num_workers:
        with process_pool(num_workers, "extract.num_workers", "compares images") as pool:
            for bits in pool.map(_hash, images, chunksize=64):
                found.append(bits)
                bar.update()
    else:
        for image in images:
            found.append(_hash(image))
            bar.update()
    bar.close()
    known = np.array([bits is not None for bits in found], dtype=bool)
    return np.array([np.zeros(64, bool) if bits is None else bits for bits in found]).reshape(-1, 64), known


def _hash(image: Location) -> np.ndarray | None:
    import imagehash

    try:
        bits = imagehash.phash(load_image(image, _SIDE)).hash.reshape(64)
    except UnreadableImage:  # in quarantine
        return None
    return bits if 8 <= bits.sum() <= 56 else None  # of plain areas, which all look alike


def near_pairs(samples: Sequence[Sample], bits: np.ndarray) -> Iterator[tuple[Sample, Sample]]:
    """Pairs of images in different splits whose hashes differ in at most `MAX_BITS` bits, in the order of keys.

    Args:
        samples: The images.
        bits: Their hashes, bool `[N, 64]`.
    """
    seen: set[tuple[int, int]] = set()
    for chunk in np.array_split(np.arange(64), _CHUNKS):
        groups: dict[bytes, list[int]] = {}
        for i, packed in enumerate(np.packbits(bits[:, chunk], axis=1)):
            groups.setdefault(packed.tobytes(), []).append(i)
        for group in groups.values():
            for place, i in enumerate(group):
                others = np.array(group[place + 1 :], dtype=np.int64)
                close = others[(bits[others] ^ bits[i]).sum(1) <= MAX_BITS] if len(others) else others
                seen.update((i, int(j)) for j in close if samples[i].split != samples[int(j)].split)
    for i, j in sorted(seen):
        yield samples[i], samples[j]


def _findings(pairs: Sequence[tuple[Sample, Sample]]) -> list[Finding]:
    if not pairs:
        return []
    involved = {sample.key for pair in pairs for sample in pair if sample.split != "train"}
    torn = sum(one.category != other.category for one, other in pairs)
    text = (
        f"{len(involved):,} images look nearly like one of another split (at most {MAX_BITS} of 64 bits of a "
        f"perceptual hash differ); {torn:,} of {len(pairs):,} such pairs have two categories"
    )
    shown = examples(f"{one.key} ~ {other.key}" for one, other in pairs)
    return [Finding("near duplicates", text, len(involved), shown, serious=True)]
