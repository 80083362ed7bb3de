"""`masp annotate`: answers to aspects that nobody annotated."""

from __future__ import annotations

import argparse

from masp.cli.extract import add_task_arguments, share_of_tasks
from masp.cli.parser import Commands, add_command
from masp.cli.settings import add_settings
from masp.errors import InputError

_DETAILS = """\
Stage 1 learns from annotated aspects. This command has the frozen VLM annotate the images of a finished cache: it reads
the stored features, asks the first question of each aspect and compares the likelihoods of the possible answers (or
lets the VLM write, where there are none); brightness and colorfulness are computed from the images. Answers go to
annotations/ in the cache, beside what people annotated, which always wins; training and evaluation read them there.

Which images: all, of aspects that no training image has; annotate.aspects=[scene] asks about every image without one.
Interrupt it at any time: the same command goes on. Several processes share the work like those of `masp extract`.

  masp annotate --config configs/train.yaml
  masp annotate --config configs/train.yaml --num-tasks 4 --task-index 0    one of four processes
  masp annotate --config configs/train.yaml --agreement 500     ask about 500 images that people annotated, and compare
  masp annotate --config configs/train.yaml --review page.html  images with answers, the least sure first
  masp annotate --config configs/train.yaml --forget scene      delete the answers to an aspect"""


def register(commands: Commands) -> None:
    """Add the parser."""
    summary = "have the frozen VLM annotate the aspects that nobody annotated"
    parser = add_command(commands, "annotate", summary, _DETAILS)
    add_task_arguments(parser)
    parser.add_argument(
        "--review", metavar="FILE", help="write a page of images with their answers, the least sure first"
    )
    parser.add_argument(
        "--agreement", nargs="?", type=int, const=1000, metavar="N",
        help="answer up to N images (default 1,000) per aspect that people annotated, and compare",
    )  # fmt: skip
    parser.add_argument(
        "--forget", action="append", metavar="ASPECT", help="delete the stored answers to an aspect; may be repeated"
    )
    add_settings(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Annotate this process's share of the shards, or show, compare or delete answers."""
    from masp.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    names = ("review", "agreement", "forget")
    chosen = [f"--{name}" for name in names if getattr(arguments, name) is not None]
    if len(chosen) > 1 or (chosen and (arguments.num_tasks is not None or arguments.task_index is not None)):
        raise InputError(f"{chosen[0]} is a work of its own, of one process; give it alone")
    if arguments.forget:
        from masp.annotation.job import forget_answers

        forget_answers(config, arguments.forget)
        return 0
    if arguments.agreement is not None:
        from masp.annotation.agreement import measure_agreement

        measure_agreement(config, arguments.agreement)
        return 0
    if arguments.review is not None:
        from masp.annotation.review import review

        review(config, arguments.review)
        return 0
    from masp.annotation.job import annotate

    num_tasks, task_index = share_of_tasks(arguments)
    annotate(config, num_tasks=num_tasks, task_index=task_index)
    return 0
