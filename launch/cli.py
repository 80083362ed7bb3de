"""`python -m launch …`: reads the command line, calls the command, turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from launch.job.parts import COMMANDS
from masp.errors import MaspError, one_line

DESCRIPTION = """\
Submit the commands of `masp` to a cluster: the same configuration, the same settings, the same results.

  extract    an array of tasks, each with its share of the shards
  train      one job over all nodes
  evaluate   one job over all nodes
  pipeline   extract, stage1, stage2, evaluate: each begins when the one before it has succeeded

and afterwards, where RUN is a run's output_dir (its newest submission) or the folder of one submission:

  status     what became of its parts: from the scheduler, and from the run's files
  logs       what its processes said
  cancel     stop it for good, keeping what it has done
  resume     submit again what it has not finished"""
EPILOG = """\
Settings: `key=value` as for `masp` (docs/configuration.md); `cluster.key=value` sets one of the cluster
(docs/cluster.md). Exit codes: 0 done; 2 something you gave is wrong; 1 a bug, or a part that failed."""
_CLUSTER_PREFIX = "cluster."
_HELP = {
    "extract": "submit the extraction",
    "train": "submit one stage of training",
    "evaluate": "submit the evaluation",
    "pipeline": "submit all of them as a chain",
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {one_line(message)}; see `{self.prog} --help`\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="python -m launch", description=DESCRIPTION, epilog=EPILOG, formatter_class=plain)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        sub = commands.add_parser(name, help=_HELP[name], epilog=EPILOG, formatter_class=plain)
        sub.add_argument("--cluster", required=True, metavar="FILE", help="such as configs/cluster/slurm.yaml")
        sub.add_argument("--config", required=True, metavar="FILE", help="such as configs/train.yaml")
        if name == "train":
            sub.add_argument("--stage", choices=("stage1", "stage2"), required=True)
        sub.add_argument("--dry-run", action="store_true", help="print the sbatch scripts; submit and write nothing")
        sub.add_argument("--wait", action="store_true", help="wait for the end, showing a table")
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="single settings")
    sub = commands.add_parser("status", help="what became of a run")
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("--wait", action="store_true", help="wait for the end, showing a table")
    sub = commands.add_parser("logs", help="what its processes said")
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("--part", help="extract, stage1, stage2 or evaluate; the one that runs or ran last if not given")
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
    """Do what the command line says; returns the exit code."""
    if arguments.command in ("status", "logs", "cancel"):
        from launch import follow

        if arguments.command == "status":
            return follow.status(arguments.run, arguments.wait)
        if arguments.command == "logs":
            return follow.logs(arguments.run, arguments.part, arguments.rank, arguments.lines)
        return follow.cancel(arguments.run)
    prefixed = [text for text in arguments.overrides if text.startswith(_CLUSTER_PREFIX)]
    plain = [text for text in arguments.overrides if text not in prefixed]
    prefixed = [text.removeprefix(_CLUSTER_PREFIX) for text in prefixed]
    if arguments.command == "resume":
        from launch.follow import resume

        return resume(arguments.run, plain, prefixed, arguments.wait)
    from launch.job.config import load_cluster
    from launch.submit import dry_run, submit
    from masp.config import load_config

    cluster, config = load_cluster(arguments.cluster, prefixed), load_config(arguments.config, plain)
    stage = getattr(arguments, "stage", None)
    if arguments.dry_run:
        dry_run(arguments.command, stage, config, cluster)
        return 0
    return submit(arguments.command, stage, config, cluster, wait=arguments.wait)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes positionals only in one run; settings may stand anywhere
    if unknown := [text for text in rest if text.startswith("-") or not hasattr(arguments, "overrides")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        arguments.overrides += rest
    try:
        return run(arguments)
    except MaspError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `launch logs … | head`
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:  # what was submitted does not depend on this process
        print("\ninterrupted: what was submitted goes on", file=sys.stderr)
        return 130
