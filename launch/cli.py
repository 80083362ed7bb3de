"""`python -m launch …`: parses the command line, runs the command, turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launch.job.parts import COMMANDS
from masp.cli.ending import exit_code
from masp.cli.parser import Parser
from masp.cli.settings import add_settings, parse_arguments, setting_names
from masp.cli.study import add_choice
from masp.cli.sweep import add_members
from masp.errors import InputError
from masp.runtime.log import show

if TYPE_CHECKING:  # they import torch
    from masp.experiments.study.run import Study
    from masp.sweep.members import Sweep

DESCRIPTION = """\
Submit the commands of `masp` to a cluster: the same configuration, the same settings, the same results.

  extract    an array of tasks, each with its share of the shards
  annotate   an array of tasks in the same way
  train      one job over all nodes
  evaluate   one job over all nodes
  pipeline   extract, stage1, stage2, evaluate: each starts when the one before it has succeeded; without stage1
             where checkpoint.aspect names the aspect modules, or aspects is empty; with annotate before stage1
             where annotate.aspects names aspects
  sweep      extract; stage 1 where members need it, a task per training; stage 2, a task per group of members that
             share a prefix; and one that scores, chooses and writes the table. Axes are given as for `masp sweep`
  study      the same for the ablations of the method: a task per group, and one that scores and writes the table

and afterwards, where RUN is a run's output_dir (its newest submission) or the directory of one submission:

  status     what became of its parts: from the scheduler, and from the run's files
  logs       what its processes printed
  cancel     stop it for good, keeping what it has done
  resume     submit again what it has not finished"""
EPILOG = """\
Settings: `key=value` as for `masp` (docs/configuration.md); `cluster.key=value` sets one of the cluster
(docs/cluster.md). Exit codes: 0 done; 2 something you gave is wrong; 1 a bug, or a part that failed."""
_CLUSTER_PREFIX = "cluster."
_HELP = {
    "extract": "submit the extraction",
    "annotate": "submit the annotation by the VLM",
    "train": "submit one stage of training",
    "evaluate": "submit the evaluation",
    "pipeline": "submit all of them as a chain",
    "sweep": "submit a sweep: a task per group of members",
    "study": "submit a study: a task per group of its runs",
}


def build_parser() -> Parser:
    """Build the parser of all commands."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m launch", description=DESCRIPTION, epilog=EPILOG, formatter_class=plain)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        sub = commands.add_parser(name, help=_HELP[name], epilog=EPILOG, formatter_class=plain)
        sub.add_argument("--cluster", required=True, metavar="FILE", help="such as configs/cluster/slurm.yaml")
        add_settings(sub, required=True)
        if name == "sweep":
            add_members(sub)
        if name == "study":
            add_choice(sub)
        if name == "train":
            sub.add_argument("--stage", choices=("stage1", "stage2"), required=True)
        sub.add_argument(
            "--dry-run",
            action="store_true",
            help="print the sbatch scripts and run all checks; submit and write nothing",
        )
        sub.add_argument("--wait", action="store_true", help="wait for the end, showing a table")
    sub = commands.add_parser("status", help="what became of a run")
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("--wait", action="store_true", help="wait for the end, showing a table")
    sub = commands.add_parser("logs", help="what its processes printed")
    sub.add_argument("run", metavar="RUN")
    text = (
        "extract, annotate, stage1, stage2 or evaluate, of a sweep or study aspects, groups, choose or table; the one "
    )
    text += "that runs or ran last if not given"
    sub.add_argument("--part", help=text)
    text = "one process: of training and evaluation the rank, of extraction the task"
    sub.add_argument("--rank", type=int, metavar="R", help=text)
    sub.add_argument("--lines", type=int, default=50, metavar="N", help="the last N of each (default 50); 0 for all")
    sub = commands.add_parser("cancel", help="stop it for good")
    sub.add_argument("run", metavar="RUN")
    sub = commands.add_parser("resume", help="submit again what it has not finished")
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("--wait", action="store_true", help="wait for the end, showing a table")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run a command; returns the exit code."""
    if arguments.command in ("status", "logs", "cancel"):
        from launch import follow

        if arguments.command == "status":
            return follow.status(arguments.run, arguments.wait)
        if arguments.command == "logs":
            return follow.logs(arguments.run, arguments.part, arguments.rank, arguments.lines)
        return follow.cancel(arguments.run)
    of_run, of_cluster = _separate(arguments.overrides)
    if arguments.command == "resume":
        from launch.follow import resume

        return resume(arguments.run, of_run, of_cluster, arguments.wait)
    from launch.job.config import load_cluster
    from launch.submit import dry_run, submit
    from masp.config import load_config

    cluster = load_cluster(arguments.cluster, of_cluster)
    runs: Sweep | Study | None = None
    if arguments.command == "sweep":
        runs = _sweep(arguments, of_run)
    elif arguments.command == "study":
        runs = _study(arguments, of_run)
    config = load_config(arguments.config, of_run) if runs is None else runs.base
    stage = getattr(arguments, "stage", None)
    if arguments.dry_run:
        dry_run(arguments.command, stage, config, cluster, runs)
        return 0
    return submit(arguments.command, stage, config, cluster, wait=arguments.wait, runs=runs)


def _sweep(arguments: argparse.Namespace, overrides: Sequence[str]) -> Sweep:
    """The sweep that is asked for; says what it is, and what it costs."""
    from masp.sweep.axes import asked_members
    from masp.sweep.cost import plan_lines
    from masp.sweep.members import open_sweep

    if arguments.halving is not None:
        raise InputError(
            "--halving: a rung waits for all groups, which tasks of an array do not; run `masp sweep --halving` as one "
            "process"
        )
    asked, members = asked_members(arguments.config, overrides, arguments.members, arguments.num, arguments.random)
    sweep = open_sweep(arguments.config, asked, members, arguments.test)
    show(*plan_lines(sweep, None, arguments.tflops, arguments.utilization, arguments.rate_from))
    tasks = f"{len(sweep.aspects)} of stage 1, {len(sweep.groups)} of stage 2, 1 that chooses"
    show(f"tasks: {len(sweep.aspects) + len(sweep.groups) + 1}: {tasks}")
    return sweep


def _study(arguments: argparse.Namespace, overrides: Sequence[str]) -> Study:
    """The study that is asked for; says how many tasks it has."""
    from masp.config import load_config
    from masp.experiments.study.run import open_study

    study = open_study(load_config(arguments.config, overrides), arguments.seeds, arguments.only)
    num_aspects = sum("stage1" in run.variant.stages for run in study.runs)
    num_groups = sum(any("stage2" in run.variant.stages for run in unit) for unit in study.units)
    tasks = f"{num_aspects} of stage 1, {num_groups} of stage 2, 1 that writes the table"
    show(f"study: {len(study.runs)} runs", f"tasks: {num_aspects + num_groups + 1}: {tasks}")
    return study


def _separate(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide settings into those of the run and those of the cluster; the latter lose their prefix."""
    of_cluster = [text for text in overrides if text.startswith(_CLUSTER_PREFIX)]
    of_run = [text for text in overrides if text not in of_cluster]
    return of_run, [text.removeprefix(_CLUSTER_PREFIX) for text in of_cluster]


def _names() -> list[str]:
    from launch.job.config import ClusterConfig

    return [*setting_names(), *(f"{_CLUSTER_PREFIX}{name}" for name in setting_names(ClusterConfig))]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments(build_parser(), argv, _names)
    # what was submitted does not depend on this process
    return exit_code(lambda: run(arguments), lambda: show("", "interrupted: what was submitted goes on", to=sys.stderr))
