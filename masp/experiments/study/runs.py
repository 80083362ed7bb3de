"""The runs of a study: their configurations, in what order they see the images, and which are trained together."""

from __future__ import annotations

import copy
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from masp.artifacts.trained import NONE, default_aspect_path, default_soft_prompt_path, prompt_aspects
from masp.config import Config
from masp.config.yaml_text import dump_value, read_yaml
from masp.errors import InputError
from masp.experiments.study.variants import FULL, Variant
from masp.files.regular import is_file
from masp.runtime.run_directory import read_status
from masp.training.group.together import groups_of

LOG = logging.getLogger(__name__)


@dataclass
class Run:
    """One run of a study."""

    seed: int
    variant: Variant
    config: Config
    failure: str = ""
    """Why its soft prompt was not trained to the end; empty where it was, or where none is trained."""

    @property
    def name(self) -> str:
        """Its directory in that of the study."""
        return f"seed-{self.seed}/{self.variant.name}"

    def note_failure(self) -> None:
        """Find out, from its files, why its soft prompt was not trained to the end, if it was not."""
        if "stage2" not in self.variant.stages or is_file(default_soft_prompt_path(self.config)):
            return
        status = read_status(Path(self.config.output_dir) / "stage2")
        self.failure = "it was not trained" if status is None else status.message or f"it is {status.state}"


def study_dir(config: Config) -> Path:
    """Where everything of the study goes."""
    return Path(config.output_dir) / "study"


def seeds_found(directory: Path) -> list[int]:
    """The seeds that a study's directory has runs of, whichever call made them."""
    names = [path.name.removeprefix("seed-") for path in directory.glob("seed-*") if path.is_dir()]
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal() and str(int(name)) == name)


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


def overrides(config: Config, variant: Variant, seed: int, names_modules: bool = False) -> list[str]:
    """What makes the configuration of one run out of that of the method, as `key=value`.

    Args:
        config: Configuration of the method.
        variant: Variant.
        seed: Seed of training.
        names_modules: Whether the file of its aspect modules is named also where it is the run's own.
    """
    run = run_config(config, variant, seed)
    run = modules_named(run) if names_modules else run
    settings = {"seed": seed, "output_dir": run.output_dir, **variant.changes}
    if run.order_seed is not None:
        settings["order_seed"] = run.order_seed
    if run.checkpoint.aspect != config.checkpoint.aspect:
        settings["checkpoint.aspect"] = run.checkpoint.aspect
    if run.evaluate.explain != config.evaluate.explain:
        settings["evaluate.explain"] = run.evaluate.explain
    return [f"{name}={dump_value(value)}" for name, value in settings.items()]


def commands(config: Config, variant: Variant, seed: int, given: Sequence[str] = ()) -> list[str]:
    """The commands that make one run, for those who would rather submit them.

    Args:
        config: Configuration of the method.
        variant: Variant.
        seed: Seed of training.
        given: Arguments that the configuration was loaded from, `--config FILE key=value …`.
    """
    words = [*given, *overrides(config, variant, seed)]
    return [
        *(shlex.join(["masp", "train", "--stage", stage, *words]) for stage in variant.stages),
        shlex.join(["masp", "evaluate", *words]),
    ]


def runs_of(config: Config, chosen: Sequence[Variant], seeds: Sequence[int]) -> list[Run]:
    """All runs, seed by seed."""
    return [
        Run(seed, variant, run_config(config, variant, seed))
        for seed in seeds
        for variant in chosen
        if seed in seeds_of(variant, seeds)
    ]


def units_of(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs whose prompts have what comes before the soft prompt in common, in the order of their first ones.

    Their soft prompts are trained together; one that is to be left out of the prompt needs no training.
    """
    configs = [modules_named(run.config) for run in runs]
    for config in configs:
        config.checkpoint.soft_prompt = None
    return [[runs[number] for number in group] for group in groups_of(configs)]


def modules_named(config: Config) -> Config:
    """The configuration with the file of its aspect modules, also where that is the one of the run itself."""
    config = copy.deepcopy(config)
    if prompt_aspects(config) and config.checkpoint.aspect is None:
        config.checkpoint.aspect = str(default_aspect_path(config))
    return config


def seeds_of(variant: Variant, seeds: Sequence[int]) -> Sequence[int]:
    """A variant that trains nothing is the same for every seed."""
    return seeds if variant.seeded else seeds[:1]


def with_order(config: Config) -> Config:
    """The configuration with the seed of the order of the images, the same for all runs that a study ever has.

    Where stage 1 is trained anew for each seed, runs of different seeds have nothing in common and each seed has an
    order of its own. Otherwise all seeds share one, so that they can be trained together. A study that was begun
    differently goes on as it was begun.

    Raises:
        InputError: Earlier runs have another one than the configuration gives, or several.
    """
    directory = study_dir(config)
    found = _orders_found(directory)
    asked = config.order_seed
    wrong = [order for order in found if order != asked] if asked is not None else list(found)[1:]
    if wrong:
        ours = asked if asked is not None else next(iter(found))
        raise InputError(
            f"order_seed = {_order_text(ours)}: {found[wrong[0]]} has {_order_text(wrong[0])}, and all runs of a study "
            f"must see the images in one order; {'leave it out' if len(found) == 1 else 'remove these runs'}, or give "
            "another output_dir"
        )
    is_shared = not config.aspects or config.checkpoint.aspect is not None
    usual = asked if asked is not None else config.seed if is_shared else None
    order = next(iter(found), usual)
    if order != usual:
        LOG.info(
            "study: goes on with order_seed=%s, as %s began; with another output_dir it would be %s%s",
            _order_text(order),
            found[order],
            _order_text(usual),
            ", and all seeds would be trained together" if order is None else "",
        )
    config = copy.deepcopy(config)
    config.order_seed = order
    return config


def _orders_found(directory: Path) -> dict[int | None, Path]:
    """The seeds of the order of the images that runs were begun with -> the first of them; None: each has its own."""
    found: dict[int | None, Path] = {}
    for seed in seeds_found(directory):
        for path in sorted((directory / f"seed-{seed}").glob("*/stage[12]/config.yaml")):
            order = read_yaml(path)[0].get("order_seed")
            found.setdefault(order if isinstance(order, int) else None, path.parents[1])
    return found


def _order_text(order: int | None) -> str:
    return "null" if order is None else str(order)
