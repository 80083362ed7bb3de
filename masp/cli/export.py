"""`masp export`: one directory with what a run has trained and all that inference needs."""

from __future__ import annotations

import argparse
from pathlib import Path

from masp.cli.parser import Commands, add_command

_DETAILS = """\
DIR then holds what was trained, its settings, questions and aspects, the numbers of its evaluation, and a model card
(README.md). It can be moved, packed or sent anywhere; nothing in it names a path of this machine. The VLM is not part
of it: it is named as on the Hugging Face Hub where the run or --vlm says so, and checked by its digest in any case.

  masp export outputs/run shared
  masp export outputs/run shared --vlm Qwen/Qwen2-VL-7B-Instruct --license apache-2.0
  masp push shared owner/name                 to the hub
  python -c 'import masp; print(masp.load("shared").predict(["photo.jpg"]))'
  masp evaluate --config mine.yaml checkpoint.aspect=shared checkpoint.soft_prompt=shared"""


def register(commands: Commands) -> None:
    """Add the parser."""
    parser = add_command(commands, "export", "write what was trained into one directory that others can use", _DETAILS)
    parser.add_argument("run_dir", metavar="RUN", help="the run's output_dir; the run has finished")
    parser.add_argument("dir", metavar="DIR", help="the directory, which does not exist or is empty")
    parser.add_argument(
        "--vlm",
        metavar="NAME",
        help="what the VLM is called on the hub, owner/name[@revision], if it is a directory here",
    )
    parser.add_argument(
        "--license", metavar="ID", help="license of what was trained, such as apache-2.0 or cc-by-nc-4.0"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Export."""
    from masp.inference.sharing.card import LICENSE
    from masp.inference.sharing.export import export

    license = LICENSE if arguments.license is None else arguments.license
    export(Path(arguments.run_dir), Path(arguments.dir), arguments.vlm, license)
    return 0
