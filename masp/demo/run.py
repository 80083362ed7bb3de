"""`masp demo`: the whole pipeline on the demo world, MASP beside its baselines and the best possible accuracy."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, with_config

from masp.artifacts.trained import NONE, default_aspect_path
from masp.cache.reader import open_cache
from masp.config import Config
from masp.demo.data import NUM_TEST, NUM_TRAIN, make_demo_data
from masp.demo.world.write_dataset import best_possible
from masp.distributed.task_share import require_one_process
from masp.errors import DataError, InputError
from masp.evaluation.linear_probe import linear_probe
from masp.files.typed import read
from masp.report.page import write_report
from masp.results.metrics import wilson_interval
from masp.results.metrics_file import SUMMARY, Interval, Share, read_metrics, write_rows
from masp.runtime.log import show
from masp.start.pipeline import answers_config, steps_of, take_step
from masp.start.steps import StepName

VARIANTS = {
    "zero_shot": "the VLM as it is",
    "linear_probe": "logistic regression on mean features",
    "soft_prompt_only": "soft prompt, no aspect tokens",
    "aspects_only": "aspect tokens, no soft prompt",
    "masp": "aspect tokens and soft prompt",
    "best_possible": "known from how the world is drawn",
}


@with_config(ConfigDict(strict=True, extra="ignore", allow_inf_nan=False))
@dataclass(frozen=True)
class VariantResult:
    """The accuracy of one variant on the demo's test images: three of the keys of `metrics.json`."""

    accuracy: Share
    accuracy_ci95: Interval | None
    """Wilson's interval; None of what is known rather than measured."""
    num_samples: Annotated[int, Field(ge=1)]

    def to_dict(self) -> dict[str, object]:
        """Return what `summary.json` holds of it; an interval that does not exist has no key."""
        return {key: value for key, value in asdict(self).items() if value is not None}


Summary = dict[str, VariantResult]
"""Variant -> its result, in the order of `VARIANTS`."""


def run_demo(config: Config, num_train: int | None = None, num_test: int | None = None) -> Path:
    """Run everything; what an earlier call finished is not done again.

    Args:
        config: Run configuration, such as `configs/demo.yaml`; its seed draws the images and trains.
        num_train: Number of training images; None for the demo's own.
        num_test: Number of test images; None for the demo's own.

    Returns:
        `<output_dir>/summary.json`: per variant `accuracy`, `accuracy_ci95`, `num_samples`.

    Raises:
        InputError: The data directory holds something else, or a launcher announced several processes.
    """
    require_one_process("demo: runs every step itself, as one process", "call it alone, outside of launchers")
    started = time.monotonic()
    if config.dataset.name != "emoset":
        raise InputError(f"dataset.name = {config.dataset.name!r}: the demo's images are laid out as 'emoset'")
    counts = NUM_TRAIN if num_train is None else num_train, NUM_TEST if num_test is None else num_test
    if min(counts) < 1:
        raise InputError(f"--num-train {counts[0]} --num-test {counts[1]}: the demo needs at least one image of each")

    _say(
        f"masp make-demo-data {config.dataset.root} --num-train {counts[0]} --num-test {counts[1]} --seed {config.seed}"
    )
    make_demo_data(config.dataset.root, *counts, config.seed)
    for step in steps_of(config):
        if step.name == StepName.EVALUATE and (asked := answers_config(config)):
            _say(f"{step.command} evaluate.stage=stage1")
            take_step(step.name, asked)
        _say(step.command)
        metrics = {"masp": take_step(step.name, config)}  # of the last step, the evaluation
    for variant, changed in _baselines(config).items():
        if changed.checkpoint.soft_prompt is None:
            _say(f"masp train --stage stage2 aspects=[] output_dir={changed.output_dir}")
            take_step(StepName.STAGE2, changed)
        _say(f"masp evaluate {_settings(changed)}")
        metrics[variant] = take_step(StepName.EVALUATE, changed)
    summary = _summarise(config, metrics)
    path = Path(config.output_dir) / SUMMARY
    write_rows(path, {name: result.to_dict() for name, result in summary.items()})
    _say("masp report")
    report = write_report(config.output_dir)
    show(*_table(summary).split("\n"))
    minutes = (time.monotonic() - started) / 60
    show(f"demo: {minutes:.1f} min; accuracies: {path}; report: {report}")
    return path


def _baselines(config: Config) -> dict[str, Config]:
    """Return the configurations of the variants that the pipeline itself can run."""
    directory = Path(config.output_dir) / "baselines"
    variants = {name: copy.deepcopy(config) for name in ("zero_shot", "soft_prompt_only", "aspects_only")}
    for name, changed in variants.items():
        changed.output_dir = str(directory / name)
        changed.evaluate.output_dir, changed.evaluate.explain, changed.evaluate.attention = None, "none", False
    variants["zero_shot"].checkpoint.aspect = variants["zero_shot"].checkpoint.soft_prompt = NONE
    variants["soft_prompt_only"].aspects = []
    variants["soft_prompt_only"].checkpoint.soft_prompt = None
    variants["aspects_only"].checkpoint.aspect = str(default_aspect_path(config))
    variants["aspects_only"].checkpoint.soft_prompt = NONE
    return variants


def _settings(config: Config) -> str:
    aspects = "" if config.aspects else "aspects=[] "
    given = [("aspect", config.checkpoint.aspect), ("soft_prompt", config.checkpoint.soft_prompt)]
    return aspects + " ".join(f"checkpoint.{n}={v}" for n, v in given if v) + f" output_dir={config.output_dir}"


def _summarise(config: Config, metrics: dict[str, Path]) -> Summary:
    """Collect the accuracies of all variants, in the order of `VARIANTS`.

    Args:
        config: Run configuration.
        metrics: Variant -> its `metrics.json`, of those that were evaluated.
    """
    found: Summary = {}
    for name, path in metrics.items():
        result = read(VariantResult, path)
        if result is None:
            raise DataError(f"{path} is missing; run the same command again")
        read_metrics(path, [])  # checks the digest
        found[name] = result
    num_samples = found["masp"].num_samples
    if config.cache.dir is not None:  # the probe is of the features that are there
        num_correct, num_samples, _ = linear_probe(open_cache(config.cache.dir), config.seed)
        interval = wilson_interval(num_correct, num_samples)
        found["linear_probe"] = VariantResult(num_correct / num_samples, interval, num_samples)
    best = best_possible(config.dataset.root, config.evaluate.split)
    found["best_possible"] = VariantResult(best, None, num_samples)
    return {name: found[name] for name in VARIANTS if name in found}


def _table(summary: Summary) -> str:
    lines = [f"\n{'':<18} {'accuracy':>8}  {'95 % interval':<16}"]
    for name, result in summary.items():
        interval = "" if result.accuracy_ci95 is None else "{:.3f} to {:.3f}".format(*result.accuracy_ci95)
        lines.append(f"{name.replace('_', ' '):<18} {result.accuracy:>8.3f}  {interval:<16}  {VARIANTS[name]}")
    return "\n".join(lines) + "\n"


def _say(command: str) -> None:
    show("", f"$ {command}")
