"""`masp extract`: fills the feature cache."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from masp.cli.parser import Commands, add_command
from masp.cli.settings import add_settings
from masp.errors import InputError
from masp.runtime.log import show

if TYPE_CHECKING:
    from masp.config import Config

_DETAILS = """\
Interrupt it at any time: the same command goes on with the shards that are missing. Images that cannot be read go to
quarantine.jsonl with the reason.

Several processes share the work with --num-tasks and --task-index, or as elements of a Slurm array and tasks of a Slurm
step, which need neither. Whichever of them finds all shards finished merges them; --finalize does only that.

  masp extract --config configs/train.yaml
  masp extract --config configs/train.yaml --num-tasks 4 --task-index 0    one of four processes
  masp extract --config configs/train.yaml --finalize                      merge what all of them made"""


def register(commands: Commands) -> None:
    """Add the parser."""
    summary = "run the frozen encoder over a dataset, into the feature cache"
    parser = add_command(commands, "extract", summary, _DETAILS)
    add_task_arguments(parser)
    parser.add_argument("--finalize", action="store_true", help="only merge what all tasks made into a finished cache")
    parser.add_argument(
        "--near-duplicates",
        action="store_true",
        help="then search for images that look nearly alike in two splits (needs the extra masp[duplicates])",
    )
    add_settings(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Extract this process's share of the shards, or merge all of them."""
    from masp.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    from masp.extraction.job import extract, finish

    if arguments.near_duplicates and arguments.num_tasks not in (None, 1):
        raise InputError("--near-duplicates needs all images at once; give it without --num-tasks, or with --finalize")
    if arguments.finalize:
        if arguments.num_tasks is not None or arguments.task_index is not None:
            raise InputError("--finalize merges what all tasks made; give it without --num-tasks and --task-index")
        finish(config)
    else:
        num_tasks, task_index = share_of_tasks(arguments)
        extract(config, num_tasks=num_tasks, task_index=task_index)
    if arguments.near_duplicates:
        _search_near_duplicates(config)
    return 0


def _search_near_duplicates(config: Config) -> None:
    from masp.data.findings import finding_lines
    from masp.extraction.near_duplicates import record_near_duplicates

    near = [finding for finding in record_near_duplicates(config).findings if finding.kind == "near duplicates"]
    show(*(finding_lines(near) or ["no images of different splits look nearly alike"]))


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--num-tasks` and `--task-index`."""
    parser.add_argument("--num-tasks", type=int, metavar="N", help="divide the shards among N processes")
    parser.add_argument("--task-index", type=int, metavar="I", help="which of them this is, from 0")


def share_of_tasks(arguments: argparse.Namespace) -> tuple[int, int]:
    """The number of tasks and the index of this one: as given, or as Slurm says; then a note names the source."""
    from masp.distributed.task_share import task_share

    num_tasks, task_index, source = task_share(arguments.num_tasks, arguments.task_index, os.environ)
    if source:
        show(f"task {task_index} of {num_tasks} (from {source})", to=sys.stderr)
    return num_tasks, task_index
