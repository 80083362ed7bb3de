"""The facts of a run that its methods paragraph states, read from its files and from nothing else.

A fact has a dotted name and a value as the file has it. What a file does not say, or not validly, is not among the
facts, and whoever states facts leaves out what would need it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from masp.data.splits.subset import NAME as SUBSET
from masp.errors import InputError
from masp.files.json_text import parse_json
from masp.files.regular import open_binary
from masp.report.content import Content
from masp.report.training_curves import TrainingStage
from masp.results.metrics_file import MetricsFile

Fact = str | int | float | tuple[str, ...]
"""A text, a number as the file has it, or names."""
Facts = dict[str, Fact]

_MAX_TEXT = 2000
_MAX_HEADER = 16 << 20
"""Bytes of the header of an artifact."""
_SHARES = (
    "accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "top2_accuracy", "ece", "accuracy_of_split", "coverage",
    "mean_accuracy",
)  # fmt: skip
_OF_MODEL = ("min_pixels", "max_pixels", "max_side", "dtype", "attention", "quantisation", "weights", "transparency")
_OF_MACHINE = ("device", "encoder_dtype", "pillow", "torch", "transformers")
_SPLITS = ("train", "val", "test")


def gather_facts(content: Content) -> Facts:
    """The facts of a run."""
    tree = {"lineage": content.metrics.lineage or {}}
    facts: Facts = {}
    for name, value in (
        *_of_evaluation(content),
        *_of_vlm(tree, content),
        *_of_dataset(tree, content),
        *_of_artifacts(tree),
        *_of_results(content.metrics),
        *_of_others(content),
    ):
        checked = _valid(value)
        if checked is not None:
            facts[name] = checked
    for stage in content.stages:
        facts |= _of_training(stage, facts)
    return facts


def _valid(value: Any) -> Fact | None:
    """A value that can be stated; None for any other."""
    if isinstance(value, str):
        return value if value.strip() and len(value) <= _MAX_TEXT else None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return value if abs(value) <= 2**53 else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) and _valid(item) for item in value):
        return tuple(value)
    return None


def _at(tree: Any, *path: str) -> Any:
    """What is at a path in a tree of a file; None where there is nothing."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def _of_evaluation(content: Content) -> Iterator[tuple[str, Any]]:
    metrics, config = content.metrics, content.config
    yield "dataset.name", metrics.dataset or config.dataset_name
    yield "split", metrics.split or config.split
    yield "stage", metrics.stage or ("stage2" if metrics.per_aspect is None else "stage1")
    yield "scoring", metrics.scoring or config.scoring
    yield "source", metrics.source
    yield "layout", metrics.layout or config.layout
    yield "question", metrics.question
    yield "target", metrics.target
    yield "quantization", metrics.quantization
    yield "without", metrics.without
    yield "categories", metrics.categories
    yield "num_categories", len(metrics.categories) if metrics.categories else None
    mapped = [f"{a} as {b}" for a, b in (metrics.category_map or {}).items() if a != b]
    yield "category_map", mapped


def _of_vlm(tree: Mapping[str, Any], content: Content) -> Iterator[tuple[str, Any]]:
    model, machine = (_at(tree, "lineage", "features", part) for part in ("model", "machine"))
    path = _at(tree, "lineage", "vlm", "path") or content.config.vlm
    if isinstance(path, str):
        is_hub_name = not path.startswith((".", "/", "~")) and path.count("/") == 1
        yield "vlm.name", path if is_hub_name else Path(path).name
    yield "vlm.revision", _at(tree, "lineage", "vlm", "revision")
    yield "vlm.architecture", _at(model, "config.model_type")
    yield "vlm.fingerprint", _at(tree, "lineage", "vlm", "fingerprint")
    for name in _OF_MODEL:
        yield f"features.{name}", _at(model, name)
    if isinstance(model, Mapping) and "transparency" not in model:
        yield "features.transparency", "white"  # what a fingerprint without it means
    for name in _OF_MACHINE:
        yield f"machine.{name}", _at(machine, name)
    yield "precision", _at(tree, "lineage", "precision")
    software = _at(tree, "lineage", "software")
    for name, version in software.items() if isinstance(software, Mapping) else ():
        yield f"software.{name}", version


def _of_dataset(tree: Mapping[str, Any], content: Content) -> Iterator[tuple[str, Any]]:
    yield "dataset.digest", _at(tree, "lineage", "dataset", "digest")
    yield "dataset.cache", _at(tree, "lineage", "dataset", "cache")
    yield "questions.file", _at(tree, "lineage", "questions", "file")
    bad = 0
    for split in _SPLITS:
        counts = _at(tree, "lineage", "dataset", "splits", split)
        yield f"dataset.{split}", _at(counts, "num_images")
        quarantined = _at(counts, "num_quarantined")
        bad += quarantined if type(quarantined) is int else 0
        yield f"dataset.{split}.quarantined", quarantined or None
    yield "dataset.quarantined", bad or None


def _of_artifacts(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What the lineage of the artifacts says about their training."""
    for part in ("aspect", "soft_prompt"):
        lineage = _at(tree, "lineage", part)
        for name in ("origin", "digest", "layout", "aspects", "dataset"):
            yield f"{part}.{name}", _at(lineage, name)
        settings = _at(lineage, "settings")
        for name, value in settings.items() if isinstance(settings, Mapping) else ():
            yield f"{part}.{str(name).removeprefix('stage1.').removeprefix('stage2.')}", value
        for name in ("num_images", "num_in_split", "min_per_category"):
            yield f"{part}.subset.{name}", _at(settings, SUBSET, name)
        if _at(settings, "seed") is not None:
            stage = _at(settings, "stage")
            yield f"{part}.schedule", _at(settings, f"{stage}.schedule") or "linear"  # written only with another value
            if f"{stage}.max_grad_norm" in settings and settings[f"{stage}.max_grad_norm"] is None:
                yield f"{part}.clipping", "none"
        answers = _at(lineage, "answers")
        by_vlm = [a for a, found in answers.items() if _at(found, "vlm")] if isinstance(answers, Mapping) else []
        yield f"{part}.answered_by_vlm", by_vlm
    yield "aspect.count", len(_at(tree, "lineage", "aspect", "aspects") or ()) or None


def _of_results(metrics: MetricsFile) -> Iterator[tuple[str, Any]]:
    for name in (*_SHARES, "nll", "brier", "num_samples", "num_correct", "num_in_split", "num_quarantined",
                 "num_left_out", "num_unparsable"):  # fmt: skip
        yield f"result.{name}", getattr(metrics, name)
        yield from _ends(f"result.{name}", getattr(metrics, f"{name}_ci95", None))
    if metrics.per_aspect is None:  # in stage 1, samples are answers and the split has images
        yield "result.num_not_scored", (metrics.num_quarantined or 0) + (metrics.num_left_out or 0) or None
    if guess := metrics.majority_class:
        yield "majority.category", guess.category
        yield "majority.split", guess.split
        yield "majority.accuracy", guess.accuracy
    scaling = metrics.temperature_scaling
    if scaling and scaling.temperature is not None and scaling.scaled is not None:
        yield "temperature.value", scaling.temperature
        yield "temperature.num_fitted", scaling.num_fitted
        yield "temperature.fitted_on", scaling.fitted_on
        yield "temperature.ece", scaling.scaled.ece
        yield "temperature.nll", scaling.scaled.nll
    if found := metrics.distributions:
        yield "distributions.num_samples", found.num_samples
        for name, value, interval in found.rows():
            yield f"distributions.{name}", value
            yield from _ends(f"distributions.{name}", interval)
    yield "records.digest", metrics.records_digest


def _of_others(content: Content) -> Iterator[tuple[str, Any]]:
    if content.probe:
        yield "probe.accuracy", content.probe.accuracy
        yield from _ends("probe.accuracy", content.probe.accuracy_ci95)
        yield "probe.num_train", content.probe.num_train
    if content.prompts:
        for name in ("mean", "spread", "lowest", "highest"):
            yield f"prompts.{name}", getattr(content.prompts, name)
        yield "prompts.count", len(content.prompts.rows)
    if found := content.explanations:
        yield "explanations.num_images", found.num_images
        yield "explanations.num_scored", found.num_scored
        yield "explanations.explained", found.explained
        means = [mean for _, mean in found.averages.signed.parts(found.aspects) if mean is not None]
        yield "explanations.intervals", "bootstrap" if any(mean.ci95 is not None for mean in means) else None
    for number, row in enumerate(content.aspects):
        yield f"answers.{number}.aspect", row.aspect
        yield f"answers.{number}.accuracy", row.accuracy
        yield f"answers.{number}.num_samples", row.num_samples
        yield from _ends(f"answers.{number}.accuracy", row.ci)


def _ends(name: str, interval: tuple[float, float] | None) -> Iterator[tuple[str, Any]]:
    if interval is not None:
        yield f"{name}.low", interval[0]
        yield f"{name}.high", interval[1]


def _of_training(stage: TrainingStage, facts: Facts) -> Facts:
    """What the log of a stage says, if it is the log of the artifact that was evaluated."""
    part = "aspect" if stage.name == "stage1" else "soft_prompt"
    digest = facts.get(f"{part}.digest")
    files = sorted(stage.directory.glob("aspect.safetensors" if part == "aspect" else "soft_prompt_*.safetensors"))
    if digest is None or digest not in [_digest_of_artifact(path) for path in files]:
        return {}
    found: Facts = {f"{part}.steps_taken": stage.num_steps}
    return found | ({} if stage.best_step is None else {f"{part}.best_step": stage.best_step})


def _digest_of_artifact(path: Path) -> str | None:
    """The digest in the header of an artifact; None where the file is something else."""
    try:
        with open_binary(path) as file:
            length = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(length)) if length <= _MAX_HEADER else None
        text = _at(header, "__metadata__", "masp")
        digest = _at(parse_json(text.encode()), "digest") if isinstance(text, str) else None
    except (OSError, ValueError, InputError):  # whatever it is, it is not the artifact that was evaluated
        return None
    return digest if isinstance(digest, str) else None
