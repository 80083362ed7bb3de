"""`masp cache …` and the part of the command line that says which share of the shards a process does."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from masp.errors import DataError, InputError

PRECISION_HELP = """\
Encodes a sample of the evaluated split in fp32 and in each number format, and scores it with what the run has trained
(zero-shot if it has trained nothing): how far features, scores and predictions move, and what an image takes."""


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--num-tasks` and `--task-index`."""
    parser.add_argument("--num-tasks", type=int, metavar="N", help="divide the shards among N processes")
    parser.add_argument("--task-index", type=int, metavar="I", help="which of them this is, from 0")


def add_cache_commands(parser: argparse.ArgumentParser, config_arguments: Callable) -> None:
    """Add the parsers of `masp cache …`; `config_arguments` adds `--config` and the settings to one."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    sub = actions.add_parser("info", help="what is in it, from what, how big")
    sub.add_argument("dir", metavar="DIR")
    sub = actions.add_parser("verify", help="check every digest and every member against the index")
    sub.add_argument("dir", metavar="DIR", nargs="?", help="the cache; with --repair it comes from the configuration")
    sub.add_argument("--repair", action="store_true", help="redo damaged shards; needs --config")
    config_arguments(sub)
    sub = actions.add_parser("extend", help="encode the images that the dataset has gained")
    add_task_arguments(sub)
    config_arguments(sub)
    config_arguments(
        actions.add_parser("aspects", help="keep the aspect tokens of all images, for stage 2 and evaluation")
    )
    sub = actions.add_parser("precision", help="measure what each number format costs", description=PRECISION_HELP)
    sub.add_argument("--dtype", action="append", metavar="NAME", help="a format, may be repeated (default: all)")
    sub.add_argument("--num-images", type=int, default=256, metavar="N", help="size of the sample (default 256)")
    sub.add_argument("--json", action="store_true", help="print JSON instead of a table")
    config_arguments(sub)


def run_extract(arguments: argparse.Namespace) -> int:
    """`masp extract`."""
    from masp.config import load_config
    from masp.extraction.job import extract, finish

    config = load_config(arguments.config, arguments.overrides)
    if arguments.finalize:
        if arguments.num_tasks is not None or arguments.task_index is not None:
            raise InputError("--finalize merges what all tasks made; give it without --num-tasks and --task-index")
        finish(config)
    else:
        num_tasks, task_index = _share(arguments)
        extract(config, num_tasks=num_tasks, task_index=task_index)
    return 0


def run_cache(arguments: argparse.Namespace) -> int:
    """`masp cache …`."""
    from masp.config import load_config

    if arguments.action == "info":
        from masp.cache.describe import describe

        print(describe(arguments.dir))
    elif arguments.action == "verify":
        return _verify(arguments)
    elif arguments.action == "extend":
        from masp.extraction.extend import extend

        num_tasks, task_index = _share(arguments)
        extend(load_config(arguments.config, arguments.overrides), num_tasks=num_tasks, task_index=task_index)
    elif arguments.action == "aspects":
        from masp.artifacts.aspect_tokens import build_aspect_tokens

        build_aspect_tokens(load_config(arguments.config, arguments.overrides))
    else:
        from masp.experiments.cache_dtypes import report

        config = load_config(arguments.config, arguments.overrides)
        report(config, arguments.dtype, arguments.num_images, as_json=arguments.json)
    return 0


def _share(arguments: argparse.Namespace) -> tuple[int, int]:
    from masp.distributed.task_share import task_share

    num_tasks, task_index, source = task_share(arguments.num_tasks, arguments.task_index, os.environ)
    if source:
        print(f"task {task_index} of {num_tasks} (from {source})", file=sys.stderr)
    return num_tasks, task_index


def _verify(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from masp.cache.verify import verify_cache

    if arguments.dir and "=" in arguments.dir and not os.path.exists(arguments.dir):  # a setting came first
        arguments.overrides.insert(0, arguments.dir)
        arguments.dir = None
    if arguments.repair:
        from masp.config import load_config
        from masp.extraction.repair import repair

        config = load_config(arguments.config, arguments.overrides)
        if arguments.dir and os.path.realpath(arguments.dir) != os.path.realpath(config.cache.dir):
            raise InputError(
                f"cache verify --repair {arguments.dir}: the configuration's cache.dir is {config.cache.dir}; give "
                "the configuration of the cache that is to be repaired"
            )
        problems = repair(config)
        for problem in problems:
            print(problem)
        print(f"cache: {config.cache.dir}: {len(problems)} problems found and mended")
        return 0
    if arguments.dir is None:
        raise InputError("cache verify: give the cache's folder, or --repair with --config")
    with tqdm(unit="B", unit_scale=True, desc="verify", disable=not sys.stderr.isatty()) as bar:
        problems = verify_cache(arguments.dir, bar.update)
    for problem in problems:
        print(problem)
    if problems:
        raise DataError(
            f"{arguments.dir}: {len(problems)} problems; `masp cache verify --repair --config …` mends them"
        )
    print(f"cache: {arguments.dir}: no problem found")
    return 0
