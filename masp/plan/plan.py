"""`masp plan`: read headers and settings, predict, compare with what is there already."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from masp.cache.layout import read_layout
from masp.config import Config
from masp.data.datasets import Dataset, read_dataset
from masp.errors import InputError
from masp.plan.actual import actual_cache, actual_extraction, actual_stages
from masp.plan.disk import PRECISIONS, check_space, index_bytes, shard_contents, tar_sizes
from masp.plan.headers import read_sizes
from masp.plan.levers import pixel_levers, plan_images, token_statistics
from masp.plan.measure import measure_rates
from masp.plan.rates import DEFAULT_TFLOPS, DEFAULT_UTILISATION, Rates, rates_of_run, stated_rates
from masp.plan.render import render
from masp.plan.text_tokens import count_words
from masp.plan.work import extraction_flops, stage1_work, stage2_work, without_cache
from masp.vlm.families import load_config, resolve_folder
from masp.vlm.flops import shapes
from masp.vlm.vision import load_preprocessor

NUM_BROKEN_SHOWN = 10


def plan(
    config: Config,
    *,
    tflops: float = DEFAULT_TFLOPS,
    utilisation: float = DEFAULT_UTILISATION,
    rate_from: str | None = None,
    measure: int | None = None,
    num_processes: int | None = None,
    as_json: bool = False,
) -> dict:
    """Print what a run will take; nothing is written, no weights are loaded unless `measure` is given.

    Args:
        config: of the run.
        tflops, utilisation: see `masp.plan.rates.stated_rates`.
        rate_from: `output_dir` of an earlier run whose rates to take.
        measure: time encoder and training on so many images here.
        num_processes: that read headers; None for a default.
        as_json: print the result as JSON instead of text.

    Returns:
        The result: counts, bytes, FLOP, hours; predicted and actual side by side where there is something already.

    Raises:
        InputError: settings, dataset or VLM are unusable, or no image can be read.
    """
    result = make_plan(
        config,
        tflops=tflops,
        utilisation=utilisation,
        rate_from=rate_from,
        measure=measure,
        num_processes=num_processes,
    )
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        print(render(result))
    return result


def make_plan(
    config: Config,
    *,
    tflops: float = DEFAULT_TFLOPS,
    utilisation: float = DEFAULT_UTILISATION,
    rate_from: str | None = None,
    measure: int | None = None,
    num_processes: int | None = None,
) -> dict:
    """What `plan` prints; see there."""
    rates = stated_rates(tflops, utilisation)
    rates = rates_of_run(rate_from, rates) if rate_from else rates
    if measure is not None and measure < 1:
        raise InputError(f"--measure {measure}: must be at least 1")

    folder = resolve_folder(config.vlm.path, weights=measure is not None)
    config = dataclasses.replace(config, vlm=dataclasses.replace(config.vlm, path=str(folder)))
    # what cannot work is refused before headers are read
    vision, language = shapes(load_config(folder))
    preprocessor = load_preprocessor(config.vlm.path, config.vlm.min_pixels, config.vlm.max_pixels)
    dataset = read_dataset(config.dataset)
    sizes, broken = read_sizes([s.image_path for s in dataset.samples], config.vlm.max_side, num_processes)
    images = plan_images(dataset.samples, sizes, preprocessor)
    if not images:
        why = f"; {broken[0][0]}: {broken[0][1]}" if broken else ""
        raise InputError(f"dataset.root: {dataset.root} holds no image that can be read{why}")
    train = [p for p in images if p.sample.split == "train"]
    words = count_words(config, [p.sample for p in train], dataset.categories)
    if measure is not None:
        rates = measure_rates(config, vision, language, words, train or images, measure, rates)
    return _result(config, dataset, images, broken, (vision, language), words, rates)


def _result(config: Config, dataset: Dataset, images: list, broken: list, shape: tuple, words, rates: Rates) -> dict:
    vision, language = shape
    hidden, dtype = language.width, config.cache.dtype
    train = [p for p in images if p.sample.split == "train"]
    layout = read_layout(Path(config.cache.dir))
    shards = shard_contents(dataset.samples, images, config.cache.num_shards, layout)
    tars = tar_sizes(shards, hidden, dtype)
    tokens = token_statistics(images)
    extraction = extraction_flops(vision, images)
    splits = {}
    for name in dict.fromkeys(sample.split for sample in dataset.samples):
        chosen = [p for p in images if p.sample.split == name]
        total = sum(sample.split == name for sample in dataset.samples)
        splits[name] = {
            "num_images": total,
            "num_broken": total - len(chosen),
            "tokens": token_statistics(chosen) if chosen else None,
        }
    stages = {}
    for stage, work in (
        ("stage1", stage1_work(config, language, words, train)),
        ("stage2", stage2_work(config, language, words, train)),
    ):
        rate = getattr(rates, stage)
        hours = rate.hours(work.flops, work.tokens)
        seen = work.num_images * work.num_epochs
        per_s = seen / (hours * 3600) if hours else 0.0
        mean_bytes = sum(tars.values()) / len(images)
        stages[stage] = {
            "num_images": work.num_images,
            "num_sequences": work.num_rows,
            "num_epochs": work.num_epochs,
            "tokens_per_image": work.tokens_per_epoch / work.num_images if work.num_images else 0.0,
            "flops_per_image": work.flops_per_epoch / work.num_images if work.num_images else 0.0,
            "flops": work.flops,
            "hours": hours,
            "images_per_s": per_s,
            "reads_bytes_per_s": per_s * mean_bytes,
            "rate": dataclasses.asdict(rate),
        }
    hours = rates.extract.hours(extraction, 0.0)
    alternatives = {}
    for name, per_aspect in (("per_aspect_and_epoch", True), ("per_image_and_epoch", False)):
        other = without_cache(config, vision, train, extraction, per_aspect)
        alternatives[name] = {
            "encoder_flops": other.flops,
            "encoder_hours": rates.extract.hours(other.flops, 0.0),
            "pays_after_epochs": other.pays_after_epochs,
        }
    space = check_space(config.cache.dir, sum(tars.values()) + index_bytes(images))
    return {
        "dataset": {"name": dataset.name, "root": str(dataset.root), "notes": list(dataset.notes)},
        "vlm": config.vlm.path,
        "images": {
            "num_images": len(dataset.samples),
            "num_broken": len(broken),
            "max_bad_fraction": config.extract.max_bad_fraction,
            "broken": [{"path": str(path), "reason": reason} for path, reason in broken[:NUM_BROKEN_SHOWN]],
            "splits": splits,
        },
        "tokens": tokens,
        "cache": {
            "dir": config.cache.dir,
            "dtype": dtype,
            "hidden_size": hidden,
            "bytes": sum(tars.values()),
            "index_bytes": index_bytes(images),
            "bytes_by_precision": {p: sum(tar_sizes(shards, hidden, p).values()) for p in PRECISIONS},
            "num_shards": len(tars),
            "shard_bytes": {"min": min(tars.values()), "max": max(tars.values())},
        },
        "space": {**dataclasses.asdict(space), "fits": space.fits, "verdict": space.verdict()},
        "extract": {
            "flops_per_image": extraction / len(images),
            "flops": extraction,
            "hours": hours,
            "images_per_s": len(images) / (hours * 3600),
            "rate": dataclasses.asdict(rates.extract),
        },
        "stages": stages,
        "text_tokens_counted": words.counted,
        "without_cache": alternatives,
        "levers": pixel_levers(config, vision, shards, hidden),
        "actual": {
            "cache": actual_cache(Path(config.cache.dir), layout, tars, tokens["total"], len(images)),
            "extract": actual_extraction(Path(config.cache.dir), len(images) / (hours * 3600)),
            "stages": actual_stages(config.output_dir, stages),
        },
    }
