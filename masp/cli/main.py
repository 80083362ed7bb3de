"""`masp …`: reads the command line, calls the command, turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import errno
import io
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from masp import __version__
from masp.cli.cache import add_cache_commands, add_task_arguments, run_cache, run_extract
from masp.errors import InputError, MaspError, one_line

EPILOG = """\
The order of work:
  masp plan     --config C      what will it take: bytes, GPU-hours, free space
  masp extract  --config C      run the frozen encoder once per image, into the feature cache
  masp train --stage stage1 …   train the aspect modules on the cache
  masp train --stage stage2 …   train the soft prompt on top of them
  masp evaluate --config C      score a split, write metrics.json
  masp report   RUN_DIR         one HTML page: accuracy, confusion, curves

Settings: every command takes `--config FILE` and then `key=value` for single settings (docs/configuration.md).
Exit codes: 0 done; 2 something you gave is wrong; 3 data are damaged; 75 stopped early, resumable; 1 a bug.
"""

_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
INTERRUPTED = 128 + 2
"""Exit code after Ctrl-C where nothing could stop cleanly, as shells have it."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {one_line(message)}; see `{self.prog} --help`\n")


def _config_arguments(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    parser.add_argument(
        "--config", default=default, metavar="FILE", help="YAML configuration, such as configs/train.yaml"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="single settings, such as stage1.num_epochs=1"
    )


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="masp", description="Recognise the emotion that a picture evokes.", epilog=EPILOG, formatter_class=plain
    )
    parser.add_argument("--version", action="version", version=f"masp {__version__}")
    # `deepspeed --module masp.cli train …` puts it in front of the command, other versions behind it
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, more: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=f"{text}.\n\n{more}".strip(), formatter_class=plain)

    sub = command("demo", "run the whole pipeline on the built-in demo", DEMO_HELP)
    _config_arguments(sub, "configs/demo.yaml")
    sub.add_argument("--num-train", type=int, default=None, help="training pictures to draw")
    sub.add_argument("--num-test", type=int, default=None, help="test pictures to draw")

    sub = command("make-demo-data", "draw pictures of the demo world, in the layout of EmoSet")
    sub.add_argument("dir", metavar="DIR", help="where to write; new or empty")
    sub.add_argument("--num-train", type=int, required=True)
    sub.add_argument("--num-val", type=int, default=0)
    sub.add_argument("--num-test", type=int, required=True)
    sub.add_argument("--seed", type=int, default=0)

    sub = command("plan", "say what a run will take, from image headers and settings alone", PLAN_HELP)
    _config_arguments(sub)
    sub.add_argument("--json", action="store_true", help="print everything as JSON")
    sub.add_argument("--tflops", type=float, metavar="X", help="peak of one GPU in TFLOP/s (default 989: H100, bf16)")
    sub.add_argument("--utilisation", type=float, metavar="U", help="share of the peak that is reached (default 0.4)")
    sub.add_argument("--rate-from", metavar="RUN_DIR", help="take the stages' rates from an earlier run's logs")
    text = "time encoder and training on N images here (4 if not said)"
    sub.add_argument("--measure", type=int, nargs="?", const=4, metavar="N", help=text)
    sub.add_argument("--processes", type=int, metavar="N", help="processes that read headers")

    sub = command("extract", "run the frozen encoder over a dataset, into the feature cache", EXTRACT_HELP)
    add_task_arguments(sub)
    sub.add_argument("--finalize", action="store_true", help="only merge what all tasks made into a finished cache")
    _config_arguments(sub)

    sub = command("train", "train a stage on the cache, or go on from its newest checkpoint", TRAIN_HELP)
    sub.add_argument("--stage", required=True, choices=("stage1", "stage2"))
    sub.add_argument("--profile", action="store_true", help="write a trace of a few steps into the stage's folder")
    _config_arguments(sub)
    sub.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # `deepspeed` appends it

    sub = command("evaluate", "score a split and write records.h5 and metrics.json", EVALUATE_HELP)
    sub.add_argument("--on", action="append", default=[], metavar="FILE", help="also on this dataset (repeatable)")
    _config_arguments(sub)
    sub.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)

    sub = command("predict", "predict the emotion of pictures, with probabilities")
    sub.add_argument("images", nargs="+", metavar="IMAGE", help="picture files; `key=value` sets a setting")
    sub.add_argument("--config", required=True, metavar="FILE", help="the configuration of the run that trained")
    sub.add_argument("--json", action="store_true", help="one JSON line per picture")
    sub.add_argument("--attention", metavar="FILE", help="also an HTML page that shows where each aspect looked")

    sub = command("report", "write one HTML page about a run")
    sub.add_argument("run_dir", metavar="RUN_DIR", help="the run's output_dir")
    sub.add_argument("--output", metavar="FILE", default=None, help="the page; RUN_DIR/report.html if not given")

    sub = command("compare", "compare runs on the same samples: paired tests, a table and a picture", COMPARE_HELP)
    sub.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or records.h5 files")
    sub.add_argument("--output", metavar="DIR", default="outputs/compare", help="default outputs/compare")

    sub = command("study", "the ablations of the method over several seeds: a table and a plot", STUDY_HELP)
    _config_arguments(sub)
    sub.add_argument("--seeds", metavar="N,N…", default="1,2,3", help="seeds of training (default 1,2,3)")
    sub.add_argument("--only", metavar="NAME,NAME…", help="some variants; `masp` is always among them")
    sub.add_argument("--list", action="store_true", help="only print the variants and the commands that make them")

    sub = command("doctor", "check this machine: versions, devices, Slurm, and a configuration if given")
    _config_arguments(sub)

    add_cache_commands(command("cache", "look at a feature cache, mend it, extend it"), _config_arguments)
    return parser


DEMO_HELP = """\
Draws a small world of pictures whose best possible accuracy is known, then extracts, trains both stages, evaluates
MASP beside its baselines, prints a table and writes outputs/demo/report.html. Minutes on two CPU cores."""
PLAN_HELP = """\
Number of images, vision tokens, bytes per precision, free space, GPU-hours, and when the cache has paid for itself. No
weights are loaded (unless --measure asks). Beside a run that exists it shows predicted and actual. docs/planning.md"""
EXTRACT_HELP = """\
Interrupt it at will: the same command goes on with the shards that are missing. Pictures that cannot be read go to
quarantine.jsonl with the reason.

Several processes share the work with --num-tasks and --task-index, or as elements of a Slurm array and tasks of a Slurm
step, which need neither. Whichever of them finds all shards finished merges them; --finalize does only that."""
TRAIN_HELP = """\
Runs alone, or on several ranks: torchrun --nproc-per-node 8 -m masp.cli train …, deepspeed --module masp.cli train …,
or srun masp train …. SIGTERM stops it at a step boundary with a checkpoint (exit code 75); the same command resumes."""
EVALUATE_HELP = """\
Scores checkpoint.aspect and checkpoint.soft_prompt (default: what this run trained; `none`: without). Runs alone or on
several ranks, each of which writes its own ledger; stopped, it scores only what is missing when called again.

--on FILE evaluates the same on another dataset too, whose configuration names its dataset and cache; a table over all
datasets is written to datasets.json. Categories that were not trained need evaluate.category_map. docs/evaluation.md"""
COMPARE_HELP = """\
McNemar's exact test and a bootstrap interval of the difference of accuracies for every pair, with p-values corrected
for their number (Holm). Writes compare.json, compare.md and compare.png. Runs on other samples are refused."""
STUDY_HELP = """\
Trains and evaluates the method and its ablations: without each aspect, without all of them, without vision features,
without soft prompt; other lengths of the soft prompt, other numbers of queries, the other layout. Call it again and it
goes on where it stopped. Writes study.json, study.md and study.png to OUTPUT_DIR/study. docs/evaluation.md"""


def run(arguments: argparse.Namespace) -> int:
    """Call a command; returns the exit code."""
    from masp.config import load_config

    name = arguments.command
    if name == "make-demo-data":
        from masp.demo.data import make_demo_data

        make_demo_data(
            arguments.dir, arguments.num_train, arguments.num_test, arguments.seed, num_val=arguments.num_val
        )
        return 0
    if name == "report":
        from masp.report.page import write_report

        print(f"report: {write_report(arguments.run_dir, arguments.output)}")
        return 0
    if name == "compare":
        from masp.experiments.compare import compare, markdown

        print(markdown(compare(arguments.runs, arguments.output)), end="")
        print(f"compare: {arguments.output}")
        return 0
    if name == "cache":
        return run_cache(arguments)
    if name == "extract":
        return run_extract(arguments)
    if name == "predict":
        images = [a for a in arguments.images if not _is_setting(a)]
        config = load_config(arguments.config, [a for a in arguments.images if _is_setting(a)])
        from masp.cli.predict import print_predictions

        print_predictions(config, images, arguments.json, arguments.attention)
        return 0
    if name == "doctor":
        from masp.cli.doctor import doctor

        return doctor(arguments.config, arguments.overrides)
    config = load_config(arguments.config, arguments.overrides)
    if name == "demo":
        from masp.demo.run import run_demo

        run_demo(config, arguments.num_train, arguments.num_test)
    elif name == "plan":
        _plan(config, arguments)
    elif name == "train":
        from masp.training.loop import train

        train(config, arguments.stage, profile=arguments.profile)
    elif name == "study":
        from masp.demo.data import draw_demo_data
        from masp.experiments.study import run_study

        if not arguments.list:
            draw_demo_data(config)

        run_study(config, arguments.seeds, arguments.only, arguments.list)
    elif arguments.on:
        from masp.evaluation.transfer import evaluate_on

        evaluate_on(config, arguments.on)
    else:
        from masp.evaluation.run import evaluate

        evaluate(config)
    return 0


def _plan(config, arguments: argparse.Namespace) -> None:
    from masp.plan.plan import plan

    given = {name: getattr(arguments, name) for name in ("tflops", "utilisation", "rate_from", "measure")}
    given |= {"num_processes": arguments.processes, "as_json": arguments.json}
    plan(config, **{name: value for name, value in given.items() if value is not None})


def _is_setting(argument: str) -> bool:
    """Whether an argument of `predict` is `key=value` rather than a picture, which may be missing."""
    from dataclasses import fields

    from masp.config import Config

    if "=" not in argument or os.path.exists(argument):
        return False
    # a picture has a suffix that a value seldom has; a key that begins like ours is a setting, whatever its value
    known = argument.lstrip("+").partition("=")[0].partition(".")[0] in {field.name for field in fields(Config)}
    return known or not argument.lower().endswith(_PICTURE_SUFFIXES)


def _nobody_reads() -> bool:
    """Whether standard output goes to a reader that has left; if so, what is still to be written is let go."""
    out = sys.stdout.fileno()
    states = select.poll()
    states.register(out, 0)
    if not any(state & select.POLLERR for _, state in states.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), out)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes positionals only in one run; settings may stand anywhere
    takes = next((name for name in ("overrides", "images") if hasattr(arguments, name)), None)
    unknown = [a for a in rest if a.startswith("-") or takes is None]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest and takes is not None:
        getattr(arguments, takes).extend(rest)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            # names of files may be no UTF-8, and a terminal may lack a character; neither is a reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        code = run(arguments)
        sys.stdout.flush()
        return code
    except MaspError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return 128 + signal.SIGPIPE  # as `masp study --list | head` would end if Python left the signal alone
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" for {error.filename}" if error.filename else ""
        print(one_line(f"error: no space is left{where}; free some and run the same command again"), file=sys.stderr)
        return InputError.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on where it can", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
