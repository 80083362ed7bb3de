"""`masp train`: trains one stage."""

from __future__ import annotations

import argparse

from masp.cli.parser import Commands, add_command, add_local_rank
from masp.cli.settings import add_settings

_DETAILS = """\
Runs alone, or on several ranks: torchrun --nproc-per-node 8 -m masp.cli train …, deepspeed --module masp.cli train …,
or srun masp train …. SIGTERM stops it at a step boundary with a checkpoint (exit code 75); the same command resumes.

  masp train --stage stage1 --config configs/train.yaml
  masp train --stage stage2 --config configs/train.yaml stage2.learning_rate=1e-4 seed=2"""


def register(commands: Commands) -> None:
    """Add the parser."""
    summary = "train a stage on the cache, or go on from its newest checkpoint"
    parser = add_command(commands, "train", summary, _DETAILS)
    parser.add_argument("--stage", required=True, choices=("stage1", "stage2"))
    parser.add_argument("--profile", action="store_true", help="write a trace of a few steps into the stage directory")
    add_settings(parser)
    add_local_rank(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train the stage."""
    from masp.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    from masp.training.loop import train

    train(config, arguments.stage, profile=arguments.profile)
    return 0
