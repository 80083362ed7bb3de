"""`masp plan`: what a run will take, before anything is submitted."""

from __future__ import annotations

import argparse

from masp.cli.parser import Commands, add_command
from masp.cli.settings import add_settings
from masp.runtime.log import show

_DETAILS = """\
Number of images, vision tokens, bytes per precision, free space, GPU-hours, and when the cache has paid for itself. No
weights are loaded (unless --measure asks for it). Where a run exists already, predicted and actual are shown side by
side. docs/planning.md

  masp plan --config configs/train.yaml
  masp plan --config configs/train.yaml --tflops 312 --utilization 0.5     another GPU
  masp plan --config configs/train.yaml --rate-from outputs/earlier        the speed of an earlier run
  masp plan --config configs/train.yaml --measure 8                        the speed of this machine"""


def register(commands: Commands) -> None:
    """Add the parser."""
    summary = "say what a run will take, from image headers and settings alone"
    parser = add_command(commands, "plan", summary, _DETAILS)
    add_settings(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--tflops", type=float, metavar="X", help="peak of one GPU in TFLOP/s (default 989: H100, bf16)"
    )
    parser.add_argument(
        "--utilization",
        "--utilisation",
        type=float,
        metavar="U",
        help="share of the peak that is reached (default 0.4)",
    )
    parser.add_argument("--rate-from", metavar="RUN_DIR", help="take the stages' rates from an earlier run's logs")
    parser.add_argument(
        "--measure",
        type=int,
        nargs="?",
        const=4,
        metavar="N",
        help="time encoder and training on N images here (4 if N is not given)",
    )
    parser.add_argument("--processes", type=int, metavar="N", help="processes that read headers")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; nothing is written."""
    import json

    from masp.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    from masp.plan.plan import make_plan
    from masp.plan.render import render

    given = {name: getattr(arguments, name) for name in ("tflops", "utilization", "rate_from", "measure")}
    given["num_processes"] = arguments.processes
    plan = make_plan(config, **{name: value for name, value in given.items() if value is not None})
    show(*(json.dumps(plan.to_dict(), indent=1) if arguments.json else render(plan)).split("\n"))
    return 0
