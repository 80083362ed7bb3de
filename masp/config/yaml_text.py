"""YAML as the configuration reads and writes it: PyYAML, without the surprises of YAML 1.1.

`1e-5` is a number, `on`, `yes` and `12:30` are text, only `true` and `false` are booleans, a key that stands twice is
an error, and every value remembers its line.
"""

import re
from typing import Any, ClassVar

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


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict] = {}


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


def parse_yaml(text: str, source: str) -> tuple[Any, dict[str, int]]:
    """Read one YAML document.

    Args:
        text: the document.
        source: what to call it in errors, for example the file's path.

    Returns:
        Its value, made of dicts with text keys, lists, text, numbers, booleans and None; and the line (from 1) of
        every key, by its dotted name.

    Raises:
        InputError: it is no YAML, holds a key twice, a key that is no text, or an object tag.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(filter(None, (error.context, error.problem)))
        raise InputError(f"{source}{_at(mark)}: this is not valid YAML: {what}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{source}: this is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{source}: this is nested too deeply") from None
    lines: dict[str, int] = {}
    value = None if node is None else _construct(node, "", source, lines, depth=0)
    return value, lines


def dump_yaml(tree: dict[str, Any]) -> str:
    """Write what `parse_yaml` reads back equal.

    Args:
        tree: dicts, lists and scalars.

    Returns:
        The document.
    """
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _construct(node: yaml.Node, name: str, source: str, lines: dict[str, int], depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise InputError(f"{source}{_at(node.start_mark)}: {name!r} is nested too deeply")
    if isinstance(node, yaml.MappingNode):
        return _construct_mapping(node, name, source, lines, depth)
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, f"{name}[{i}]", source, lines, depth + 1) for i, item in enumerate(node.value)]
    return _construct_scalar(node, name, source)


def _construct_mapping(node: yaml.MappingNode, name: str, source: str, lines: dict[str, int], depth: int) -> dict:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value
        # A list or a map can be a key in YAML; here keys are names.
        if not isinstance(key_node, yaml.ScalarNode) or not key:
            raise InputError(f"{source}{_at(key_node.start_mark)}: a key must be a name")
        dotted = f"{name}.{key}" if name else key
        if key in result:
            raise InputError(
                f"{source}{_at(key_node.start_mark)}: {dotted!r} stands twice, first in line {lines[dotted]}"
            )
        lines[dotted] = key_node.start_mark.line + 1
        result[key] = _construct(value_node, dotted, source, lines, depth + 1)
    return result


def _construct_scalar(node: yaml.ScalarNode, name: str, source: str) -> Any:
    text = node.value
    try:
        if node.tag in (_STR, "!"):
            return text
        if node.tag == _NULL:
            return None
        if node.tag == _BOOL:
            return text.lower() == "true"
        if node.tag == _INT:
            return int(text)
        if node.tag == _FLOAT:
            return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        raise InputError(f"{source}{_at(node.start_mark)}: {name} = {text[:60]!r} does not fit its tag") from None
    raise InputError(f"{source}{_at(node.start_mark)}: {name} carries the tag {node.tag!r}; tags are not used here")


def _at(mark: yaml.Mark | None) -> str:
    return "" if mark is None else f" line {mark.line + 1}"
