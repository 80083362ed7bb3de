"""The plan of a run: reads headers and settings, predicts, compares with what is there already."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masp.cache.layout import read_layout
from masp.config import Config
from masp.data.datasets import Dataset, dataset_of
from masp.data.findings import Finding, Holdings
from masp.data.image_files.stored import Location
from masp.data.splits.subset import subset_of
from masp.data.target.find_labels import label_dataset
from masp.data.target.labels import Labels
from masp.errors import InputError
from masp.plan.actual import Actual, actual_cache, actual_extraction, actual_stages, is_of
from masp.plan.annotation import AnnotationEstimate, estimate_annotation
from masp.plan.disk import PRECISIONS, Space, check_space, index_bytes, shard_contents, tar_sizes
from masp.plan.evaluation import EvaluationEstimate, estimate_evaluation, evaluation_rate, evaluation_work
from masp.plan.headers.memory import memory_path
from masp.plan.headers.reading import read_sizes
from masp.plan.levers import Lever, pixel_levers
from masp.plan.measure import measure_rates
from masp.plan.prospects import obstacles, prospect_findings
from masp.plan.rates import DEFAULT_TFLOPS, DEFAULT_UTILIZATION, Rates, rates_of_run, stated_rates
from masp.plan.tokens import PlannedImages, TokenStatistics, Words, count_words, plan_images, tally, token_statistics
from masp.plan.work import (
    Alternative,
    ExtractionEstimate,
    StageEstimate,
    estimate_extraction,
    estimate_live_stage,
    estimate_stage,
    extraction_flops,
    stage1_work,
    stage2_work,
    without_cache,
)
from masp.vlm.cost.counting import encoder_curve, known_encoder, language_cost
from masp.vlm.cost.flops import Encoder, Language
from masp.vlm.families import load_config, num_deep_maps, resolve_directory
from masp.vlm.preprocessor import Preprocessor, load_preprocessor
from masp.vlm.processor import blank

NUM_BROKEN_SHOWN = 10
MAX_PROCESSES = 1024


@dataclass(frozen=True)
class DatasetFacts:
    """The dataset that the plan is for."""

    name: str
    root: str
    notes: tuple[str, ...]
    """What the user should know about it."""
    findings: tuple[Finding, ...]
    """The same with counts and examples."""
    holdings: Holdings
    """Images per split and category, and per split and aspect."""
    obstacles: dict[str, str]
    """Stage -> why it cannot be trained as configured; empty where all can."""
    target: str
    """`target.name`: what the categories are of."""


@dataclass(frozen=True)
class BrokenImage:
    """An image whose header cannot be read, or shows that extraction will refuse it."""

    path: str
    reason: str


@dataclass(frozen=True)
class SplitFacts:
    """The images of one split."""

    num_images: int
    num_broken: int
    tokens: TokenStatistics | None
    """None where every header is broken."""


@dataclass(frozen=True)
class ImageFacts:
    """The images of the dataset."""

    num_images: int
    num_broken: int
    max_bad_fraction: float
    """`extract.max_bad_fraction`."""
    broken: tuple[BrokenImage, ...]
    """The first of them."""
    splits: dict[str, SplitFacts]


@dataclass(frozen=True)
class Range:
    """The smallest and the largest of some sizes."""

    min: int
    max: int


@dataclass(frozen=True)
class CachePlan:
    """The cache that extraction will make, or would make if there were to be one."""

    dir: str | None
    """`cache.dir`; None where features are computed live."""
    dtype: str
    hidden_size: int
    bytes: int
    """Bytes of all shards."""
    index_bytes: int
    """Bytes of index and sidecars, about."""
    bytes_by_precision: dict[str, int]
    num_shards: int
    shard_bytes: Range


@dataclass(frozen=True)
class Plan:
    """What a run will take; `masp plan` prints it."""

    dataset: DatasetFacts
    vlm: str
    """Directory of the VLM."""
    images: ImageFacts
    tokens: TokenStatistics
    cache: CachePlan
    space: Space | None
    """None without a cache, which nothing is written to."""
    extract: ExtractionEstimate
    """Without a cache: what it would take."""
    stages: dict[str, StageEstimate]
    evaluate: EvaluationEstimate
    annotate: AnnotationEstimate | None
    """None where the VLM need not annotate anything before stage 1."""
    flops_estimated: bool
    """Whether the VLM's operations could not be counted, so that its number of weights stands for them."""
    text_tokens_counted: bool
    """Whether text tokens were counted with the VLM's own tokenizer rather than estimated."""
    without_cache: dict[str, Alternative]
    levers: tuple[Lever, ...]
    actual: Actual

    def to_dict(self) -> dict[str, Any]:
        """Return what `masp plan --json` prints."""
        found = dataclasses.asdict(self)
        if self.space is not None:
            found["space"] |= {"fits": self.space.fits, "verdict": self.space.verdict}
        return found


def make_plan(
    config: Config,
    *,
    tflops: float = DEFAULT_TFLOPS,
    utilization: float = DEFAULT_UTILIZATION,
    rate_from: str | None = None,
    measure: int | None = None,
    num_processes: int | None = None,
) -> Plan:
    """Predict what a run will take.

    Only image sizes are written, to the user's cache directory; no weights are loaded unless `measure` is given.

    Args:
        config: Run configuration.
        tflops: Peak of one GPU in TFLOP/s.
        utilization: Share of the peak that is reached.
        rate_from: `output_dir` of an earlier run whose rates to take.
        measure: Time encoder and training on this many images here.
        num_processes: Number of processes that read headers; None for a default.

    Raises:
        InputError: Settings, dataset or VLM are unusable, or no image can be read. DataError: What a run has left
            already is damaged.
    """
    rates = stated_rates(tflops, utilization)
    rates = rates_of_run(rate_from, rates) if rate_from else rates
    if measure is not None and measure < 1:
        raise InputError(f"--measure {measure}: must be at least 1")
    if num_processes is not None and not 1 <= num_processes <= MAX_PROCESSES:
        raise InputError(f"--processes {num_processes}: must be from 1 to {MAX_PROCESSES}")

    found = survey(config, num_processes, weights=measure is not None)
    config, images, broken, language = found.config, found.images, found.broken, found.language
    vision = known_encoder(load_config(Path(config.vlm.path))) or encoder_curve(
        config.vlm.path,
        ((p.amount, p.size) for p, _ in tally(images)),
        lambda *size: found.preprocessor(blank(*size)),
    )
    train = images.for_training(config.dataset)
    words = count_words(config, train.samples, found.seen.categories)
    if measure is not None:
        rates = measure_rates(config, vision, language, words, train or images, measure, rates, found.seen.categories)
    seen = found.seen
    if found.labels is not None:
        seen = dataclasses.replace(seen, findings=(*seen.findings, *found.labels.findings))
    return _predict(config, found.dataset, seen, images, broken, vision, language, words, rates)


@dataclass(frozen=True)
class Survey:
    """What the headers of the images and the settings say of a run."""

    config: Config
    """The configuration, with the directory of the VLM."""
    dataset: Dataset
    seen: Dataset
    """The dataset as the target sees it."""
    labels: Labels | None
    """Labels of the target, where they are not those of the dataset."""
    images: PlannedImages
    """Images whose headers can be read, with the labels of the target."""
    broken: list[tuple[Location, str]]
    """The others, each with the reason."""
    language: Language
    preprocessor: Preprocessor


def survey(config: Config, num_processes: int | None = None, weights: bool = False) -> Survey:
    """Read what a plan is made from: settings, the VLM's configuration, and image headers.

    Args:
        config: Run configuration.
        num_processes: Number of processes that read headers; None for a default.
        weights: Whether the VLM's weights must be there.

    Raises:
        InputError: Settings, dataset or VLM are unusable, or no image can be read. DataError: The dataset is damaged.
    """
    directory = resolve_directory(config.vlm.path, weights=weights)
    config = dataclasses.replace(config, vlm=dataclasses.replace(config.vlm, path=str(directory)))
    # what cannot work is refused before headers are read
    language = language_cost(directory)
    preprocessor = load_preprocessor(config.vlm.path, config.vlm.min_pixels, config.vlm.max_pixels)
    dataset = dataset_of(config)
    seen, labels = label_dataset(config, dataset)
    max_side = config.vlm.max_side
    sizes, broken = read_sizes(dataset.samples.images, max_side, num_processes, memory_path(dataset.root, max_side))
    images, refused = plan_images(dataset.samples, sizes, preprocessor, num_processes)
    broken += refused
    if not images:
        why = f"; {broken[0][0]}: {broken[0][1]}" if broken else ""
        raise InputError(f"dataset.root: {dataset.root} holds no image that can be read{why}")
    return Survey(config, dataset, seen, labels, images.with_labels(labels), broken, language, preprocessor)


def _predict(
    config: Config,
    dataset: Dataset,
    seen: Dataset,
    images: PlannedImages,
    broken: Sequence[tuple[Location, str]],
    vision: Encoder,
    language: Language,
    words: Words,
    rates: Rates,
) -> Plan:
    hidden, dtype = language.width, config.cache.dtype
    num_deep = num_deep_maps(load_config(Path(config.vlm.path)))
    train = images.for_training(config.dataset)
    directory = None if config.cache.dir is None else Path(config.cache.dir)
    layout = None if directory is None else read_layout(directory)
    is_same = directory is not None and is_of(directory, layout, dataset)
    subset = subset_of(config.dataset, images.samples)
    findings = (*seen.findings, *(subset.findings if subset else ()), *prospect_findings(config, seen))
    if layout is not None and not is_same:
        text = (
            f"cache.dir: {config.cache.dir} holds features of another dataset, which the prediction is not compared "
            "with; extraction will refuse it: give another cache.dir"
        )
        findings, layout = (*findings, Finding("cache", text, 1, serious=True)), None
    shards = shard_contents(dataset.samples, images, config.cache.num_shards, layout)
    tars = tar_sizes(images, shards, hidden, dtype, num_deep)
    tokens = token_statistics(images)
    flops = extraction_flops(vision, images)
    extract = estimate_extraction(flops, len(images), rates.extract)
    mean_bytes = sum(tars.values()) / len(images)
    works = {
        "stage1": stage1_work(config, language, words, train),
        "stage2": stage2_work(config, language, words, train.labeled()),
    }
    used = {"stage1": train.with_answers(config.aspects), "stage2": train.labeled()}
    stages = {
        name: estimate_stage(work, getattr(rates, name), mean_bytes)
        if directory is not None
        else estimate_live_stage(
            work, getattr(rates, name), extraction_flops(vision, used[name]), len(used[name]), rates.extract
        )
        for name, work in works.items()
    }
    scoring = evaluation_work(config, vision, language, images, seen.categories)
    scoring_rate = evaluation_rate(config, rates, works, stages)
    return Plan(
        dataset=DatasetFacts(
            name=dataset.name,
            root=str(dataset.root),
            notes=tuple(map(str, findings)),
            findings=findings,
            holdings=seen.holdings,
            obstacles=obstacles(config, seen),
            target=config.target.name,
        ),
        vlm=config.vlm.path,
        images=_image_facts(config, dataset, images, broken),
        tokens=tokens,
        cache=CachePlan(
            dir=config.cache.dir,
            dtype=dtype,
            hidden_size=hidden,
            bytes=sum(tars.values()),
            index_bytes=index_bytes(images),
            bytes_by_precision={p: sum(tar_sizes(images, shards, hidden, p, num_deep).values()) for p in PRECISIONS},
            num_shards=len(tars),
            shard_bytes=Range(min(tars.values()), max(tars.values())),
        ),
        space=None if directory is None else check_space(directory, sum(tars.values()) + index_bytes(images)),
        extract=extract,
        stages=stages,
        evaluate=estimate_evaluation(config, scoring, scoring_rate, rates.extract, mean_bytes),
        annotate=estimate_annotation(config, language, images, scoring_rate),
        flops_estimated=any(getattr(half, "is_estimate", False) for half in (vision, language)),
        text_tokens_counted=words.counted,
        without_cache={
            "per_aspect_and_epoch": without_cache(config, vision, train, flops, rates.extract, per_aspect=True),
            "per_image_and_epoch": without_cache(config, vision, train, flops, rates.extract, per_aspect=False),
        },
        levers=tuple(pixel_levers(config, vision, images, shards, hidden, num_deep)),
        actual=Actual(
            cache=None if directory is None else actual_cache(directory, layout, tars, tokens.total, len(images)),
            extract=actual_extraction(directory, extract.images_per_s) if directory is not None and is_same else None,
            stages=actual_stages(config.output_dir, stages, dataset),
        ),
    )


def _image_facts(
    config: Config, dataset: Dataset, images: PlannedImages, broken: Sequence[tuple[Location, str]]
) -> ImageFacts:
    splits = {}
    for name in dataset.holdings.categories:
        readable = images.in_split(name)
        total = dataset.holdings.num_images(name)
        splits[name] = SplitFacts(total, total - len(readable), token_statistics(readable) if readable else None)
    return ImageFacts(
        num_images=len(dataset.samples),
        num_broken=len(broken),
        max_bad_fraction=config.extract.max_bad_fraction,
        broken=tuple(BrokenImage(str(path), reason) for path, reason in broken[:NUM_BROKEN_SHOWN]),
        splits=splits,
    )
