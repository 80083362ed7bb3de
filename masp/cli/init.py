"""`masp init`: writes the configuration of a run for a dataset."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from masp.cli.parser import Commands, add_command
from masp.errors import InputError
from masp.runtime.log import show

_DETAILS = """\
Looks at the images and at this machine, and writes a commented file of settings that fit them: splits, categories,
aspects, how long and how fast to train, number formats, workers. Nothing else is written, and no VLM is downloaded.
Settings that are given as key=value win.

  masp init data/mine --output mine.yaml
  masp init data/mine --output mine.yaml vlm.path=models/Qwen2-VL-2B seed=1"""


def register(commands: Commands) -> None:
    """Add the parser."""
    parser = add_command(commands, "init", "look at a dataset and write the configuration of a run", _DETAILS)
    parser.add_argument("root", metavar="DATA", help="what dataset.root is to be")
    parser.add_argument("--output", required=True, metavar="FILE", help="the file to write; must not exist")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win, such as vlm.path=DIR")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the file and say what was found.

    Raises:
        InputError: There is no dataset, a setting is not valid, or the file cannot be written.
    """
    path = Path(arguments.output)
    if "=" in arguments.root and not Path(arguments.root).exists():
        raise InputError(f"DATA must come first: {arguments.root!r} is a setting; give masp init DATA --output FILE")
    from masp.data.findings import finding_lines
    from masp.start.choices import DEFAULT_VLM, choose, default_name
    from masp.start.look import outlook
    from masp.start.machine import this_machine
    from masp.start.write import check_target, write_config

    check_target(path)
    machine = this_machine()
    chosen = choose(arguments.root, arguments.overrides, default_name(path), machine)
    write_config(path, chosen, machine)
    look, dataset = chosen.look, chosen.look.dataset
    show(f"{look.settings.root}: {look.kind}, {len(dataset.samples):,} images, dataset.name={look.settings.name}")
    show(*dataset.holdings.table(), *finding_lines(dataset.findings), *outlook(chosen.config, dataset))
    show(f"machine: {machine}", f"vlm: {chosen.config.vlm.path}; word embeddings: {chosen.scales.source}")
    if machine.gpu is None and chosen.config.vlm.path == DEFAULT_VLM:
        show("vlm: with 7 billion weights it takes long on a CPU; vlm.path=DIR chooses a smaller one")
    show(f"wrote {path}; next: masp run --config {shlex.quote(str(path))}")
    return 0
