"""Reading settings of any kind: defaults, then YAML files, then `key=value` overrides, each value checked."""

import dataclasses
import difflib
import functools
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from masp.config.fields import RENAMED, describe_settings, sections
from masp.config.packaged import find_packaged
from masp.config.yaml_text import dump_yaml, parse_yaml, read_yaml
from masp.errors import InputError, one_line
from masp.files.atomic import write_bytes
from masp.files.text import shortened, shown

LOG = logging.getLogger(__name__)

# The key that names the file whose settings a file starts from.
_BASE = "base"
_COMMAND_LINE = "command line"
# Parts of the dotted key of an override, of which valid ones have two: thousands could not be nested.
_MAX_PARTS = 8

NOT_GIVEN = "(not given)"
"""Path that a command does not use."""

T = TypeVar("T")
Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Layer:
    """The settings that one source gives, nested."""

    tree: Tree
    source: str
    """Its name in messages."""
    lines: dict[str, int]
    """The line of each key, by its dotted name."""
    is_entry: bool = False
    """Whether it is one entry of a setting that is a mapping; any other layer gives such a setting as a whole."""

    def place(self, name: str) -> str:
        return f"{self.source} line {self.lines[name]}" if name in self.lines else self.source


def load_settings(
    root: type[T],
    path: str | Path | None,
    overrides: Sequence[str] = (),
    check: Callable[[T, str], None] | None = None,
    unused: Sequence[str] = (),
    complete: Callable[[Tree], None] | None = None,
) -> T:
    """Load and check settings of any kind.

    Args:
        root: Dataclass of the settings, whose annotations pydantic understands; a field may be a section, that is, a
            dataclass of settings itself.
        path: YAML file (see `find_packaged`), or None for the defaults alone. Its key `base` names a file, relative
            to its own directory, whose settings it starts from.
        overrides: `key=value` strings, the key dotted and the value in YAML; the last one of a key wins.
        check: Checks rules about more than one value; gets the settings and the name of their source.
        unused: Dotted names of required paths that the command does not use, and that need not be given.
        complete: Adds defaults that depend on what is given.

    Returns:
        The settings; every value has the type of its field and is in its range.

    Raises:
        InputError: A file is missing or not valid YAML, a key is unknown, a value is not valid, or a required setting
            is missing. One line that names file, key and value and says what would be valid.
    """
    file = None if path is None else find_packaged(str(path))
    where = file or _COMMAND_LINE
    tree: Tree = {}
    kind: type = root
    names = list(describe_settings(kind))
    for layer in [*([] if file is None else _read_files(Path(file), root)), *_read_overrides(overrides, root)]:
        _check_layer(layer, root)
        _merge(tree, layer.tree, [] if layer.is_entry else names)
    if complete is not None:
        complete(tree)
    for name in unused:
        section, _, key = name.rpartition(".")
        tree.setdefault(section, {}).setdefault(key, NOT_GIVEN)
    try:
        settings = _validate(tree, root)
    except ValidationError as error:
        # Each layer is valid by itself, so the only possible error is a setting that none of them gives.
        missing = sorted(".".join(map(str, each["loc"])) for each in error.errors())
        raise InputError(
            f"{where}: {' and '.join(missing)} must be given, in the file or as {missing[0]}=… on the command line"
        ) from None
    if check is not None:
        check(settings, where)
    return settings


def check_settings(root: type[T], tree: Tree, source: str, lines: dict[str, int], where: str) -> T:
    """Check settings that are part of a larger file.

    Args:
        root: Dataclass of the settings.
        tree: Their keys and values.
        source: The part of the file, for messages.
        lines: The line of each key.
        where: The line on which the part begins, for what it lacks.

    Raises:
        InputError: See `load_settings`.
    """
    _check_layer(_Layer(tree, source, lines), root)
    try:
        return _validate(tree, root)
    except ValidationError as error:
        missing = " and ".join(sorted(".".join(map(str, each["loc"])) for each in error.errors()))
        raise InputError(f"{where}: {missing} must be given") from None


def save_config(config: Any, path: str | Path) -> None:
    """Write settings to a YAML file that `load_settings` reads back equal.

    Args:
        config: `Config`, or other settings.
        path: The file. It appears complete or not at all.

    Raises:
        OSError: It cannot be written.
    """
    write_bytes(Path(path), dump_yaml(dataclasses.asdict(config)).encode())


def _read_files(path: Path, root: type) -> list[_Layer]:
    """Read a file and those that it starts from, the innermost base first."""
    layers: list[_Layer] = []
    seen: list[Path] = []
    following: Path | None = path
    while following is not None:
        path = following
        tree, lines = read_yaml(path)
        if path.resolve() in seen:
            raise InputError(f"{path}: {_BASE} leads back to this file")
        seen.append(path.resolve())
        base = tree.pop(_BASE, None)
        for section in sections(root).keys() & tree.keys():
            if tree[section] is None:  # `stage1:` with nothing under it changes nothing
                tree[section] = {}
        layer = _Layer(tree, str(path), lines)
        _take_new_names(layer)
        if base is not None and not isinstance(base, str):
            raise InputError(f"{layer.place(_BASE)}: {_BASE} = {shown(base)}: must be the path of a file")
        layers.insert(0, layer)
        following = None if base is None else Path(find_packaged(base, path.parent))
    return layers


def _take_new_names(layer: _Layer) -> None:
    """Read settings of a file by the names that they have now: runs of earlier versions keep their `config.yaml`.

    Raises:
        InputError: The file gives a setting by both names.
    """
    for old, new in RENAMED.items():
        section, _, key = old.rpartition(".")
        there = layer.tree.get(section) if section else layer.tree
        if not isinstance(there, dict) or key not in there:
            continue
        name = new.rpartition(".")[2]
        if name in there:
            raise InputError(
                f"{layer.place(old)}: {old} is now called {new}, which the file gives too; leave out {old}"
            )
        there[name] = there.pop(key)
        layer.lines[new] = layer.lines.get(old, 0)
        LOG.info("%s: %s is now called %s", layer.place(new), old, new)


def _read_overrides(overrides: Sequence[str], root: type) -> list[_Layer]:
    """Make a layer of each `key=value` argument."""
    layers = []
    for override in overrides:
        name, equals, text = override.partition("=")
        name = name.strip()
        if not equals or not name:
            hint = _what_is_meant(override, root)
            raise InputError(f"{_COMMAND_LINE}: {shown(override)} must be key=value, for example {hint or 'seed=1'}")
        tree = override_value(text.strip(), name, root)
        for part in reversed(name.split(".", _MAX_PARTS)):
            tree = {part: tree}
        is_entry = name not in describe_settings(root) and name.rpartition(".")[0] in describe_settings(root)
        layers.append(_Layer(tree, _COMMAND_LINE, {}, is_entry))
    return layers


def _what_is_meant(argument: str, root: type) -> str:
    """How an argument that is not `key=value` has to be given, where that can be told; else an empty string."""
    if argument.lower().endswith((".yaml", ".yml")):
        return f"seed=1; a configuration is given as --config {one_line(shortened(argument))}"
    name, _, value = argument.partition(":")
    if name.strip() in describe_settings(root):
        return f"{name.strip()}={one_line(shortened(value.strip())) or '…'}, without spaces"
    return ""


def override_value(text: str, name: str, root: type) -> Any:
    """Parse the value of an override: YAML, except that a setting that is a string takes the characters as given."""
    setting = describe_settings(root).get(name)
    is_literal = setting is not None and setting.is_string and text[:1] not in ("'", '"', "[", "{", "")
    if is_literal and text not in ("null", "~"):
        return text
    return parse_yaml(text, f"{_COMMAND_LINE}: {one_line(shortened(name))}")[0]


def _merge(tree: Tree, other: Tree, whole: Collection[str], prefix: str = "") -> None:
    """Put what one layer gives over what others gave; what is called as in `whole` is replaced, not merged."""
    for key, value in other.items():
        if isinstance(value, dict) and prefix + key not in whole:
            if not isinstance(tree.get(key), dict):
                tree[key] = {}
            _merge(tree[key], value, whole, f"{prefix}{key}.")
        else:
            tree[key] = value


@functools.cache
def _adapter(root: type) -> TypeAdapter[Any]:
    return TypeAdapter(root)


def _validate(tree: Tree, root: type) -> Any:
    return _adapter(root).validate_python({section: {} for section in sections(root)} | tree)


def _check_layer(layer: _Layer, root: type) -> None:
    """Check every key and value that one source gives; it need not give all.

    Raises:
        InputError: A key or value is not valid; the first one in the order of lines.
    """
    try:
        _validate(layer.tree, root)
    except ValidationError as error:
        refused = [_refusal(each, layer, root) for each in error.errors() if each["type"] != "missing"]
        if refused:
            raise InputError(min(refused, key=lambda each: each[0])[1]) from None


def _refusal(error: Any, layer: _Layer, root: type) -> tuple[int, str]:
    """Turn an error of pydantic's into the number of its line and a message."""
    settings = describe_settings(root)
    is_unknown, loc = error["type"] == "unexpected_keyword_argument", error["loc"]
    if error["type"] == "string_unicode" and (not loc or loc[-1] in sections(root)):
        # A key with a lone surrogate, which pydantic reports at its section.
        is_unknown, loc = True, (*loc, error["input"])
    name, value = "", layer.tree
    for key in loc:
        name, value = f"{name}.{key}" if name else key, value[key]
        if name in settings:  # the rest is the position in a list
            break
    place = layer.place(name)
    if is_unknown and "." in key:
        message = f"{place}: {shown(name)} must be nested: {shown(key.partition('.')[0] + ':')}, and the rest below it"
    elif is_unknown:
        message = f"{place}: unknown key {shown(name)}: {_suggestion(name, name.removesuffix(key), root)}"
    elif error["type"] == "value_error":
        message = f"{place}: {name} = {shown(value)}: {error['ctx']['error']}"
    elif name in settings:
        message = f"{place}: {name} = {shown(value)}: must be {settings[name].valid}"
    else:
        example = next(known for known in settings if known.startswith(f"{name}."))
        message = f"{place}: {name} = {shown(value)}: must be a section with settings such as {example}"
    return layer.lines.get(name, 0), message


def _suggestion(name: str, prefix: str, root: type) -> str:
    """Say which key may be meant by an unknown one, or which keys are valid in its section, whose prefix is given."""
    if name in RENAMED:
        return f"it is now called {RENAMED[name]}"
    known = list(describe_settings(root))
    here = [other for other in known if other.startswith(prefix) and "." not in other[len(prefix) :]]
    if not prefix:
        here += sections(root)
    same_leaf = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
    close = (
        difflib.get_close_matches(name, here, n=1, cutoff=0.75)
        or same_leaf
        or difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    )
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"valid keys here: {', '.join(here)}"
