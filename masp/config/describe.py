"""What a setting may be, in words: from the JSON Schema that pydantic derives from its declaration."""

import dataclasses
import functools
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting as messages and documentation describe it."""

    name: str
    """Its dotted name."""

    default: Any
    """Its default; `dataclasses.MISSING` if it must be given."""

    valid: str
    """What is valid, in words that follow "must be"."""

    is_text: bool
    """Whether it is a string, and not a list of strings."""


@functools.cache
def describe_settings(root: type) -> dict[str, Setting]:
    """Every setting of a dataclass of settings by its dotted name, in the order of the declarations."""
    return {setting.name: setting for setting in _settings(root, "")}


@functools.cache
def sections(root: type) -> dict[str, type]:
    """The dataclass of every section of `root` by its name, in order."""
    hints = typing.get_type_hints(root)
    return {name: kind for name, kind in hints.items() if isinstance(kind, type) and dataclasses.is_dataclass(kind)}


def _settings(root: type, prefix: str) -> Iterator[Setting]:
    schemas = TypeAdapter(root).json_schema()["properties"]
    for field in dataclasses.fields(root):
        name = f"{prefix}{field.name}"
        if field.name in sections(root):
            yield from _settings(sections(root)[field.name], f"{name}.")
            continue
        schema = schemas[field.name]
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        is_text = schema.get("anyOf", [schema])[0]["type"] == "string"
        yield Setting(name, default, _valid(schema), is_text)


def _valid(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return f"{_valid(schema['anyOf'][0])}, or null"
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    match schema["type"]:
        case "array":
            choices = schema["items"].get("enum")
            words = f"a list of any of {', '.join(choices)}" if choices else "a list of texts"
            if examples := schema.get("examples"):
                words = f"a list such as [{', '.join(examples[0])}]"
            return words + (", none of them twice" if schema.get("uniqueItems") else "")
        case "string":
            return "text"
        case "boolean":
            return "true or false"
        case kind:
            number = "a whole number" if kind == "integer" else "a number"
            return " ".join(filter(None, (number, _bounds(schema))))


def _bounds(schema: dict[str, Any]) -> str:
    low, above, high = (schema.get(key) for key in ("minimum", "exclusiveMinimum", "maximum"))
    if low is not None and high is not None:
        return f"from {low:g} to {high:g}" if schema["type"] == "number" else f"from {low} to {high}"
    words = (("of at least", low), ("above", above), ("of at most", high))
    return " and ".join(f"{word} {bound:g}" for word, bound in words if bound is not None)
