"""`python -m launch …`: reads the command line, submits, says where everything is."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.parts import COMMANDS, Part, make_parts
from launch.record import CONFIG, FILE, JOBS, explain, make_folder, write_record
from launch.schema import ClusterConfig, load_cluster
from masp.config import Config, load_config
from masp.errors import InputError, MaspError

DESCRIPTION = """\
Submit the commands of `masp` to a cluster: the same configuration, the same settings, the same results.

  extract    an array of tasks, each with its share of the shards
  train      one job over all nodes
  evaluate   one job over all nodes
  pipeline   extract, stage1, stage2, evaluate: each begins when the one before it has succeeded

Submitting again is safe and goes on where the last one ended: what is finished is not done twice."""
EPILOG = """\
Settings: `key=value` as for `masp` (docs/configuration.md); `cluster.key=value` sets one of the cluster
(docs/cluster.md). Exit codes: 0 done; 2 something you gave is wrong; 1 a bug, or (with --wait) a part that failed."""
_CLUSTER_PREFIX = "cluster."


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m launch",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--cluster", required=True, metavar="FILE", help="such as configs/cluster/slurm.yaml")
    parser.add_argument("--config", required=True, metavar="FILE", help="such as configs/train.yaml")
    parser.add_argument("--stage", choices=("stage1", "stage2"), help="which one `train` trains")
    parser.add_argument("--dry-run", action="store_true", help="print the sbatch scripts; submit and write nothing")
    parser.add_argument("--wait", action="store_true", help="wait for the end, telling every change")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="single settings")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit code."""
    if arguments.stage and arguments.command != "train":
        raise InputError(f"command line: --stage is train's; {arguments.command} has none")
    prefixed = [text for text in arguments.overrides if text.startswith(_CLUSTER_PREFIX)]
    cluster = load_cluster(arguments.cluster, [text.removeprefix(_CLUSTER_PREFIX) for text in prefixed])
    config = load_config(arguments.config, [text for text in arguments.overrides if text not in prefixed])
    if arguments.dry_run:
        _dry_run(arguments, config, cluster)
        return 0
    folder = make_folder(arguments.command, config, cluster)
    try:
        parts = make_parts(arguments.command, arguments.stage, config, cluster, folder / CONFIG)
        submit = _submit_local if cluster.executor == "local" else _submit_slurm
        return submit(arguments, config, cluster, parts, folder)
    except InputError:
        if not (folder / FILE).exists():  # nothing was submitted
            shutil.rmtree(folder)
        raise


def _run_name(config: Config) -> str:
    return Path(config.output_dir).absolute().name


def _dry_run(arguments: argparse.Namespace, config: Config, cluster: ClusterConfig) -> None:
    folder = Path(config.output_dir).absolute() / "launch" / f"<time>-{arguments.command}"
    parts = make_parts(arguments.command, arguments.stage, config, cluster, folder / CONFIG)
    if cluster.executor == "local":
        for part in parts:
            print(f"{part.name}: {len(part.jobs)} x {part.tasks_per_node} processes on this machine: {part.result}")
        return
    from launch.slurm import scripts

    for name, text in scripts(parts, cluster, _run_name(config), folder).items():
        print(f"# {'-' * 8} {name} {'-' * 8}\n{text}")


def _submit_slurm(
    arguments: argparse.Namespace, config: Config, cluster: ClusterConfig, parts: list[Part], folder: Path
) -> int:
    from launch.slurm import GOOD, submit, wait

    done = submit(parts, cluster, _run_name(config), folder)
    write_record(folder, arguments.command, arguments.stage, done)
    jobs = ", ".join(
        f"{part.job_id} ({part.name}{f', {part.num_jobs} tasks' if part.num_jobs > 1 else ''})" for part in done
    )
    print(f"submitted: jobs {jobs}", flush=True)
    bad: list[str] = []
    if arguments.wait:
        states = wait(done, lambda name, state: print(f"{name}: {state}", flush=True))
        for part in done:
            if states[part.name] != GOOD:
                bad.append(f"{part.name}: {states[part.name]}: {explain(folder, part.job_id) or 'it never started'}")
    return _say_where(parts, folder, bad)


def _submit_local(
    arguments: argparse.Namespace, config: Config, cluster: ClusterConfig, parts: list[Part], folder: Path
) -> int:
    from launch import driver

    write_record(folder, arguments.command, arguments.stage, [])
    pid = driver.start(folder)
    print(f"started: process {pid} runs {', '.join(part.name for part in parts)} in the background", flush=True)
    status = driver.wait(folder, pid) if arguments.wait else {"state": "running"}
    bad = [status["message"]] if status["state"] in ("failed", "stopped") else []
    return _say_where(parts, folder, bad)


def _say_where(parts: list[Part], folder: Path, bad: list[str]) -> int:
    """The last line, which says where logs and results are; returns the exit code."""
    for text in bad:
        print(f"error: {text}", file=sys.stderr)
    print(f"launch: logs in {folder / JOBS}; result: {parts[-1].result}")
    return 1 if bad else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes positionals only in one run; settings may stand anywhere
    if unknown := [text for text in rest if text.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    arguments.overrides += rest
    try:
        return run(arguments)
    except MaspError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # what was submitted does not depend on this process
        print("\ninterrupted: what was submitted goes on", file=sys.stderr)
        return 130
