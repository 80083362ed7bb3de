"""YAML as the configuration reads and writes it: PyYAML, without the surprises of YAML 1.1.

`1e-5` is a number, `on`, `yes` and `12:30` are text, only `true` and `false` are booleans, a key that stands twice is
an error, and every value remembers its line.
"""

import re
import stat
from pathlib import Path
from typing import Any

import yaml

from masp.errors import InputError

_STR = "tag:yaml.org,2002:str"
_NULL = "tag:yaml.org,2002:null"
_BOOL = "tag:yaml.org,2002:bool"
_INT = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"

_RESOLVERS = (
    (_NULL, re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    (_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    (_INT, re.compile(r"^[-+]?[0-9]+(?:_[0-9]+)*$"), list("-+0123456789")),
    (
        _FLOAT,
        re.compile(r"^[-+]?(?:(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|\.(?:inf|nan))$"),
        list("-+.0123456789"),
    ),
)

# The configuration is three levels deep; an alias that contains itself is endlessly deep.
_MAX_DEPTH = 16
# A few aliases of aliases stand for billions of values.
_MAX_VALUES = 100_000
_MAX_FILE_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - declared so by PyYAML


class _Dumper(yaml.SafeDumper):
    """Quotes what either rule set, YAML 1.1's or ours, would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML takes these for line ends, which only double quotes keep as they are.
    style = '"' if any(character in text for character in "\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar(_STR, text, style=style)


_Dumper.add_representer(str, _represent_text)
for _tag, _pattern, _first_characters in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first_characters)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first_characters)


def read_yaml(path: str | Path, source: str | None = None) -> tuple[dict[str, Any], dict[str, int]]:
    """Read a file of `key: value` lines.

    Args:
        path: a regular file.
        source: what to call it in errors, if not by its path.

    Returns:
        See `parse_yaml`; the value of an empty file is an empty dict.

    Raises:
        InputError: it cannot be read, is not a regular file, is too large, not UTF-8 or not a mapping; see also
            `parse_yaml`.
    """
    path, source = Path(path), source or str(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise InputError(f"{source}: must be a regular file, not a device or a pipe")
        with open(path, "rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"{source}: cannot read this configuration file: {error.strerror}") from None
    except ValueError:
        raise InputError(f"{source}: cannot read this configuration file: its name holds a zero byte") from None
    if len(content) > _MAX_FILE_BYTES:
        raise InputError(f"{source}: must be a configuration file of at most {_MAX_FILE_BYTES >> 20} MiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{source}: is not UTF-8 text") from None
    value, lines = parse_yaml(text, source)
    if value is None:
        return {}, lines
    if not isinstance(value, dict):
        raise InputError(f"{source}: must hold 'key: value' lines, not {shown(value)}")
    return value, lines


def parse_yaml(text: str, source: str) -> tuple[Any, dict[str, int]]:
    """Read one YAML document.

    Args:
        text: the document.
        source: what to call it in errors, for example the file's path.

    Returns:
        Its value, made of dicts with text keys, lists, text, numbers, booleans and None; and the line (from 1) of
        every key, by its dotted name.

    Raises:
        InputError: it is not valid YAML, too large or too deep, holds a key twice, a key that is not text, or an
            object tag. Nothing else is raised, whatever the text.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(" ".join(filter(None, (error.context, error.problem))).split())
        raise InputError(f"{source}{_at(mark)}: this is not valid YAML: {what}") from None
    except RecursionError:
        raise InputError(f"{source}: this is nested too deeply") from None
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # PyYAML lets out what its own code raises on some input, such as "\UFFFFFFFF".
        raise InputError(f"{source}: this is not valid YAML: {' '.join(str(error).split())}") from None
    document = _Document(source)
    value = None if node is None else document.construct(node, "", depth=0)
    return value, document.lines


def shown(value: Any) -> str:
    """A value as messages quote it."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def dump_yaml(tree: dict[str, Any]) -> str:
    """Write what `parse_yaml` reads back equal.

    Args:
        tree: dicts, lists and scalars.

    Returns:
        The document.
    """
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Document:
    """The values of a document, while they are made."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: dict[str, int] = {}
        self.num_values = 0

    def construct(self, node: yaml.Node, name: str, depth: int) -> Any:
        self.num_values += 1
        if self.num_values > _MAX_VALUES:
            raise self._error(node, f"more than {_MAX_VALUES} values, aliases counted as often as they are used")
        if depth > _MAX_DEPTH:
            raise self._error(node, f"{name!r} is nested too deeply")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, name, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.construct(item, f"{name}[{i}]", depth + 1) for i, item in enumerate(node.value)]
        return self._scalar(node, name)

    def _mapping(self, node: yaml.MappingNode, name: str, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            # A list or a map can be a key in YAML; here keys are names.
            if not isinstance(key_node, yaml.ScalarNode) or not key:
                raise self._error(key_node, "a key must be a name")
            dotted = f"{name}.{key}" if name else key
            if key in result:
                raise self._error(key_node, f"{dotted!r} stands twice, first in line {self.lines[dotted]}")
            self.lines[dotted] = key_node.start_mark.line + 1
            result[key] = self.construct(value_node, dotted, depth + 1)
        return result

    def _scalar(self, node: yaml.Node, name: str) -> Any:
        text = node.value
        try:
            if node.tag in (_STR, "!"):
                return text
            if node.tag == _NULL:
                return None
            if node.tag == _BOOL:
                return {"true": True, "false": False}[text.lower()]
            if node.tag == _INT:
                return int(text)
            if node.tag == _FLOAT:
                return float(text.replace(".inf", "inf").replace(".nan", "nan"))
        except (KeyError, ValueError):
            raise self._error(node, f"{name} = {text[:60]!r} does not fit its tag") from None
        raise self._error(node, f"{name} carries the tag {node.tag!r}; tags are not used here")

    def _error(self, node: yaml.Node, message: str) -> InputError:
        return InputError(f"{self.source}{_at(node.start_mark)}: {message}")


def _at(mark: yaml.Mark | None) -> str:
    return "" if mark is None else f" line {mark.line + 1}"
