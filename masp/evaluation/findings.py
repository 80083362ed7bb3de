"""What `metrics.json` says beside the metrics: of which images they are, what a guess gives, calibration, aspects."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np

from masp.cache.fingerprint import fingerprint_digest
from masp.config import Config
from masp.data.answer_table import NONE
from masp.errors import MaspError
from masp.evaluation.feed import Feed
from masp.evaluation.prompts import VALIDATION
from masp.files.sealed import digest_file, digest_of
from masp.results.breakdown import MajorityClass, SplitCounts, ValueGroups, few_predicted, majority_class
from masp.results.ledger_format import Record
from masp.results.ledgers.table import RecordTable
from masp.results.metrics import Metrics
from masp.results.metrics_file import METRICS, check_written_with, read_metrics
from masp.results.probabilities.distributions import MEASURES
from masp.results.probabilities.temperature import TemperatureScaling, calibration, fit_temperature, is_at_limit
from masp.results.records import FILE, read_records_file
from masp.runtime.versions import software
from masp.taxonomy import Split
from masp.vlm.families import resolve_directory


def count_split(feed: Feed, means: Mapping[str, str]) -> SplitCounts:
    """The images of a split and what is not scored of them.

    Args:
        feed: The images.
        means: Category of the dataset -> category that is asked; others are left out.
    """
    left_out: dict[str, int] = {}
    for label in feed.labels:
        if label not in means:
            left_out[label] = left_out.get(label, 0) + 1
    return SplitCounts(len(feed.keys) - sum(left_out.values()), feed.num_quarantined, left_out)


def left_out_notes(split: SplitCounts) -> list[str]:
    """How many images `evaluate.category_map` leaves out."""
    if not split.left_out:
        return []
    each = ", ".join(f"{category} {count:,}" for category, count in sorted(split.left_out.items()))
    return [f"{split.num_left_out:,} of {split.num_in_split:,} images are left out by evaluate.category_map: {each}"]


def largest_category(feed: Feed, split: str, means: Mapping[str, str], metrics: Metrics) -> MajorityClass:
    """What always answering the largest category of the training split would give.

    Without a training split, the largest category of the split itself counts.
    """
    counts: dict[str, int] = {}
    source = "train"
    for name in ("train", split):
        for category, count in feed.category_counts(name).items():
            if category in means:
                counts[means[category]] = counts.get(means[category], 0) + count
        if counts:
            source = name
            break
    labels = {category: values.support for category, values in metrics.per_category.items()}
    return majority_class(counts, source, labels, metrics.categories)


def target_findings(
    feed: Feed,
    directory: Path,
    identity: Mapping[str, Any],
    split_name: str,
    split: SplitCounts,
    means: Mapping[str, str],
    metrics: Metrics,
    records: Sequence[Record],
) -> dict[str, Any]:
    """All of it, as `metrics.json` spells it.

    Args:
        feed: The images.
        directory: Directory of the evaluation.
        identity: What a score depends on.
        split_name: Name of the split.
        split: Its images.
        means: Category of the dataset -> category that is asked.
        metrics: Metrics of the records.
        records: One per image that is scored, in the order of the feed.
    """
    protocol = protocol_of(identity)
    per_category = metrics.per_category
    table = RecordTable.of(records)
    groups = value_groups(feed, zip(table.keys, table.is_right.tolist(), strict=True))
    return {
        **split.to_json(),
        **split.shares(metrics.num_samples, metrics.num_correct),
        "majority_class": asdict(largest_category(feed, split_name, means, metrics)),
        "remark": few_predicted(
            {category: values.num_predicted for category, values in per_category.items()},
            {category: values.support for category, values in per_category.items()},
        ),
        "temperature_scaling": asdict(_temperature_scaling(feed, directory, protocol, split_name, metrics, table)),
        "by_value": groups.to_json(),
        "num_values": groups.num_values(),
        "protocol": protocol,
    }


def cited(config: Config, feed: Feed, questions: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What a paper has to name of an evaluation, beside what was trained: for `lineage` in `metrics.json`.

    Args:
        config: Run configuration.
        feed: The images.
        questions: The target, or each aspect -> all its templates; evaluation asks the first.
    """
    directory = resolve_directory(config.vlm.path)
    is_snapshot = directory.parent.name == "snapshots"  # a hub name, in the cache of huggingface_hub
    counts = {split: sum(feed.category_counts(split).values()) for split in get_args(Split)}
    if feed.subset is not None:
        counts["train"] = feed.subset.num_in_split
    splits = {
        split: {"num_images": count, "num_quarantined": feed.quarantined.get(split, 0)}
        for split, count in counts.items()
        if count or feed.quarantined.get(split)
    }
    return {
        "vlm": {
            "path": config.vlm.path,
            "revision": directory.name if is_snapshot else None,
            "weights": feed.model["weights"],
            "fingerprint": fingerprint_digest(feed.model),
        },
        "dataset": {
            "name": config.dataset.name,
            "digest": feed.dataset_digest,
            "cache": feed.cache_digest,
            "splits": splits,
        },
        "questions": {
            "file": digest_file(Path(config.questions)),
            "templates": {name: digest_of(list(templates)) for name, templates in questions.items()},
        },
        "precision": config.engine.precision,
        "software": software(),
    }


def summary_lines(results: Mapping[str, Any], path: Path) -> list[str]:
    """What an evaluation prints in the end: what a guess would give, then its accuracy.

    Args:
        results: What `metrics.json` holds.
        path: That file.
    """
    guess, (low, high) = results["majority_class"], results["accuracy_ci95"]
    lines = [
        f"evaluate: always answering {guess['category']!r}, the largest category of {guess['split']}, would give "
        f"{guess['accuracy']:.4f}"
    ]
    scaling = results["temperature_scaling"]
    if scaling["scaled"]:
        after = scaling["scaled"]
        lines.append(
            f"evaluate: temperature {scaling['temperature']:.3f}, fitted on {scaling['num_fitted']:,} images of "
            f"{scaling['fitted_on']}: calibration error {results['ece']:.4f} -> {after['ece']:.4f}, negative "
            f"log-likelihood {results['nll']:.4f} -> {after['nll']:.4f}"
        )
    if results.get("distributions"):
        lines.append(_distribution_line(results["distributions"], results["num_samples"]))
    on = f"on {results['num_samples']} images"
    if results["num_in_split"] > results["num_samples"]:
        missing = ", ".join(
            f"{results[key]:,} {words}"
            for key, words in (("num_quarantined", "in quarantine"), ("num_left_out", "left out by the category map"))
            if results[key]
        )
        on += (
            f" of the {results['num_in_split']} in the split ({missing}; "
            f"{results['accuracy_of_split']:.4f} with those counted as wrong)"
        )
    of_target = f" of target {results['target']}" if "target" in results else ""
    remark = f"; {results['remark']}" if results["remark"] else ""
    lines.append(
        f"evaluate: accuracy{of_target} {results['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}) "
        f"{on}{remark}: {path}"
    )
    return lines


def _distribution_line(found: Mapping[str, Any], num_samples: int) -> str:
    """How near the model's probabilities are to those of raters, of what `metrics.json` holds."""
    parts = []
    for name, title in MEASURES.items():
        if found[name] is not None:
            low, high = found[f"{name}_ci95"]
            parts.append(f"{title} {found[name]:.4f} (95 % interval {low:.4f} to {high:.4f})")
    parts[0] += f" of at most {found['expected_accuracy_limit']:.4f}"
    count = found["num_samples"]
    on = "" if count == num_samples else f" on the {count:,} images with a distribution"
    return f"evaluate: against the distributions of the data: {', '.join(parts)}{on}"


def protocol_of(identity: Mapping[str, Any]) -> str:
    """Digest of what an evaluation asks and how, whatever the images: equal for two splits that are scored alike."""
    of_images = ("samples", "split", "source", "attention")
    return digest_of({name: value for name, value in identity.items() if name not in of_images})


def value_groups(feed: Feed, outcomes: Iterable[tuple[str, bool]]) -> ValueGroups:
    """The images by their annotated aspects.

    Args:
        feed: The images.
        outcomes: Key, and whether the prediction is right, of those that were scored, in the order of the feed.
    """
    groups = ValueGroups(sorted(feed.aspects), feed.lists)
    is_scored, is_right = np.zeros(len(feed.keys), dtype=bool), np.zeros(len(feed.keys), dtype=bool)
    waiting = iter(outcomes)
    current = next(waiting, None)
    for place, key in enumerate(feed.keys):
        if current is not None and current[0] == key:
            is_scored[place], is_right[place] = True, current[1]
            current = next(waiting, None)
    for aspect, column in feed.annotations().columns.items():
        groups.add(aspect, column.texts, np.where(is_scored, column.numbers, NONE), is_right)
    return groups


def _temperature_scaling(
    feed: Feed, directory: Path, protocol: str, split: str, metrics: Metrics, records: RecordTable
) -> TemperatureScaling:
    """Calibration under the temperature of the validation split, or why there is none."""
    if metrics.nll is None:
        return TemperatureScaling(reason="generated answers have no probabilities")
    if split == VALIDATION:
        return TemperatureScaling(reason="this is the validation split itself, which a temperature would be fitted on")
    path = directory / VALIDATION
    if not (path / METRICS).is_file():
        if not feed.category_counts(VALIDATION):
            return TemperatureScaling(reason="the dataset has no validation split")
        return TemperatureScaling(reason="the validation split is not scored; evaluate.validation=true scores it")
    try:
        found = read_metrics(path / METRICS, [])
        if found.protocol != protocol:
            return TemperatureScaling(reason=f"{path} was not evaluated in the same way; delete it to score it again")
        theirs = read_records_file(path / FILE)
        check_written_with(path / FILE, theirs.digest)
    except MaspError as error:  # the metrics of this split do not depend on it
        return TemperatureScaling(reason=str(error))
    temperature = fit_temperature(theirs.scores, _columns(theirs.labels, theirs.categories))
    columns = records.labels.numbers_in(metrics.categories, -1)
    scores = records.scores.block(np.arange(len(records)), len(metrics.categories))
    scaled = calibration(scores, columns, temperature)
    return TemperatureScaling(temperature, VALIDATION, len(theirs), is_at_limit(temperature), scaled)


def _columns(labels: Collection[str], categories: Sequence[str]) -> np.ndarray:
    position = {category: index for index, category in enumerate(categories)}
    return np.array([position[label] for label in labels])
