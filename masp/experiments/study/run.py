"""`masp study`: the method beside its ablations, over several seeds; one command that resumes.

Every run has a directory `<output_dir>/study/seed-<s>/<variant>` with what training and evaluation leave there. A run
that is finished is not done again, one that was stopped goes on from its checkpoint or ledger. Soft prompts that share
what comes before them are trained together.
"""

from __future__ import annotations

import copy
import logging
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from masp.artifacts.trained import NONE
from masp.cache.layout import MANIFEST
from masp.cache.reader import open_cache
from masp.config import Config
from masp.data.datasets import dataset_of
from masp.data.sources.find import is_there
from masp.distributed.task_share import require_one_process
from masp.errors import InputError, MaspError
from masp.evaluation.run import evaluate_together
from masp.experiments.study.runs import (
    Run,
    commands,
    modules_named,
    runs_of,
    seeds_found,
    seeds_of,
    study_dir,
    units_of,
    with_order,
)
from masp.experiments.study.table import write_table
from masp.experiments.study.variants import FULL, Variant, left_out_of, variants_of
from masp.extraction.job import extract
from masp.files.regular import is_file
from masp.files.text import shortened, shown
from masp.runtime.log import show
from masp.runtime.stop import StopFlag
from masp.training.group.together import train_together
from masp.training.loop import train

LOG = logging.getLogger(__name__)

_MAX_NAMED = 3
"""Failed runs that an error names with their reason."""


def run_study(
    config: Config, seeds: str, only: str | None = None, list_only: bool = False, given: Sequence[str] = ()
) -> Path | None:
    """Run what is missing, and write the table.

    Args:
        config: Configuration of the method as it should be; the study goes to `<output_dir>/study`.
        seeds: Seeds of training, `1,2,3`.
        only: Names of variants, `without_scene,queries_1`; None for all.
        list_only: Print the variants and their commands instead.
        given: Arguments that the configuration was loaded from, `--config FILE key=value …`, for these commands.

    Returns:
        `study.json`; None if only a list was asked for.

    Raises:
        InputError: A seed or name is wrong, the configuration names checkpoints or stage 1, several processes were
            announced, runs of earlier calls saw the images in another order, or a run was not trained to its end; then
            the table is of the others.
    """
    if list_only:
        study = open_study(config, seeds, only)
        extra = ["aspects=[]"] if config.aspects and not study.base.aspects else []
        _print_list(study, [*given, *extra])
        return None
    _check_config(config, seeds, only)
    require_one_process(
        "study: trains one group of runs after another, as one process",
        "on a cluster `python -m launch study` gives each group a job; or submit the commands that `masp study --list` "
        "prints, then call `masp study` alone: it takes up what is finished",
    )
    if config.cache.dir is not None:
        extract(config)
    study = open_study(config, seeds, only)
    unfinished = Counter(run.seed for run in study.runs)
    done = 0
    for unit in study.units:
        which = f"{done + 1}" if len(unit) == 1 else f"{done + 1} to {done + len(unit)}"
        titles = "; ".join(f"seed {run.seed}, {run.variant.title}" for run in unit)
        show("", f"study: {which} of {len(study.runs)}: {titles}", to=sys.stderr)
        _train(unit)
        evaluate_together([run.config for run in unit if not run.failure])
        done += len(unit)
        unfinished.subtract(run.seed for run in unit)
        if any(not unfinished[run.seed] for run in unit):  # all runs of a seed are done
            path = _write_table(study.base)
    _raise_failures(study, path)
    return path


@dataclass
class Study:
    """The runs of a study."""

    base: Config
    """The method, from which all runs start: without aspects where nothing is annotated, with the seed of the order."""
    chosen: list[Variant]
    seeds: list[int]
    only: str | None
    """As it was given."""
    runs: list[Run]
    """Seed by seed."""
    units: list[list[Run]]
    """Those that are trained together."""

    @property
    def directory(self) -> Path:
        """Where all of it goes."""
        return study_dir(self.base)


def open_study(config: Config, seeds: str, only: str | None = None) -> Study:
    """Configure the runs of a study; arguments as of `run_study`.

    Raises:
        InputError: See `run_study`.
    """
    _check_config(config, seeds, only)
    numbers, names = _seeds(seeds), _names(config, only)
    base = with_order(_without_aspects(config) if _is_annotated(config) is False else config)
    chosen = _choose(base, names)
    runs = runs_of(base, chosen, numbers)
    return Study(base, chosen, numbers, only, runs, units_of(runs))


def finish_study(study: Study, stop: StopFlag | None = None) -> Path:
    """Score the runs that are trained, and write the table.

    Args:
        study: The study, whose training is over.
        stop: What asks to stop.

    Returns:
        `study.json`.

    Raises:
        InputError, DataError, StoppedEarly: See `masp.errors`; also if a run was not trained to its end, after the
            table of the others is written.
    """
    for unit in study.units:
        for run in unit:
            run.note_failure()
        evaluate_together([run.config for run in unit if not run.failure], stop)
    path = _write_table(study.base)
    _raise_failures(study, path)
    return path


def _write_table(config: Config) -> Path:
    directory = study_dir(config)
    return write_table(directory, variants_of(config), seeds_found(directory), left_out_of(config))


def _raise_failures(study: Study, table: Path) -> None:
    """Raises InputError if runs were not trained to their ends."""
    if failed := [run for run in study.runs if run.failure]:
        reasons = [f"{run.name}: {shortened(run.failure, 400)}" for run in failed[:_MAX_NAMED]]
        more = f"; and {len(failed) - _MAX_NAMED} more" if len(failed) > _MAX_NAMED else ""
        raise InputError(
            f"study: {len(failed)} of {len(study.runs)} runs not trained to the end: {'; '.join(reasons)}{more}; the "
            f"table is of the others: {table}"
        )


def _train(unit: Sequence[Run]) -> None:
    """Train what a unit's runs still lack."""
    for run in unit:
        if "stage1" in run.variant.stages:
            train(run.config, "stage1")
    trained = [run for run in unit if "stage2" in run.variant.stages]
    if trained:
        failures = train_together([modules_named(run.config) for run in trained])
        for run, failure in zip(trained, failures, strict=True):
            run.failure = failure


def _is_annotated(config: Config) -> bool | None:
    """Whether stage 1 would have something to learn from, or needs nothing; None if that is not known yet."""
    if not config.aspects or config.checkpoint.aspect is not None:
        return True
    if config.cache.dir is not None and is_file(Path(config.cache.dir) / MANIFEST):
        cache = open_cache(config.cache.dir)
        rows = cache.rows("train")
        return any(cache.has_answer(rows, aspect).any() for aspect in config.aspects)
    if not is_there(config.dataset.root):
        return None  # what is drawn for the demo is annotated, and anything else is an error of the extraction
    try:
        samples = [sample for sample in dataset_of(config).samples if sample.split == "train"]
    except MaspError as error:  # a list can be printed anywhere
        LOG.info("whether the images are annotated is not known: %s", error)
        return None
    return any(aspect in sample.answers for sample in samples for aspect in config.aspects)


def _without_aspects(config: Config) -> Config:
    """The study of a dataset without annotations: of the soft prompt alone."""
    LOG.info(
        "no training image is annotated with %s, so there are no aspect modules: the study is of the soft prompt alone "
        "(checkpoint.aspect=FILE takes given aspect modules)",
        ", ".join(config.aspects),
    )
    config = copy.deepcopy(config)
    config.aspects = []
    return config


def _print_list(study: Study, given: Sequence[str]) -> None:
    config = study.base
    if config.cache.dir is not None and not is_file(Path(config.cache.dir) / MANIFEST):
        show(f"{'features':<24} first of all, once", f"    {shlex.join(['masp', 'extract', *given])}")
    for variant in study.chosen:
        show(f"{variant.name:<24} {variant.title}")
        for seed in seeds_of(variant, study.seeds):
            for command in commands(config, variant, seed, given):
                show(f"    {command}")
    for name, why in left_out_of(config).items():
        show(f"{name:<24} left out: {why}")


def _check_config(config: Config, seeds: str, only: str | None) -> None:
    """Refuse what would bring foreign checkpoints into some of the runs, or evaluate something else.

    Raises:
        InputError: names the key and its value.
    """
    _seeds(seeds)
    _names(config, only)
    for key, value in vars(config.checkpoint).items():
        if value is None or (key == "aspect" and value != NONE):
            continue
        hint = "leave it out" if key != "aspect" else "give aspects=[] for a study without aspect modules"
        raise InputError(
            f"checkpoint.{key} = {shown(value)}: a study trains the checkpoints of all its runs itself, but for given "
            f"aspect modules; {hint}"
        )
    if config.evaluate.stage != "stage2":
        raise InputError(
            f"evaluate.stage = {config.evaluate.stage!r}: a study compares evaluations of stage 2; leave it out"
        )


def _seeds(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    # "²" is a digit but no number
    plain = all(word.isascii() and word.isdecimal() and len(word) <= 10 for word in words)
    seeds = [int(word) for word in words] if plain else []
    if not plain or max(seeds) >= 2**32 or len(set(seeds)) < len(seeds):
        raise InputError(
            f"--seeds {shortened(text)}: must be different integers with commas between them, such as 1,2,3"
        )
    return seeds


def _names(config: Config, only: str | None) -> set[str] | None:
    """The names of the variants that are asked for; None for all."""
    if only is None:
        return None
    names = {name.strip() for name in only.split(",")}
    known = [*(variant.name for variant in variants_of(config)), *left_out_of(config)]
    unknown = sorted(names - set(known))
    if unknown:
        raise InputError(f"--only {shortened(unknown[0])}: no such variant; there are {', '.join(known)}")
    return names


def _choose(config: Config, names: set[str] | None) -> list[Variant]:
    """The variants that are run, the method always among them."""
    for name, why in left_out_of(config).items():
        LOG.info("%s is left out: %s", name, why)
    return [variant for variant in variants_of(config) if names is None or variant.name in names | {FULL}]
