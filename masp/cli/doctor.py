"""`masp doctor`: what this machine has, and whether a configuration would run on it."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from masp.cli.parser import Commands, add_command
from masp.cli.settings import add_settings
from masp.errors import InputError, MaspError
from masp.files.regular import exists
from masp.files.text import reason
from masp.runtime.log import show
from masp.taxonomy import CATEGORY_SETS

if TYPE_CHECKING:
    from masp.config import Config

_DETAILS = """\
With a configuration, the VLM is verified on one image, in fp32: its own forward pass against that of its halves. That
reads the weights twice; --no-verify leaves it out.

  masp doctor
  masp doctor --config configs/train.yaml vlm.path=models/Qwen2-VL-7B"""
PACKAGES = (
    "torch",
    "transformers",
    "deepspeed",
    "webdataset",
    "h5py",
    "submitit",
    "pydantic",
    "pillow",
    "scikit-learn",
    "matplotlib",
)


def register(commands: Commands) -> None:
    """Add the parser."""
    summary = "check this machine: versions, devices, Slurm, and a configuration if given"
    parser = add_command(commands, "doctor", summary, _DETAILS)
    parser.add_argument("--no-verify", action="store_true", help="do not verify the VLM by measurement")
    add_settings(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print versions, devices and Slurm; with a configuration, check what it names.

    Raises:
        InputError: something is missing that every run needs, or the configuration would not run here.
    """
    problems: list[str] = []
    remark = ""
    _row("python", f"{platform.python_version()} ({sys.executable})")
    for package in PACKAGES:
        try:
            _row(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            _row(package, "MISSING")
            problems.append(f"{package} is not installed")
    _devices()
    _row("slurm", shutil.which("sbatch") or "no sbatch on the PATH: jobs run on this machine only")
    _row("hub", "offline" if os.environ.get("HF_HUB_OFFLINE") == "1" else "allowed (HF_HUB_OFFLINE is not 1)")
    if arguments.config or arguments.overrides:
        found, stuck = _configuration(arguments.config, arguments.overrides, not arguments.no_verify)
        problems += found
        remark = f", but {' and '.join(stuck)} cannot be trained as configured (see above)" if stuck else ""
    if problems:
        raise InputError(f"{len(problems)} problems: {'; '.join(problems)}")
    show(f"doctor: no problem found{remark}")
    return 0


def _row(name: str, value: str, *below: str) -> None:
    show(f"{name:<14} {value}", *below)


def _devices() -> None:
    import torch

    _row("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    _row("gpu", ", ".join(names) or "none: everything runs on the CPU")


def _configuration(path: str | None, overrides: Sequence[str], verify: bool) -> tuple[list[str], list[str]]:
    """Check what a configuration names, part by part, so that all problems are seen at once; `verify` the VLM too.

    Returns:
        The problems, and the stages that cannot be trained as configured.
    """
    from masp.cache.fingerprint import model_part
    from masp.config import load_config
    from masp.data.questions import questions_of
    from masp.vlm.prompt import load_prompt

    config = load_config(path, overrides)
    stuck: list[str] = []
    checks: dict[str, Callable[[], str | list[str]]] = {
        "questions": lambda: _describe_questions(questions_of(config), config),
        "vlm": lambda: (
            f"{model_part(config)['config.model_type']}, {len(load_prompt(config.vlm.path).tokenizer)} tokens"
        ),
        "dataset": lambda: _describe(config, stuck),
        "cache": lambda: _describe_cache(config),
        "output_dir": lambda: _space(Path(config.output_dir)),
    }
    if config.vlm.quantization != "none":
        checks["quantization"] = lambda: _describe_quantization(config)
    if set(config.logging.trackers) - {"tensorboard"}:
        checks["trackers"] = lambda: _describe_trackers(config)
    if verify:
        checks["verified"] = lambda: _verified(config)
    problems: list[str] = []
    for name, check in checks.items():
        if name == "verified" and any(problem.startswith("vlm.") for problem in problems):
            continue  # it cannot even be loaded
        try:
            found = check()
            _row(name, *([found] if isinstance(found, str) else found))
        except MaspError as error:
            _row(name, f"PROBLEM: {error}")
            problems.append(str(error))
    return problems, stuck


def _describe_cache(config: Config) -> str:
    from masp.cache.reader import open_matching_cache

    if config.cache.dir is None:
        return "none (cache.dir = null): training and evaluation run the encoder"
    if not exists(Path(config.cache.dir), key="cache.dir"):
        return "none yet"
    cache, _ = open_matching_cache(config, has_target=False)
    unknown = " or ".join(cache.unknown_aspects(config.aspects))
    without = f"; begun before {unknown} was defined, so without the dataset's answers to it" if unknown else ""
    return f"{len(cache)} images{without}"


def _describe(config: Config, stuck: list[str]) -> list[str]:
    """The dataset in one line; below it what it holds, what is to be known about it, which parts of a run it allows and
    what to do where it lacks something, and the stages.

    Args:
        config: Configuration of the run.
        stuck: The stages that it does not allow are appended.
    """
    from masp.data.datasets import dataset_of
    from masp.data.findings import finding_lines
    from masp.data.splits.subset import subset_of
    from masp.data.target.find_labels import label_dataset
    from masp.plan.prospects import prospects
    from masp.start.look import outlook

    dataset, labels = label_dataset(config, dataset_of(config))
    holdings, subset = dataset.holdings, subset_of(config.dataset, dataset.samples)
    more = (*(() if labels is None else labels.findings), *(() if subset is None else subset.findings))
    counts = ", ".join(f"{holdings.num_images(split)} {split}" for split in holdings.splits)
    lines = [f"{dataset.name}: {counts}{'' if labels is None else f' with a label of {config.target.name}'}"]
    lines += [*holdings.table(), *finding_lines((*dataset.findings, *more))]
    lines += outlook(config, dataset)
    for each in prospects(config, dataset):
        lines.append(f"{each.stage:<14} {each.summary}")
        if each.obstacle:
            stuck.append(each.stage)
        if each.hint:
            lines.append(f"warning: {each.hint}")
    return lines


def _verified(config: Config) -> list[str]:
    """Compare the VLM's own forward pass with ours.

    Raises:
        InputError: They differ, or the VLM is refused.
    """
    from masp.experiments.family_check import check_family, describe
    from masp.runtime.devices import pick_device

    device = pick_device(config.engine.device, "engine.device")
    result, halves = check_family(config.vlm.path, config.vlm.attention, device)
    if not result.passed:
        raise InputError(str(result.reason) if not result.supported else f"vlm.path: {result.reason}")
    return list(describe(result, halves))


def _describe_questions(questions, config) -> str:
    categories = config.target.categories or ()
    if config.target.labels is None and not categories:
        categories = config.dataset.categories or CATEGORY_SETS.get(config.dataset.name, ())
    return f"{len(questions.target_all(categories))} {config.target.name} templates"


def _describe_quantization(config: Config) -> str:
    from masp.vlm.quantized.rounding import require_library

    require_library(config.vlm.quantization)
    return f"{config.vlm.quantization}, torchao {importlib.metadata.version('torchao')}"


def _describe_trackers(config: Config) -> str:
    from masp.tracking.trackers import require_trackers

    require_trackers(config)
    return f"{', '.join(config.logging.trackers)}; whether their servers answer is not tried"


def _space(directory: Path) -> str:
    """Describe the free space at a directory that need not exist yet."""
    absolute = directory.absolute()
    existing = next(p for p in (absolute, *absolute.parents) if exists(p, key="output_dir"))
    if not os.access(existing, os.W_OK):
        raise InputError(f"output_dir: {existing} cannot be written")
    try:
        free = shutil.disk_usage(existing).free
    except OSError as error:
        raise InputError(f"output_dir: {existing} cannot be examined: {reason(error)}") from None
    return f"{directory}, {free / 1e9:.0f} GB free"
