"""`masp cache …`: looks at a feature cache, checks it, repairs it, adds to it, sends it elsewhere and fetches it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from masp.cli.extract import add_task_arguments, share_of_tasks
from masp.cli.parser import Commands, add_command
from masp.cli.settings import add_sample, add_settings, is_setting
from masp.errors import DataError, InputError
from masp.runtime.log import show

MAX_THREADS = 64

_DETAILS = """\
  masp cache info outputs/cache
  masp cache verify outputs/cache
  masp cache verify --repair --config configs/train.yaml
  masp cache push outputs/cache hf://owner/name
  masp cache pull hf://owner/name outputs/cache"""
_PRECISION = """\
Encodes a sample of the evaluated split in fp32 and in each number format, and scores it with what the run has trained
(zero-shot if it has trained nothing): how far features, scores and predictions move, and what an image takes."""

_PLACES = """\
  hf://owner/name    a dataset repository of the Hugging Face Hub; `hf auth login` logs you in there, and HF_ENDPOINT
                     names another hub; hf://owner/name@revision is another branch than main
  a directory        on another disk, or one that other machines see
  s3://bucket/path   and every other URL of fsspec, where the package for it is installed (s3fs for S3)"""
_PUSH = f"""\
Features are computed once: a cache that was made on a cluster can be used on any machine. TARGET is one of

{_PLACES}

What is there already is not sent again, so after any interruption the same command goes on. Every file is compared with
its digest before it is sent, and the manifest is sent last: what has arrived only in part is never taken for a whole
cache. A target with another cache is refused.

  masp cache push outputs/cache hf://owner/name
  masp cache push outputs/cache s3://bucket/caches/emoset
  masp cache push outputs/cache /mnt/archive/emoset"""
_PULL = f"""\
The cache can then be trained on and evaluated as if it had been made here; the images themselves are not needed. SOURCE
is what `masp cache push` was given:

{_PLACES}

What is here already and undamaged is not fetched again, so after any interruption, and to mend damaged files, the same
command goes on. Every file that arrives is compared with the manifest's digest. A directory with another cache is
refused.

  masp cache pull hf://owner/name outputs/cache
  masp cache verify outputs/cache
  masp train --stage stage1 --config configs/train.yaml cache.dir=outputs/cache"""


def register(commands: Commands) -> None:
    """Add the parsers."""
    summary = "look at a feature cache, repair it, extend it, send and fetch it"
    actions = add_command(commands, "cache", summary, _DETAILS).add_subparsers(
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

    parser = add_command(actions, "push", "send it to the hub, a bucket or another directory", _PUSH)
    parser.add_argument("dir", metavar="CACHE", help="directory of a finished cache")
    parser.add_argument("target", metavar="TARGET", help="where it is sent")
    parser.add_argument("--public", action="store_true", help="a repository of the hub that is made is public")
    _add_num_threads(parser)
    parser.set_defaults(run=run_push)

    parser = add_command(actions, "pull", "fetch it from the hub, a bucket or another directory", _PULL)
    parser.add_argument("source", metavar="SOURCE", help="where it is")
    parser.add_argument("dir", metavar="CACHE", help="directory of the cache, which is made")
    _add_num_threads(parser)
    parser.set_defaults(run=run_pull)


def _add_num_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num-threads", type=int, default=4, metavar="N", help="files that travel at the same time (default 4)"
    )


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
    from masp.config.feature_source import cache_directory

    config = load_config(arguments.config, arguments.overrides)
    directory = cache_directory(config)
    if arguments.dir and os.path.realpath(arguments.dir) != os.path.realpath(directory):
        raise InputError(
            f"cache verify --repair {arguments.dir}: the configuration's cache.dir is {directory}; give "
            "the configuration of the cache that is to be repaired"
        )
    from masp.extraction.repair import repair

    problems = repair(config)
    for problem in problems:
        show(str(problem))
    show(f"cache: {directory}: {len(problems)} problems found and repaired")
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


def run_push(arguments: argparse.Namespace) -> int:
    """`masp cache push`."""
    _check_num_threads(arguments)
    from masp.cache.remote.push import push

    push(
        _directory(arguments.dir, "`masp cache pull` fetches a cache from there"),
        arguments.target,
        num_threads=arguments.num_threads,
        public=arguments.public,
    )
    return 0


def run_pull(arguments: argparse.Namespace) -> int:
    """`masp cache pull`."""
    _check_num_threads(arguments)
    from masp.cache.remote.pull import pull

    pull(
        arguments.source,
        _directory(arguments.dir, "`masp cache push` sends a cache there"),
        num_threads=arguments.num_threads,
    )
    return 0


def _directory(path: str, hint: str) -> Path:
    if "://" in path:
        raise InputError(f"CACHE: must be a directory, not {path}; {hint}")
    return Path(path)


def _check_num_threads(arguments: argparse.Namespace) -> None:
    if not 1 <= arguments.num_threads <= MAX_THREADS:
        raise InputError(f"--num-threads {arguments.num_threads}: must be from 1 to {MAX_THREADS}")
