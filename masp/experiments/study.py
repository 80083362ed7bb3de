"""`masp study`: the method beside its ablations, over several seeds; one command that resumes.

Every run has a directory `<output_dir>/study/seed-<s>/<variant>` with what training and evaluation leave there. A run
that is finished is not done again, one that was stopped goes on from its checkpoint or ledger.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path

from masp.artifacts.trained import NONE, default_aspect_path
from masp.config import Config
from masp.distributed.task_share import require_one_process
from masp.errors import InputError
from masp.evaluation.run import evaluate
from masp.experiments.study_table import seeds_found, write_table
from masp.experiments.variants import FULL, Variant, variants_of
from masp.extraction.job import extract
from masp.files.text import shortened, shown
from masp.training.loop import train


def run_study(config: Config, seeds: str, only: str | None = None, list_only: bool = False) -> Path | None:
    """Run what is missing, and write the table.

    Args:
        config: Configuration of the method as it should be; the study goes to `<output_dir>/study`.
        seeds: Seeds of training, `1,2,3`.
        only: Names of variants, `without_scene,queries_1`; None for all.
        list_only: Print the variants and their commands instead.

    Returns:
        `study.json`; None if only a list was asked for.

    Raises:
        InputError: a seed or name is wrong, the configuration names checkpoints or stage 1, or several processes were
            announced.
    """
    numbers = _seeds(seeds)
    _check_config(config)
    chosen = _choose(variants_of(config), only)
    if list_only:
        for variant in chosen:
            print(f"{variant.name:<24} {variant.title}")
            for seed in _seeds_of(variant, numbers):
                for command in commands(config, variant, seed):
                    print(f"    {command}")
        return None
    require_one_process(
        "study: trains one run after another, as one process",
        "on a cluster submit the commands that `masp study --list` prints, then call `masp study` alone: it takes up "
        "what is finished",
    )
    extract(config)
    directory = study_dir(config)
    total = sum(len(_seeds_of(v, numbers)) for v in chosen)
    done = 0
    for seed in numbers:
        for variant in chosen:
            if seed not in _seeds_of(variant, numbers):
                continue
            done += 1
            print(f"\nstudy: {done} of {total}: seed {seed}, {variant.title}", file=sys.stderr, flush=True)
            run = run_config(config, variant, seed)
            for stage in variant.stages:
                train(run, stage)
            evaluate(run)
        path = write_table(directory, variants_of(config), seeds_found(directory))
    return path


def study_dir(config: Config) -> Path:
    """Where everything of the study goes."""
    return Path(config.output_dir) / "study"


def run_config(config: Config, variant: Variant, seed: int) -> Config:
    """The configuration of one run."""
    run = copy.deepcopy(config)
    run.seed = seed
    run.output_dir = str(study_dir(config) / f"seed-{seed}" / variant.name)
    run.evaluate.output_dir = None
    for name, value in variant.changes.items():
        section, _, key = name.rpartition(".")
        setattr(getattr(run, section) if section else run, key, value)
    if run.aspects and run.checkpoint.aspect != NONE and "stage1" not in variant.stages:
        # aspects are trained independently of one another, so leaving one out needs no other training of the rest
        full = copy.deepcopy(config)
        full.output_dir = str(study_dir(config) / f"seed-{seed}" / FULL)
        run.checkpoint.aspect = str(default_aspect_path(full))
    return run


def commands(config: Config, variant: Variant, seed: int) -> list[str]:
    """The commands that make one run, for those who would rather submit them."""
    run = run_config(config, variant, seed)
    settings = {"seed": seed, "output_dir": run.output_dir, **variant.changes}
    if run.checkpoint.aspect:
        settings["checkpoint.aspect"] = run.checkpoint.aspect
    words = " ".join(f"{name}={_spelt(value)}" for name, value in settings.items())
    return [
        *(f"masp train --stage {stage} --config … {words}" for stage in variant.stages),
        f"masp evaluate --config … {words}",
    ]


def _spelt(value: object) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(str, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_config(config: Config) -> None:
    """Refuse what would bring foreign checkpoints into some of the runs, or evaluate something else.

    Raises:
        InputError: names the key and its value.
    """
    for key, value in vars(config.checkpoint).items():
        if value is not None:
            raise InputError(
                f"checkpoint.{key} = {shown(value)}: a study trains the checkpoints of all its runs itself (where no "
                "image is annotated, give aspects=[]: a study of the soft prompt alone); leave it out"
            )
    if config.evaluate.stage != "stage2":
        raise InputError(
            f"evaluate.stage = {config.evaluate.stage!r}: a study compares predictions of emotions; leave it out"
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


def _choose(variants: list[Variant], only: str | None) -> list[Variant]:
    if only is None:
        return variants
    names = {name.strip() for name in only.split(",")}
    known = [variant.name for variant in variants]
    unknown = sorted(names - set(known))
    if unknown:
        raise InputError(f"--only {shortened(unknown[0])}: no such variant; there are {', '.join(known)}")
    return [variant for variant in variants if variant.name in names | {FULL}]
