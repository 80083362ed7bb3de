"""YAML as the configuration reads and writes it: PyYAML, without the surprises of YAML 1.1.

`1e-5` is a number, `on`, `yes` and `12:30` are strings, only `true` and `false` are booleans, a key that is given twice
is an error, and so is any tag that would make an object; the line of every key is known to error messages.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from masp.errors import InputError, one_line
from masp.files.regular import read_bytes
from masp.files.text import MAX_REASON, all_lines, shortened, shown

_MAP = "tag:yaml.org,2002:map"
_SEQ = "tag:yaml.org,2002:seq"
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
# A few aliases of aliases stand for billions of values; PyYAML itself takes a second for ten thousand without any.
_MAX_VALUES = 20_000
MAX_FILE_BYTES = 1 << 20
"""Size limit of a file."""
_TOO_MANY = f"more than {_MAX_VALUES} values, aliases counted as often as they are used"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - declared so by PyYAML
    num_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Count the nodes on the way: the rest of a file of too many is not looked at."""
        self.num_nodes += 1
        if self.num_nodes > _MAX_VALUES:
            raise yaml.composer.ComposerError(None, None, _TOO_MANY, self.peek_event().start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes what either rule set, YAML 1.1's or ours, would take for something else than a string."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML takes these for line ends, which only double quotes keep as they are.
    style = '"' if any(character in text for character in "\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar(_STR, text, style=style)


_Dumper.add_representer(str, _represent_string)
for _tag, _pattern, _first_characters in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first_characters)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first_characters)


def read_yaml(path: str | Path, key: str = "") -> tuple[dict[str, Any], dict[str, int]]:
    """Read a file of `key: value` lines.

    Args:
        path: A regular file.
        key: Setting that the path comes from, for errors.

    Returns:
        See `parse_yaml`; the value of an empty file is an empty dict.

    Raises:
        InputError: It cannot be read, is not a regular file, is too large, not UTF-8 or not a mapping; see also
            `parse_yaml`.
    """
    return parse_mapping(read_text_bytes(path, key), f"{key}: {path}" if key else str(path))


def read_text_bytes(path: str | Path, key: str = "") -> bytes:
    """Read a file that `parse_mapping` takes; see `read_yaml`."""
    content = read_bytes(Path(path), max_bytes=MAX_FILE_BYTES, key=key)
    if content is None:
        raise InputError(f"{key}: {path} does not exist" if key else f"{path} does not exist")
    return content


def parse_mapping(content: bytes, source: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Read a document of `key: value` lines.

    Args:
        content: UTF-8 text.
        source: Its name in errors.

    Returns:
        See `parse_yaml`; the value of an empty document is an empty dict.

    Raises:
        InputError: It is not UTF-8 or not a mapping; see also `parse_yaml`.
    """
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
        text: The document.
        source: Its name in errors, for example the file's path.

    Returns:
        Its value, made of dicts with string keys, lists, strings, numbers, booleans and None; and the line (from 1) of
        every key, by its dotted name.

    Raises:
        InputError: It is not valid YAML, too large or too deep, contains a key twice, a key that is not a string, or a
            tag other than YAML's own. Nothing else is raised, whatever the text.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(" ".join(filter(None, (error.context, error.problem))).split())
        raise InputError(f"{source}{_at(mark)}: not valid YAML: {shortened(what, MAX_REASON)}") from None
    except RecursionError:
        raise InputError(f"{source}: nested too deeply") from None
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # PyYAML lets out what its own code raises on some input, such as "\UFFFFFFFF".
        raise InputError(f"{source}: not valid YAML: {all_lines(error)}") from None
    document = _Document(source)
    value = None if node is None else document.construct(node, "", depth=0)
    return value, document.lines


def dump_yaml(tree: dict[str, Any]) -> str:
    """Write a document that `parse_yaml` reads back equal.

    Args:
        tree: Dicts, lists and scalars.
    """
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def dump_value(value: Any) -> str:
    """Write a value on one line, as it may stand behind a key.

    Args:
        value: Dicts, lists and scalars.
    """
    text = yaml.dump(
        [value], Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 30, default_flow_style=True
    )
    return text.strip()[1:-1]


class _Document:
    """A document while its nodes become values."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: dict[str, int] = {}
        self.num_values = 0

    def construct(self, node: yaml.Node, name: str, depth: int) -> Any:
        self.num_values += 1
        if self.num_values > _MAX_VALUES:
            raise self._error(node, _TOO_MANY)
        if depth > _MAX_DEPTH:
            raise self._error(node, f"{shown(name)} is nested too deeply")
        if isinstance(node, yaml.CollectionNode) and node.tag not in (_MAP, _SEQ):
            raise self._tag_error(node, name)
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
            if key_node.tag not in (_STR, *(tag for tag, _, _ in _RESOLVERS)):
                raise self._tag_error(key_node, dotted)
            if key in result:
                raise self._error(key_node, f"{shown(dotted)} is given twice, first in line {self.lines[dotted]}")
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
            raise self._error(node, f"{_short(name)} = {shown(text)} does not fit its tag") from None
        raise self._tag_error(node, name)

    def _tag_error(self, node: yaml.Node, name: str) -> InputError:
        return self._error(node, f"{_short(name)} has the tag {shown(node.tag)}; tags are not used here")

    def _error(self, node: yaml.Node, message: str) -> InputError:
        return InputError(f"{self.source}{_at(node.start_mark)}: {message}")


def _short(name: str) -> str:
    return one_line(shortened(name)) or "the document"


def _at(mark: yaml.Mark | None) -> str:
    return "" if mark is None else f" line {mark.line + 1}"
