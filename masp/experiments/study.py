"""`masp study`: the method beside its ablations, over several seeds; one command that resumes.

Every run has a directory `<output_dir>/study/seed-<s>/<variant>` with what training and evaluation leave there. A run
that is finished is not done again, one that was stopped goes on from its checkpoint or ledger.
"""

from __future__ import annotations

import copy
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from masp.artifacts.trained import NONE, default_aspect_path
from masp.cache.layout import MANIFEST
from masp.cache.reader import open_cache
from masp.config import Config
from masp.data.datasets import dataset_of
from masp.data.sources.find import is_there
from masp.distributed.task_share import require_one_process
from masp.errors import InputError, MaspError
from masp.evaluation.run import evaluate
from masp.experiments.study_table import seeds_found, write_table
from masp.experiments.variants import FULL, Variant, left_out_of, variants_of
from masp.extraction.job import extract
from masp.files.regular import is_file
from masp.files.text import shortened, shown
from masp.runtime.log import show
from masp.training.loop import train

LOG = logging.getLogger(__name__)


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
        InputError: a seed or name is wrong, the configuration names checkpoints or stage 1, or several processes were
            announced.
    """
    numbers = _seeds(seeds)
    _check_config(config)
    names = _names(config, only)
    if list_only:
        if _is_annotated(config) is False:
            config, given = _without_aspects(config), [*given, "aspects=[]"]
        _print_list(config, _choose(config, names), numbers, given)
        return None
    require_one_process(
        "study: trains one run after another, as one process",
        "on a cluster submit the commands that `masp study --list` prints, then call `masp study` alone: it takes up "
        "what is finished",
    )
    if config.cache.dir is not None:
        extract(config)
    if _is_annotated(config) is False:
        config = _without_aspects(config)
    chosen = _choose(config, names)
    directory = study_dir(config)
    total = sum(len(_seeds_of(v, numbers)) for v in chosen)
    done = 0
    for seed in numbers:
        for variant in chosen:
            if seed not in _seeds_of(variant, numbers):
                continue
            done += 1
            show("", f"study: {done} of {total}: seed {seed}, {variant.title}", to=sys.stderr)
            run = run_config(config, variant, seed)
            for stage in variant.stages:
                train(run, stage)
            evaluate(run)
        path = write_table(directory, variants_of(config), seeds_found(directory), left_out_of(config))
    return path


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
        for seed in _seeds_of(variant, seeds):
            for command in commands(config, variant, seed, given):
                show(f"    {command}")
    for name, why in left_out_of(config).items():
        show(f"{name:<24} left out: {why}")


def study_dir(config: Config) -> Path:
    """Where everything of the study goes."""
    return Path(config.output_dir) / "study"


def run_config(config: Config, variant: Variant, seed: int) -> Config:
    """The configuration of one run."""
    run = copy.deepcopy(config)
    run.seed = seed
    run.output_dir = str(study_dir(config) / f"seed-{seed}" / variant.name)
    run.evaluate.output_dir, run.evaluate.explain = None, "none"
    for name, value in variant.changes.items():
        section, _, key = name.rpartition(".")
        setattr(getattr(run, section) if section else run, key, value)
    if not run.aspects and run.checkpoint.aspect != NONE:
        run.checkpoint.aspect = None
    elif run.checkpoint.aspect is None and "stage1" not in variant.stages:
        # aspects are trained independently of one another, so leaving one out needs no other training of the rest
        full = copy.deepcopy(config)
        full.output_dir = str(study_dir(config) / f"seed-{seed}" / FULL)
        run.checkpoint.aspect = str(default_aspect_path(full))
    return run


def commands(config: Config, variant: Variant, seed: int, given: Sequence[str] = ()) -> list[str]:
    """The commands that make one run, for those who would rather submit them.

    Args:
        config: Configuration of the method.
        variant: Variant.
        seed: Seed of training.
        given: See `run_study`.
    """
    run = run_config(config, variant, seed)
    settings = {"seed": seed, "output_dir": run.output_dir, **variant.changes}
    if run.checkpoint.aspect != config.checkpoint.aspect:
        settings["checkpoint.aspect"] = run.checkpoint.aspect
    if run.evaluate.explain != config.evaluate.explain:
        settings["evaluate.explain"] = run.evaluate.explain
    words = [*given, *(f"{name}={_spelt(value)}" for name, value in settings.items())]
    return [
        *(shlex.join(["masp", "train", "--stage", stage, *words]) for stage in variant.stages),
        shlex.join(["masp", "evaluate", *words]),
    ]


def _spelt(value: object) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(str, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


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


def _seeds_of(variant: Variant, seeds: Sequence[int]) -> Sequence[int]:
    """A variant that trains nothing is the same for every seed."""
    return seeds if variant.seeded else seeds[:1]


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
