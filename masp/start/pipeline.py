"""`masp run`: all steps of a run, one after the other, from the images to the report."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from masp.annotation.job import annotate
from masp.artifacts.trained import default_aspect_path, default_soft_prompt_path
from masp.cache.annotations.manifest import read_stored
from masp.cache.layout import MANIFEST
from masp.config import Config
from masp.config.aspects import load_aspects
from masp.config.feature_source import cache_directory
from masp.data.datasets import dataset_of
from masp.data.lacking import Lacking
from masp.data.sample import count_kinds
from masp.data.target.find_labels import label_dataset
from masp.distributed.task_share import require_one_process
from masp.errors import DataError, InputError, StoppedEarly
from masp.evaluation.run import evaluate, evaluate_dir
from masp.extraction.job import extract
from masp.files.regular import is_file
from masp.plan.plan import Plan, make_plan
from masp.plan.prospects import obstacles
from masp.plan.render import duration
from masp.report.page import write_report
from masp.results.metrics_file import METRICS, read_metrics
from masp.runtime.log import show
from masp.runtime.stop import StopFlag
from masp.start.steps import StepName, step_names
from masp.training.loop import train

NUM_MEASURED = 4
"""Images on which the speed of this machine is measured before anything is done."""
_COMMANDS: dict[StepName, str] = {
    StepName.EXTRACT: "masp extract",
    StepName.ANNOTATE: "masp annotate",
    StepName.STAGE1: "masp train --stage stage1",
    StepName.STAGE2: "masp train --stage stage2",
    StepName.EVALUATE: "masp evaluate",
}


@dataclass(frozen=True)
class Step:
    """One step of a run."""

    name: StepName
    command: str
    """The command that is the same, without the settings."""


def steps_of(config: Config, lacks_aspects: bool = False) -> list[Step]:
    """The steps of a run, in order; see `step_names`."""
    return [Step(name, _COMMANDS[name]) for name in step_names(config, lacks_aspects)]


def take_step(name: StepName, config: Config, stop: StopFlag | None = None) -> Path:
    """Do a step, or what an earlier call left of it: each step knows itself what is finished.

    Args:
        name: The step.
        config: Run configuration.
        stop: Looked at while it runs; None lets signals stop it.

    Returns:
        What it leaves: the cache, an artifact, or `metrics.json`.

    Raises:
        InputError, DataError, StoppedEarly: See `masp.errors`.
    """
    match name:
        case StepName.EXTRACT:
            return extract(config, stop=stop)
        case StepName.ANNOTATE:
            return annotate(config, stop=stop)
        case StepName.STAGE1:
            return train(config, "stage1", stop=stop)
        case StepName.STAGE2:
            return train(config, "stage2", stop=stop)
        case StepName.EVALUATE:
            metrics = evaluate(config, stop=stop)
            assert metrics is not None, "one process scores all samples"
            return metrics


def run_pipeline(config: Config, settings: str) -> Path:
    """Take all steps of a run, then write its report; what an earlier call finished is not done again.

    Args:
        config: Run configuration.
        settings: The settings as they are given on a command line, `--config C key=value`, for the user.

    Returns:
        The report.

    Raises:
        InputError: A launcher announced several processes, the dataset does not allow a step, or one of a step's.
        DataError: One of a step's.
        StoppedEarly: Something asked to stop; the same command goes on.
    """
    require_one_process(
        "run: takes every step itself, as one process", "call it alone, or use python -m launch pipeline"
    )
    again = f"`masp run {settings}` goes on from there"
    with StopFlag() as stop:
        lacking = _check_dataset(config)
        steps = steps_of(config, bool(lacking))
        left = [step for step in steps if not _is_there(step.name, config, lacking)]
        if there := [step.name.value for step in steps if step not in left]:
            show(f"there already, and only checked: {', '.join(there)}")
        if left:
            _header(f"masp plan {settings} --measure {NUM_MEASURED}")
            show(*_announced(make_plan(config, measure=NUM_MEASURED), left))
        for step in steps:
            _check(stop, again)
            _header(f"{step.command} {settings}")
            try:
                result = take_step(step.name, config, stop)
            except StoppedEarly as error:
                raise StoppedEarly(f"{error}; {again}") from None
        _check(stop, again)
        directory = config.evaluate.output_dir or config.output_dir
        _header(f"masp report {shlex.quote(directory)}")
        report = write_report(directory)
    show(*_outcome(result), f"report: {report}")
    return report


def _check_dataset(config: Config) -> list[str]:
    """The aspects in use that nobody annotated (see `Lacking`), which the VLM is to.

    Raises:
        InputError: The dataset does not allow a step, whoever annotates it.
    """
    dataset, _ = label_dataset(config, dataset_of(config))
    defined = load_aspects(config.aspect_definitions)
    kinds = ((split, aspects) for split, _, aspects in count_kinds(dataset.samples))
    lacking = Lacking.of(config, kinds).unanswered(config.aspects) if config.checkpoint.aspect is None else []
    never = [name for name in lacking if defined[name].annotate == "never"]
    # of listed ones, `obstacles` knows that they will be annotated
    can_annotate = config.cache.dir is not None and not never and config.annotate.aspects is None
    answered = [name for name in config.aspects if name not in lacking] if can_annotate else config.aspects
    if stuck := obstacles(dataclasses.replace(config, aspects=answered), dataset):
        stage, why = next(iter(stuck.items()))
        needs_cache = bool(lacking) and not never and config.cache.dir is None
        remedy = "; masp annotate, which could change that, needs a cache (cache.dir=DIR)" if needs_cache else ""
        raise InputError(f"{stage} cannot be trained: {why}{remedy}")
    return lacking


def _is_there(name: StepName, config: Config, lacking: Collection[str]) -> bool:
    """Whether an earlier call left the result of a step; the step itself decides whether it still holds."""
    match name:
        case StepName.EXTRACT:
            return is_file(cache_directory(config) / MANIFEST, key="cache.dir")
        case StepName.ANNOTATE:
            return set(config.annotate.aspects or lacking) <= read_stored(cache_directory(config)).keys()
        case StepName.STAGE1:
            return is_file(default_aspect_path(config), key="output_dir")
        case StepName.STAGE2:
            return is_file(default_soft_prompt_path(config), key="output_dir")
        case StepName.EVALUATE:
            return is_file(evaluate_dir(config) / METRICS, key="output_dir")


def _check(stop: StopFlag, again: str) -> None:
    """End between two steps if something asked to stop."""
    if stop:
        raise StoppedEarly(f"run: stopped on request, between two steps; {again}")


def _header(command: str) -> None:
    show("", f"$ {command}")


def _announced(plan: Plan, steps: list[Step]) -> Iterator[str]:
    """What will be done and how long it will take, by the speed that was measured on a few images.

    Args:
        plan: The plan of the run.
        steps: The steps that are left.
    """
    images = plan.images
    broken = f", {images.num_broken:,} of them broken" if images.num_broken else ""
    yield f"{images.num_images:,} images{broken}; what is to be done, and how long it takes from the beginning:"
    hours = {StepName.EXTRACT: plan.extract.hours, StepName.EVALUATE: plan.evaluate.hours}
    hours |= {StepName(name): stage.hours for name, stage in plan.stages.items() if stage.num_images}
    if plan.annotate is not None:
        hours[StepName.ANNOTATE] = plan.annotate.hours
    if StepName.ANNOTATE in [step.name for step in steps]:
        hours.pop(StepName.STAGE1, None)  # of the few that are annotated already
    for step in steps:
        shown = duration(hours[step.name]) if step.name in hours else "unknown"
        yield f"  {step.name:<10}{shown:>10}   {step.command}"
    total = duration(sum(hours.get(step.name, 0.0) for step in steps))
    unknown = [step.name.value for step in steps if step.name not in hours]
    rest = f"; without {' and '.join(unknown)}, which no plan can tell before the VLM annotates" if unknown else ""
    yield f"  {'in all':<10}{total:>10}   at the speed of this machine, measured on {NUM_MEASURED} images{rest}"
    if plan.space is not None:
        yield f"cache: {plan.space.verdict}"


def _outcome(path: Path) -> Iterator[str]:
    """The accuracy with its interval, of `metrics.json`."""
    problems: list[str] = []
    metrics = read_metrics(path, problems)
    if metrics.accuracy is None or metrics.accuracy_ci95 is None:
        raise DataError(f"{path} is damaged: {'; '.join(problems)}; `masp evaluate` on the same directory repairs it")
    low, high = metrics.accuracy_ci95
    yield f"accuracy: {metrics.accuracy:.3f}, 95 % interval {low:.3f} to {high:.3f}, on {metrics.num_samples:,} images"
