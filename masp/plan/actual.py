"""What a run took in the end, beside what was predicted."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from masp.cache.layout import MANIFEST, Layout
from masp.cache.manifest import read_manifest
from masp.cache.shard_state import Sidecar, finished_sidecars, keys_of, map_sidecars
from masp.data.sample import Dataset
from masp.extraction.progress import read_timings
from masp.files.regular import exists
from masp.plan.rates import STAGES, read_speeds
from masp.plan.work import StageEstimate
from masp.report.run_config import find_config


@dataclass(frozen=True)
class Comparison:
    """A number, predicted and actual."""

    predicted: float | None
    """None where what is actual is not finished, so that the two would not be of the same images."""
    actual: float


@dataclass(frozen=True)
class ActualCache:
    """A cache that exists, of its finished shards where extraction has not finished."""

    complete: bool
    """Whether extraction has finished."""
    dtype: str
    num_shards: Comparison
    bytes: Comparison
    """Bytes of the shards that are there."""
    num_images: Comparison
    num_tokens: Comparison


@dataclass(frozen=True)
class ActualExtraction:
    """The speed of extraction, all tasks one after another."""

    images_per_s: Comparison


@dataclass(frozen=True)
class ActualStage:
    """A stage as its log tells."""

    images_per_s: Comparison
    tokens_per_image: Comparison


@dataclass(frozen=True)
class Actual:
    """What is there already, beside the prediction."""

    cache: ActualCache | None
    """None where nothing has been extracted."""
    extract: ActualExtraction | None
    """None where no call left its timings."""
    stages: dict[str, ActualStage]
    """Stage -> its speed; stages without a log are left out."""


def is_of(directory: Path, layout: Layout | None, dataset: Dataset) -> bool:
    """Whether a cache was made from this dataset, which may have gained images since.

    Its name and categories say so, and the samples of a finished shard.

    Args:
        directory: Directory of the cache.
        layout: Layout of the cache; None if it has not been begun.
        dataset: The dataset of the configuration.

    Raises:
        DataError: The cache is damaged.
    """
    if layout is None or (layout.dataset, layout.categories) != (dataset.name, dataset.categories):
        return False
    sidecar = next(finished_sidecars(directory, layout), None)
    if sidecar is None:
        return True
    cached = set(keys_of(sidecar))
    return len(cached.intersection(dataset.samples.keys)) == len(cached)


def actual_cache(
    directory: Path, layout: Layout | None, predicted_tars: Mapping[str, int], num_tokens: int, num_images: int
) -> ActualCache | None:
    """Compare a cache with its prediction.

    Args:
        directory: `cache.dir`.
        layout: Layout of the cache, None if it has not been begun.
        predicted_tars: Name of each shard -> predicted bytes.
        num_tokens: Predicted vision tokens of all splits.
        num_images: Images with readable headers.

    Returns:
        Predicted and actual numbers; None where nothing has been extracted.

    Raises:
        DataError: The cache is damaged. InputError: It has another format version.
    """
    if layout is None:
        return None
    complete = exists(directory / MANIFEST)
    if complete:
        manifest = read_manifest(directory)
        sizes = {shard.name: shard.bytes for shard in manifest.shards}
        tokens, images = manifest.num_tokens, manifest.num_samples
    else:
        found = zip(layout.shard_names, map_sidecars(_sizes, directory, layout), strict=True)
        finished = {name: values for name, values in found if values is not None}
        sizes = {name: values[0] for name, values in finished.items()}
        tokens, images = (sum(values[place] for values in finished.values()) for place in (1, 2))
    return ActualCache(
        complete=complete,
        dtype=layout.model["dtype"],
        num_shards=Comparison(len(predicted_tars), len(sizes)),
        bytes=Comparison(sum(predicted_tars.get(name, 0) for name in sizes), sum(sizes.values())),
        num_images=Comparison(num_images if complete else None, images),
        num_tokens=Comparison(num_tokens if complete else None, tokens),
    )


def _sizes(sidecar: Sidecar) -> tuple[int, int, int]:
    """Bytes of the tar of a finished shard, tokens and samples."""
    return sidecar.tar.bytes, sum(sample.num_tokens for sample in sidecar.samples), len(sidecar.samples)


def actual_extraction(directory: Path, images_per_s: float) -> ActualExtraction | None:
    """Compare the speed of extraction with its prediction; None where no call left its timings.

    Args:
        directory: `cache.dir`.
        images_per_s: Predicted images per second of one GPU.
    """
    timings = read_timings(directory)
    if not timings:
        return None
    actual = sum(timing.num_images for timing in timings) / sum(timing.seconds for timing in timings)
    return ActualExtraction(Comparison(images_per_s, actual))


def actual_stages(
    output_dir: str | Path, predicted: Mapping[str, StageEstimate], dataset: Dataset
) -> dict[str, ActualStage]:
    """Compare the stages' logs with their predictions.

    Args:
        output_dir: Run directory.
        predicted: Stage -> its estimate.
        dataset: The dataset that they are for; logs of another one are left out.

    Returns:
        Stage -> predicted and actual numbers; stages without a log are left out.

    Raises:
        DataError: A log is damaged. InputError: It cannot be read.
    """
    found = {}
    for stage in STAGES:
        speeds = read_speeds(Path(output_dir) / stage)
        trained = find_config(Path(output_dir) / stage)
        others = trained.dataset_root and trained.dataset_root.resolve() != dataset.root.resolve()
        if not speeds or others:
            continue
        images_per_s = statistics.median(speed.samples_per_second for speed in speeds)
        tokens = statistics.mean(speed.tokens_per_second / speed.samples_per_second for speed in speeds)
        found[stage] = ActualStage(
            images_per_s=Comparison(predicted[stage].images_per_s, images_per_s),
            tokens_per_image=Comparison(predicted[stage].tokens_per_image, tokens),
        )
    return found
