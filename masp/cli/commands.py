"""The commands of `masp` and the parser of its command line."""

from __future__ import annotations

import argparse

from masp import __version__
from masp.cli import (
    annotate,
    app,
    cache,
    compare,
    datasets,
    demo,
    doctor,
    evaluate,
    export,
    extract,
    init,
    plan,
    predict,
    push,
    quantization,
    report,
    run,
    serve,
    study,
    sweep,
    train,
)
from masp.cli.parser import Parser, add_local_rank

COMMANDS = (
    demo,
    datasets,
    init,
    run,
    plan,
    extract,
    annotate,
    train,
    evaluate,
    predict,
    app,
    serve,
    export,
    push,
    report,
    compare,
    study,
    sweep,
    doctor,
    cache,
    quantization,
)
"""Command modules, in the order in which `masp --help` lists them."""

EPILOG = """\
The short way:
  masp init DATA --output C     look at the images, write settings that fit them
  masp run --config C           all that follows, up to the report

The order of work:
  masp datasets PATH            what is found there, and what to write as dataset.*
  masp plan     --config C      what it will take: bytes, GPU-hours, free space
  masp extract  --config C      run the frozen encoder once per image, into the feature cache
  masp annotate --config C      where nobody annotated aspects: have the frozen VLM do it
  masp train --stage stage1 …   train the aspect modules on the cache
  masp train --stage stage2 …   train the soft prompt on top of them
  masp evaluate --config C      score a split, write metrics.json
  masp report   RUN_DIR         one HTML page: accuracy, confusion, curves
  masp app      RUN_DIR         look at single images in the browser
  masp export   RUN_DIR DIR     what was trained, in one directory for others; `masp push` sends it to the hub

Settings: every command takes `--config FILE` and then `key=value` for single settings (docs/configuration.md).
Exit codes: 0 done; 2 something you gave is wrong; 3 data is damaged; 75 stopped early, resumable;
130 interrupted from the keyboard a second time; 1 a bug, or another rank was lost or failed.
"""


def build_parser() -> Parser:
    """Build the parser of all commands."""
    parser = Parser(
        prog="masp",
        description="Recognize the emotion that an image evokes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"masp {__version__}")
    add_local_rank(parser)  # `deepspeed --module masp.cli train …` adds it before the command, other versions behind it
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.register(commands)
    return parser
