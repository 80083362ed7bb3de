"""From what a sweep is asked to vary to its members: axes as lists, draws from ranges, or a file of settings.

`stage2.learning_rate=[1e-3,3e-3]` is an axis of two values; every combination of all axes is a member.
`stage2.learning_rate=log(1e-4,1e-1)` is drawn from a range, `--num` times for every combination of the lists.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masp.config import Config, load_config
from masp.config.fields import describe_settings
from masp.config.reading import override_value
from masp.config.yaml_text import dump_value, parse_yaml, read_text_bytes
from masp.errors import InputError
from masp.files.text import shown

_RANGE = re.compile(r"(log|uniform|int)\(\s*([^,()]+?)\s*,\s*([^,()]+?)\s*\)")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.,=+-]+")
_COMMENT = re.compile(r"(^|\s)#.*")
_SHARED = ("output_dir", "order_seed")
_SHARED_SECTIONS = ("annotate.", "cache.", "dataset.", "engine.", "evaluate.", "extract.", "logging.", "vlm.")
"""What the members have in common: the features and labels, the machine, and how they are compared."""
_SUBSET = ("dataset.fraction", "dataset.shots", "dataset.subset_seed")
"""What of the dataset may be varied: which of the training images a member sees."""
_COMMAND_LINE = "command line"
MAX_MEMBERS = 4096
MAX_NAME = 120
"""Characters of a directory's name."""


@dataclass(frozen=True)
class Range:
    """Numbers that are drawn."""

    key: str
    kind: str
    """`log`: uniform in the logarithm; `uniform`; `int`: whole numbers."""
    low: float
    high: float

    def value(self, place: float) -> float | int:
        """The number at a place in [0, 1), with six significant digits, as it stands in the member's configuration."""
        if self.kind == "int":
            return min(int(self.high), int(self.low) + int(place * (int(self.high) - int(self.low) + 1)))
        if self.kind == "log":
            found = math.exp(math.log(self.low) + place * (math.log(self.high) - math.log(self.low)))
        else:
            found = self.low + place * (self.high - self.low)
        return float(f"{found:.6g}")


@dataclass(frozen=True)
class Asked:
    """What a sweep varies."""

    axes: Mapping[str, tuple[Any, ...]]
    """Setting -> its values."""
    ranges: tuple[Range, ...]
    fixed: tuple[str, ...]
    """Settings of all members, `key=value`."""


@dataclass(frozen=True)
class MemberSettings:
    """One member."""

    name: str
    """Of its directory: what it varies, so that members that are added later change no name."""
    values: Mapping[str, Any]
    """Setting -> value, of those that are varied."""
    source: str = _COMMAND_LINE
    """Where it is named, for errors."""

    @property
    def overrides(self) -> list[str]:
        """The values as `key=value`."""
        return [f"{key}={_inline(value)}" for key, value in self.values.items()]


def read_axes(config: str | None, overrides: Sequence[str]) -> Asked:
    """Tell axes and ranges from settings.

    A list is an axis where the setting itself is no list, or where each of its items is one.

    Args:
        config: Configuration file.
        overrides: `key=value` of the command line.

    Raises:
        InputError: A range or an axis is not valid, or a setting is given twice.
    """
    known = describe_settings(Config)
    axes: dict[str, tuple[Any, ...]] = {}
    ranges: list[Range] = []
    fixed: list[str] = []
    keys: list[str] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or key not in known:
            fixed.append(override)  # its error is that of every command
            continue
        keys.append(key)
        found = _RANGE.fullmatch(text.strip())
        if found:
            ranges.append(_range(key, text, *found.groups()))
        elif values := _axis(config, key, text):
            axes[key] = values
        else:
            fixed.append(override)
    for key in (*axes, *(each.key for each in ranges)):
        if keys.count(key) > 1:
            raise InputError(f"command line: {key}: is given {keys.count(key)} times; give one axis, range or value")
        _check_varied(key, "command line")
    if given := next((override for override in fixed if override.startswith("evaluate.output_dir=")), None):
        raise InputError(
            f"command line: {given}: each member of a sweep is evaluated in its own directory; leave it out"
        )
    return Asked(axes, tuple(ranges), tuple(fixed))


def _check_varied(key: str, where: str) -> None:
    """Raises InputError if all members of a sweep must share a setting."""
    if key in _SHARED or (key.startswith(_SHARED_SECTIONS) and key not in _SUBSET):
        raise InputError(f"{where}: {key}: cannot be varied in a sweep; its members share it")


def _axis(config: str | None, key: str, text: str) -> tuple[Any, ...] | None:
    """The values of an axis; None where the text is a value of the setting."""
    tree, _ = parse_yaml(f"value: {text}", f"command line: {key}")
    value = tree.get("value") if isinstance(tree, dict) else None
    if not isinstance(value, list):
        return None
    is_list = "list" in describe_settings(Config)[key].valid
    if is_list and not (value and all(isinstance(item, list) for item in value)):
        return None
    if not value:
        raise InputError(f"command line: {key} = []: an axis needs a value")
    unique = [item for place, item in enumerate(value) if item not in value[:place]]
    if len(unique) < len(value):
        raise InputError(f"command line: {key} = {shown(value)}: names a value twice")
    return tuple(value)


def _range(key: str, text: str, kind: str, low: str, high: str) -> Range:
    try:
        ends = float(low), float(high)
    except ValueError:
        raise InputError(f"command line: {key} = {text}: the ends of a range must be numbers") from None
    if not (math.isfinite(ends[0]) and math.isfinite(ends[1]) and ends[0] < ends[1]):
        raise InputError(f"command line: {key} = {text}: the first end must be below the second")
    if kind == "log" and ends[0] <= 0:
        raise InputError(f"command line: {key} = {text}: the ends of a logarithmic range must be above 0")
    if kind == "int" and any(end != int(end) for end in ends):
        raise InputError(f"command line: {key} = {text}: the ends must be whole numbers")
    return Range(key, kind, *ends)


def asked_members(
    config: str | None, overrides: Sequence[str], file: str | None, num: int | None, random: bool
) -> tuple[Asked, list[MemberSettings]]:
    """What a command line asks for: what all members have in common, and the members.

    Args:
        config: Configuration file.
        overrides: `key=value`, some of them axes or ranges.
        file: File that names the members; None where axes and ranges do.
        num: Draws from the ranges; None without ranges.
        random: Draw at random instead of by Sobol's sequence.

    Raises:
        InputError: It is not valid.
    """
    asked = read_axes(config, overrides)
    seed = load_config(config, asked.fixed).seed
    if num is not None and num < 1:
        raise InputError(f"--num {num}: must be 1 or more")
    if file is None:
        if random and not asked.ranges:
            raise InputError("--random: nothing is drawn: give a range such as log(1e-4,1e-1)")
        return asked, members_of(asked, num, seed, random)
    drawn = next((name for name, given in (("--num", num is not None), ("--random", random)) if given), None)
    if asked.axes or asked.ranges or drawn:
        raise InputError(f"--members: names the members; leave out {drawn or 'the axes'}")
    return asked, read_members(file)


def members_of(asked: Asked, num: int | None, seed: int, random: bool = False) -> list[MemberSettings]:
    """All members: combinations of the axes, each with `num` draws from the ranges.

    Draws are Sobol points: they cover the ranges more evenly than random ones, and the first of them stay the same
    when `num` grows.

    Args:
        asked: What is varied.
        num: Draws from the ranges; None without ranges.
        seed: Seed of the draws.
        random: Independent random numbers instead.

    Raises:
        InputError: Ranges without `num` or the other way around, or too many members.
    """
    if bool(asked.ranges) != (num is not None):
        key = asked.ranges[0].key if asked.ranges else ""
        raise InputError(
            f"{key}: is drawn from a range; give --num, the number of draws"
            if asked.ranges
            else "--num: nothing is drawn: give a range such as log(1e-4,1e-1)"
        )
    grid = [dict(zip(asked.axes, values, strict=True)) for values in itertools.product(*asked.axes.values())]
    count = len(grid) * (num or 1)
    if count > MAX_MEMBERS:
        raise InputError(f"{count:,} members: at most {MAX_MEMBERS:,} are trained in a sweep")
    drawn: list[dict[str, Any]] = [{}]
    if num is not None:
        places = _places(num, len(asked.ranges), seed, random)
        drawn = [{each.key: each.value(place) for each, place in zip(asked.ranges, row, strict=True)} for row in places]
    return _unique([MemberSettings(_name(values | draw), values | draw) for values in grid for draw in drawn])


def _places(num: int, width: int, seed: int, random: bool) -> list[list[float]]:
    import numpy as np
    from scipy.stats import qmc

    if random:
        return np.random.default_rng(seed).random((num, width)).tolist()
    power = max(0, (num - 1).bit_length())
    return qmc.Sobol(width, rng=np.random.default_rng(seed)).random_base2(power)[:num].tolist()


def read_members(path: str) -> list[MemberSettings]:
    """Members from a file: one per line, its settings as `key=value` separated by spaces; ` #` begins a comment.

    Raises:
        InputError: It cannot be read, or a line is not such settings.
    """
    found: dict[str, MemberSettings] = {}
    known = describe_settings(Config)
    try:
        text = read_text_bytes(path, "--members").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"--members {path}: is not UTF-8 text") from None
    for number, line in enumerate(text.splitlines(), 1):
        values: dict[str, Any] = {}
        where = f"--members {path} line {number}"
        for part in _COMMENT.sub("", line).split():
            key, equals, value = part.partition("=")
            if not equals or key not in known:
                raise InputError(f"{where}: {shown(part)} is no setting; give key=value")
            if key in values:
                raise InputError(f"{where}: {key} is given twice")
            _check_varied(key, where)
            try:
                values[key] = override_value(value, key, Config)
            except InputError as error:
                raise InputError(str(error).replace(_COMMAND_LINE, where, 1)) from None
        if values:
            member = MemberSettings(_name(values), values, where)
            if member.name in found:
                raise InputError(f"{where}: is the same member as line {found[member.name].source.rpartition(' ')[2]}")
            found[member.name] = member
    if not found:
        raise InputError(f"--members {path}: names no member")
    return list(found.values())


def _unique(members: list[MemberSettings]) -> list[MemberSettings]:
    """Each once: draws of whole numbers may be equal."""
    return list({member.name: member for member in members}.values())


def _name(values: Mapping[str, Any]) -> str:
    """A directory's name that says what is varied."""
    if not values:
        return "all-as-given"
    named = {key: key if key in _long_names() else key.rpartition(".")[2] for key in values}
    exact = ",".join(f"{named[key]}={_inline(values[key])}" for key in sorted(values))
    text = ",".join(f"{named[key]}={_words(values[key])}" for key in sorted(values))
    name = _UNSAFE.sub("-", text)
    if name == text and "+" not in exact and len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 9]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


@functools.cache
def _long_names() -> frozenset[str]:
    """Settings that names write in full: those of stage 1, and whose last part is that of another one."""
    every = describe_settings(Config)
    varied = {key for key in every if not key.startswith(("stage1.", *_SHARED_SECTIONS)) or key in _SUBSET}
    count = Counter(key.rpartition(".")[2] for key in varied)
    return frozenset(key for key in every if key not in varied or count[key.rpartition(".")[2]] > 1)


def _inline(value: Any) -> str:
    """A value as YAML on one line; a number as it is usually written."""
    return repr(value) if isinstance(value, float) and math.isfinite(value) else dump_value(value)


def _words(value: Any) -> str:
    """A value as part of a name: of a list its items, with `+` between them."""
    return "+".join(map(_words, value)) if isinstance(value, list) else _inline(value)


def member_config(config: str | None, asked: Asked, member: MemberSettings, directory: Path, order_seed: int) -> Config:
    """The configuration of a member.

    Args:
        config: Configuration file.
        asked: What is the same for all.
        member: The member.
        directory: Its directory.
        order_seed: Seed of the order of the images, of all members.

    Raises:
        InputError: A value is not valid.
    """
    given = [*asked.fixed, *member.overrides, f"order_seed={order_seed}", f"output_dir={directory}"]
    try:
        return load_config(config, given)
    except InputError as error:
        if member.source == _COMMAND_LINE:
            raise
        text = str(error).removeprefix(f"{_COMMAND_LINE}: ")
        raise InputError(f"{member.source}: {text}") from None
