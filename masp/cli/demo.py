"""`masp demo` and `masp make-demo-data`: the pipeline on the demo world, and its images alone."""

from __future__ import annotations

import argparse

from masp.cli.parser import Commands, add_command
from masp.cli.settings import add_settings

_DEMO = """\
Draws a small world of images whose best possible accuracy is known, then extracts, trains both stages, evaluates MASP
beside its baselines, prints a table and writes outputs/demo/report.html. Takes minutes on two CPU cores.

  masp demo
  masp demo --num-train 200 --num-test 100 output_dir=outputs/small"""
_DATA = """\
  masp make-demo-data data/world --num-train 4000 --num-test 1000"""


def register(commands: Commands) -> None:
    """Add both parsers."""
    parser = add_command(commands, "demo", "run the whole pipeline on the built-in demo", _DEMO)
    add_settings(parser, "configs/demo.yaml")
    parser.add_argument("--num-train", type=int, default=None, help="training images to draw")
    parser.add_argument("--num-test", type=int, default=None, help="test images to draw")
    parser.set_defaults(run=run)

    parser = add_command(commands, "make-demo-data", "draw images of the demo world, in the layout of EmoSet", _DATA)
    parser.add_argument("dir", metavar="DIR", help="where to write; new or empty")
    parser.add_argument("--num-train", type=int, required=True)
    parser.add_argument("--num-val", type=int, default=0)
    parser.add_argument("--num-test", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=run_make_demo_data)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo."""
    from masp.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    from masp.demo.run import run_demo

    run_demo(config, arguments.num_train, arguments.num_test)
    return 0


def run_make_demo_data(arguments: argparse.Namespace) -> int:
    """Draw the images only."""
    from masp.demo.data import make_demo_data

    make_demo_data(arguments.dir, arguments.num_train, arguments.num_test, arguments.seed, num_val=arguments.num_val)
    return 0
