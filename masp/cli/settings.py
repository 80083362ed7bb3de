"""Settings on the command line: `--config FILE key=value …`, read here for every command of `masp` and `launch`."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Sequence

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_MAX_SUGGESTIONS = 3


def add_settings(parser: argparse.ArgumentParser, default: str | None = None, *, required: bool = False) -> None:
    """Add `--config FILE` and `key=value …`, parsed as `config` and `overrides`.

    Args:
        parser: Parser of a command.
        default: Configuration file where none is given.
        required: Whether `--config` must be given.
    """
    parser.add_argument(
        "--config",
        default=default,
        required=required,
        metavar="FILE",
        help="YAML configuration, such as configs/train.yaml",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="single settings, such as stage1.num_epochs=1"
    )


def add_sample(parser: argparse.ArgumentParser, option: str, what: str) -> None:
    """Add what a measurement on a sample of images takes: what is measured, the sample's size, `--json`, settings.

    Args:
        parser: Parser of the command.
        option: Option that says what is measured.
        what: Its values.
    """
    parser.add_argument(option, action="append", metavar="NAME", help=f"{what}, may be repeated (default: all)")
    parser.add_argument("--num-images", type=int, default=256, metavar="N", help="size of the sample (default 256)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_settings(parser)


def setting_names(root: type | None = None) -> list[str]:
    """Dotted names of all settings.

    Args:
        root: Dataclass of the settings; None for those of a run.
    """
    from masp.config.fields import describe_settings
    from masp.config.schema import Config

    return list(describe_settings(root or Config))


def parse_arguments(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    names: Callable[[], Iterable[str]] = setting_names,
) -> argparse.Namespace:
    """Parse a command line in which settings may be anywhere.

    argparse accepts positional arguments in one run only; what comes after that run is added to the positional argument
    that takes settings: `overrides`, or `images` of `masp predict`.

    Args:
        parser: Parser of all commands.
        argv: Arguments; None for those of the process.
        names: Returns the names of the settings, to suggest one where an option is not known.

    Raises:
        SystemExit: Exit code 2; an option is not known, or the parser's own errors.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0].partition("=")[0] == "--config":
        parser.error("--config comes after the command: COMMAND --config FILE")
    arguments, rest = parser.parse_known_args(argv)
    taker = next((name for name in ("overrides", "images") if hasattr(arguments, name)), None)
    unknown = [text for text in rest if (text.startswith("-") and text != "-") or taker is None]
    if unknown:
        message = f"unrecognized arguments: {' '.join(unknown)}"
        if taker and (suggestion := _suggestion(unknown[0], argv, names(), getattr(arguments, "stage", None))):
            message += f"; a setting is given as key=value, without dashes: {suggestion}"
        parser.error(message)
    if taker:
        getattr(arguments, taker).extend(rest)
    return arguments


def _suggestion(option: str, argv: Sequence[str], names: Iterable[str], stage: str | None) -> str:
    """The settings that an unknown option may mean, as they would have to be given; empty if there are none.

    Args:
        option: Such as `--learning_rate` or `--learning-rate=1e-4`.
        argv: All arguments; the option's value may come after it.
        names: Names of all settings.
        stage: Stage that is trained; its settings are preferred.
    """
    given, equals, value = option.lstrip("-").partition("=")
    wanted = given.replace("-", "_")
    by_leaf: dict[str, list[str]] = {}
    for name in names:
        by_leaf.setdefault(name.rpartition(".")[2], []).append(name)
        by_leaf.setdefault(name, []).append(name)
    close = [wanted] if wanted in by_leaf else difflib.get_close_matches(wanted, by_leaf, n=1, cutoff=0.8)
    found = list(dict.fromkeys(by_leaf[close[0]])) if close else []
    found = [name for name in found if name.startswith(f"{stage}.")] or found
    if not equals:
        following = argv[argv.index(option) + 1 :][:1]
        value = following[0] if following and following[0][:1] != "-" and "=" not in following[0] else "…"
    return " or ".join(f"{name}={value}" for name in found[:_MAX_SUGGESTIONS])


def is_setting(argument: str) -> bool:
    """Whether a positional argument is `key=value` rather than the path of an image, which may be missing."""
    from dataclasses import fields

    from masp.config.schema import Config

    if "=" not in argument or os.path.exists(argument):
        return False
    # An image has a suffix that a value seldom has; a key that begins like ours is a setting, whatever its value.
    known = argument.lstrip("+").partition("=")[0].partition(".")[0] in {field.name for field in fields(Config)}
    return known or not argument.lower().endswith(_IMAGE_SUFFIXES)


def separate_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide positional arguments into paths and settings; the order within each is kept."""
    settings = [argument for argument in arguments if is_setting(argument)]
    return [argument for argument in arguments if argument not in settings], settings
