"""The configuration file of a run as a person would write it: every setting with the reason above it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from masp.config.yaml_text import dump_value
from masp.errors import InputError, one_line
from masp.files.atomic import write_bytes
from masp.files.regular import exists, is_directory
from masp.files.text import reason
from masp.start.choices import Choice, Chosen
from masp.start.machine import Machine

_WIDTH = 118
_HEAD = """\
Written by `masp init` for {root} and a machine with {machine}. Change whatever you like:
docs/configuration.md lists every setting, and key=value on the command line wins over this file.
"""


def check_target(path: Path) -> None:
    """Refuse a file that exists, or whose directory does not.

    Raises:
        InputError: Names it.
    """
    if exists(path, key="--output"):
        raise InputError(f"--output {path}: exists already, and is not overwritten; give another name or remove it")
    if not is_directory(path.parent, key="--output"):
        raise InputError(f"--output {path}: there is no directory {path.parent}; make it, or give another name")


def write_config(path: Path, chosen: Chosen, machine: Machine) -> None:
    """Write the file; it appears complete or not at all.

    Raises:
        InputError: It cannot be written, see `check_target`.
    """
    check_target(path)
    try:
        write_bytes(path, render(chosen, machine).encode())
    except OSError as error:
        raise InputError(f"--output {path}: cannot be written: {reason(error)}") from None


def render(chosen: Chosen, machine: Machine) -> str:
    """The text of the file; the same choices give the same text."""
    head = _HEAD.format(root=one_line(chosen.look.settings.root), machine=machine).rstrip("\n")
    lines = [*_comment(head.replace("\n", " "), ""), *_comment(_command(chosen), "")]
    top = [choice for choice in chosen.choices if "." not in choice.key]
    lines += ["", *_settings(top, "")]
    for section in dict.fromkeys(c.key.partition(".")[0] for c in chosen.choices if "." in c.key):
        inside = [choice for choice in chosen.choices if choice.key.startswith(f"{section}.")]
        lines += ["", f"{section}:", *_settings(inside, "  ")]
    return "\n".join(lines) + "\n"


def _command(chosen: Chosen) -> str:
    findings = chosen.look.dataset.holdings
    each = ", ".join(f"{findings.num_images(split):,} {split}" for split in findings.splits)
    return f"{len(chosen.look.dataset.samples):,} images: {each}."


def _settings(choices: Sequence[Choice], indent: str) -> list[str]:
    lines = []
    for choice in choices:
        if choice.why != "as given":
            lines += _comment(choice.why, indent)
        lines.append(_entry(choice.key.rpartition(".")[2], choice.value, indent, choice.why == "as given"))
    return lines


def _entry(name: str, value: Any, indent: str, is_given: bool) -> str:
    return f"{indent}{name}: {dump_value(value)}{'  # as given' if is_given else ''}"


def _comment(text: str, indent: str) -> list[str]:
    start = f"{indent}# "
    return textwrap.wrap(one_line(text), _WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False)
