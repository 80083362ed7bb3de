"""`masp cache …`: looks at a feature cache, checks it, repairs it and adds to it."""

from __future__ import annotations

import argparse
import os
import sys

from masp.cli.extract import add_task_arguments, share_of_tasks
from masp.cli.parser import Commands, add_command
from masp.cli.settings import add_sample, add_settings, is_setting
from masp.errors import DataError, InputError
from masp.runtime.log import show

_DETAILS = """\
  masp cache info outputs/cache
  masp cache verify outputs/cache
  masp cache verify --repair --config configs/train.yaml"""
_PRECISION = """\
Encodes a sample of the evaluated split in fp32 and in each number format, and scores it with what the run has trained
(zero-shot if it has trained nothing): how far features, scores and predictions move, and what an image takes."""


def register(commands: Commands) -> None:
    """Add the parsers."""
    actions = add_command(commands, "cache", "look at a feature cache, repair it, extend it", _DETAILS).add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    parser = actions.add_parser("info", help="what is in it, from what, how big")
    parser.add_argument("dir", metavar="DIR")
    parser.set_defaults(run=run_info)

    parser = actions.add_parser("verify", help="check every digest and every member against the index")
    parser.add_argument(
        "dir", metavar="DIR", nargs="?", help="the cache; with --repair it comes from the configuration"
    )
    parser.add_argument("--repair", action="store_true", help="redo damaged shards; needs --config")
    add_settings(parser)
    parser.set_defaults(run=run_verify)

    parser = actions.add_parser("extend", help="encode the images that the dataset has gained")
    add_task_arguments(parser)
    add_settings(parser)
    parser.set_defaults(run=run_extend)

    parser = actions.add_parser("aspects", help="keep the aspect tokens of all images, for stage 2 and evaluation")
    add_settings(parser)
    parser.set_defaults(run=run_aspects)

    parser = actions.add_parser("precision", help="measure what each number format costs", description=_PRECISION)
    add_sample(parser, "--dtype", "a format")
    parser.set_defaults(run=run_precision)


def run_info(arguments: argparse.Namespace) -> int:
    """`masp cache info`."""
    from masp.cache.describe import describe

    show(*describe(arguments.dir).split("\n"))
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    """`masp cache verify`."""
    if arguments.dir and is_setting(arguments.dir):  # a setting came first
        arguments.overrides.insert(0, arguments.dir)
        arguments.dir = None
    if arguments.repair:
        return _repair(arguments)
    if arguments.dir is None:
        raise InputError("cache verify: give the cache's directory, or --repair with --config")
    from tqdm import tqdm

    from masp.cache.verify import verify_cache

    with tqdm(unit="B", unit_scale=True, desc="verify", disable=not sys.stderr.isatty()) as bar:
        problems = verify_cache(arguments.dir, bar.update)
    for problem in problems:
        show(str(problem))
    if problems:
        raise DataError(
            f"{arguments.dir}: {len(problems)} problems; `masp cache verify --repair --config …` repairs them"
        )
    show(f"cache: {arguments.dir}: no problem found")
    return 0


def _repair(arguments: argparse.Namespace) -> int:
    from masp.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    if arguments.dir and os.path.realpath(arguments.dir) != os.path.realpath(config.cache.dir):
        raise InputError(
            f"cache verify --repair {arguments.dir}: the configuration's cache.dir is {config.cache.dir}; give "
            "the configuration of the cache that is to be repaired"
        )
    from masp.extraction.repair import repair

    problems = repair(config)
    for problem in problems:
        show(str(problem))
    show(f"cache: {config.cache.dir}: {len(problems)} problems found and repaired")
    return 0


def run_extend(arguments: argparse.Namespace) -> int:
    """`masp cache extend`."""
    from masp.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    from masp.extraction.extend import extend

    num_tasks, task_index = share_of_tasks(arguments)
    extend(config, num_tasks=num_tasks, task_index=task_index)
    return 0


def run_aspects(arguments: argparse.Namespace) -> int:
    """`masp cache aspects`."""
    from masp.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    from masp.artifacts.aspect_tokens import build_aspect_tokens

    build_aspect_tokens(config)
    return 0


def run_precision(arguments: argparse.Namespace) -> int:
    """`masp cache precision`."""
    from masp.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    from masp.experiments.cache_dtypes import report

    report(config, arguments.dtype, arguments.num_images, as_json=arguments.json)
    return 0
