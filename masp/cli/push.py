"""`masp push`: sends an exported model to the Hugging Face Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from masp.cli.parser import Commands, add_command

_DETAILS = """\
DIR is what `masp export` wrote. It is checked first; then its files are sent in one commit, and anyone who may see the
repository can load it by name. You need a token of the hub that may write: `hf auth login`, or HF_TOKEN. HF_ENDPOINT
names another hub. Read and complete the model card (DIR/README.md) before you push.

  masp push shared owner/name
  masp push shared hf://owner/name --private --message "Trained on 94,480 images"
  python -c 'import masp; print(masp.load("hf://owner/name").predict(["photo.jpg"]))'"""


def register(commands: Commands) -> None:
    """Add the parser."""
    parser = add_command(commands, "push", "send an exported model to the Hugging Face Hub", _DETAILS)
    parser.add_argument("dir", metavar="DIR", help="what `masp export` wrote")
    parser.add_argument("name", metavar="NAME", help="repository of the hub: owner/name, or owner/name@branch")
    parser.add_argument("--private", action="store_true", help="a repository that is made is private")
    parser.add_argument("--message", metavar="TEXT", help="message of the commit")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Push."""
    from masp.inference.sharing.push import push

    push(Path(arguments.dir), arguments.name, private=arguments.private, message=arguments.message)
    return 0
