"""What a run took in the end, beside what was predicted."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

from masp.cache.layout import MANIFEST, shard_names, tar_path
from masp.cache.shard_state import finished_sidecar, read_manifest
from masp.extraction.progress import TIMINGS
from masp.plan.rates import STAGES, read_lines, read_metrics


def actual_cache(
    folder: Path, layout: dict | None, predicted_tars: dict[str, int], num_tokens: int, num_images: int
) -> dict | None:
    """A cache as it lies there.

    Args:
        folder: `cache.dir`.
        layout: of the folder, None if it has none.
        predicted_tars: name of each shard -> predicted bytes.
        num_tokens: predicted, all splits.
        num_images: with readable headers.

    Returns:
        Predicted and actual side by side, of the finished shards where extraction has not finished; None where nothing
        has been made yet.

    Raises:
        DataError: damaged. InputError: of another format version.
    """
    if layout is None:
        return None
    names = shard_names(layout)
    complete = (folder / MANIFEST).exists()
    if complete:
        manifest = read_manifest(folder)
        sizes = {shard["name"]: shard["bytes"] for shard in manifest["shards"]}
        splits = manifest["splits"].values()
        tokens, images = sum(s["num_tokens"] for s in splits), sum(s["num_samples"] for s in splits)
    else:
        sidecars = [sidecar for name in names if (sidecar := finished_sidecar(folder, name, layout))]
        sizes = {sidecar["name"]: os.stat(tar_path(folder, sidecar["name"])).st_size for sidecar in sidecars}
        samples = [sample for sidecar in sidecars for sample in sidecar["samples"]]
        tokens, images = sum(sample["num_tokens"] for sample in samples), len(samples)
    return {
        "complete": complete,
        "dtype": layout["model"]["dtype"],
        "num_shards": {"predicted": len(predicted_tars), "actual": len(sizes)},
        "bytes": {"predicted": sum(predicted_tars.get(n, 0) for n in sizes), "actual": sum(sizes.values())},
        "num_images": {"predicted": num_images if complete else None, "actual": images},
        "num_tokens": {"predicted": num_tokens if complete else None, "actual": tokens},
    }


def actual_extraction(folder: Path, images_per_s: float) -> dict | None:
    """How fast the images were encoded, all tasks in a row; None where no call left a note.

    Args:
        folder: `cache.dir`.
        images_per_s: predicted, of one GPU.
    """
    lines = read_lines(folder / TIMINGS, ("num_images", "seconds"))
    if not lines:
        return None
    actual = sum(line["num_images"] for line in lines) / sum(line["seconds"] for line in lines)
    return {"images_per_s": {"predicted": images_per_s, "actual": actual}}


def actual_stages(output_dir: str | Path, predicted: dict[str, dict]) -> dict:
    """Both stages as their logs tell.

    Args:
        output_dir: the run directory.
        predicted: per stage `images_per_s` and `tokens_per_image`.

    Returns:
        Stage -> predicted and actual side by side; stages without a log are left out.
    """
    found = {}
    for stage in STAGES:
        lines = read_metrics(Path(output_dir) / stage)
        if not lines:
            continue
        images_per_s = statistics.median(line["samples_per_second"] for line in lines)
        tokens = statistics.mean(line["tokens_per_second"] / line["samples_per_second"] for line in lines)
        actual = {"images_per_s": images_per_s, "tokens_per_image": tokens}
        found[stage] = {n: {"predicted": predicted[stage][n], "actual": actual[n]} for n in actual}
    return found
