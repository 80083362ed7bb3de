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
from pathlib import Path

from masp.artifacts.trained import NONE
from masp.cache.layout import MANIFEST
from masp.cache.reader import open_cache
from masp.config import Config
from masp.data.datasets import dataset_of
from masp.data.sources.find import is_there
from masp.distributed.task_share import require_one_process
from masp.errors import InputError, MaspError
from masp.evaluation.run import evaluate
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
    numbers = _seeds(seeds)
    _check_config(config)
    names = _names(config, only)
    if list_only:
        if _is_annotated(config) is False:
            config, given = _without_aspects(config), [*given, "aspects=[]"]
        config = with_order(config)
        _print_list(config, _choose(config, names), numbers, given)
        return None
    require_one_process(
        "study: trains one group of runs after another, as one process",
        "on a cluster submit the commands that `masp study --list` prints, then call `masp study` alone: it takes up "
        "what is finished",
    )
    if config.cache.dir is not None:
        extract(config)
    if _is_annotated(config) is False:
        config = _without_aspects(config)
    config = with_order(config)
    runs = runs_of(config, _choose(config, names), numbers)
    directory = study_dir(config)
    unfinished = Counter(run.seed for run in runs)
    done = 0
    for unit in units_of(runs):
        which = f"{done + 1}" if len(unit) == 1 else f"{done + 1} to {done + len(unit)}"
        titles = "; ".join(f"seed {run.seed}, {run.variant.title}" for run in unit)
        show("", f"study: {which} of {len(runs)}: {titles}", to=sys.stderr)
        _train(unit)
        _evaluate([run for run in unit if not run.failure])
        done += len(unit)
        unfinished.subtract(run.seed for run in unit)
        if any(not unfinished[run.seed] for run in unit):  # all runs of a seed are done
            path = write_table(directory, variants_of(config), seeds_found(directory), left_out_of(config))
    if failed := [run for run in runs if run.failure]:
        reasons = [f"{run.name}: {shortened(run.failure, 400)}" for run in failed[:_MAX_NAMED]]
        more = f"; and {len(failed) - _MAX_NAMED} more" if len(failed) > _MAX_NAMED else ""
        raise InputError(
            f"study: {len(failed)} of {len(runs)} runs not trained to the end: {'; '.join(reasons)}{more}; the table "
            f"is of the others: {path}"
        )
    return path


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


def _evaluate(runs: Sequence[Run]) -> None:
    """Score what some runs of a unit still lack."""
    for run in runs:
        evaluate(run.config)


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


def _print_list(config: Config, chosen: Sequence[Variant], seeds: Sequence[int], given: Sequence[str]) -> None:
    if config.cache.dir is not None and not is_file(Path(config.cache.dir) / MANIFEST):
        show(f"{'features':<24} first of all, once", f"    {shlex.join(['masp', 'extract', *given])}")
    for variant in chosen:
        show(f"{variant.name:<24} {variant.title}")
        for seed in seeds_of(variant, seeds):
            for command in commands(config, variant, seed, given):
                show(f"    {command}")
    for name, why in left_out_of(config).items():
        show(f"{name:<24} left out: {why}")


def _check_config(config: Config) -> None:
    """Refuse what would bring foreign checkpoints into some of the runs, or evaluate something else.

    Raises:
        InputError: names the key and its value.
    """
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
