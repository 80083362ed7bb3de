"""What a setting may be: the types that several settings share, and the words that describe any of them."""

import dataclasses
import functools
import os
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, InstanceOf, Strict, TypeAdapter
from pydantic_core import PydanticCustomError

T = TypeVar("T")

RENAMED = {"stage2.targets": "stage2.supervision"}
"""Settings by names that they had before; whoever gives one is told the present one."""


class Settings:
    """Base class of dataclasses of settings: an unknown key is an error."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", allow_inf_nan=False)


# `masp.config.loading` takes the words after "must be" from `Setting.valid`; this error needs none of its own.
_NOT_VALID = PydanticCustomError("not_valid", "not valid")


def _check_number(value: Any) -> Any:
    """Refuse other types, which pydantic would convert to a number, and integers of more than 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _NOT_VALID
    if isinstance(value, int) and value.bit_length() > 64:
        raise _NOT_VALID
    return value


def _check_literal(text: str) -> str:
    if "${" in text:
        raise ValueError("must be written out: references such as ${…} are not replaced")
    if "\0" in text:
        raise ValueError("must not contain a null character")
    return text


def _check_not_blank(text: str) -> str:
    if not text.strip():
        raise _NOT_VALID
    return text


def _check_keys(value: Any) -> Any:
    """The same mapping with its integer keys as text."""
    if not isinstance(value, dict):
        raise _NOT_VALID
    return {
        str(key) if isinstance(key, int) and not isinstance(key, bool) else key: each for key, each in value.items()
    }


def _check_unique(items: Sequence[str]) -> Sequence[str]:
    if len(set(items)) < len(items):
        raise _NOT_VALID
    return items


# Must be the last annotation of a number: `Annotated[int, Field(ge=1), Number]`. YAML's 1e5 is a float and a valid int.
Number = BeforeValidator(_check_number)
Boolean = Annotated[bool, Strict()]

Count = Annotated[int, Field(ge=1), Number]
Fraction = Annotated[float, Field(ge=0.0, le=1.0), Number]
Positive = Annotated[float, Field(gt=0.0), Number]
# `str` alone would refuse file names with bytes that are not UTF-8.
Item = Annotated[InstanceOf[str], AfterValidator(_check_literal)]
Text = Annotated[Item, AfterValidator(_check_not_blank), Field(json_schema_extra={"minLength": 1})]
# A leading `~` becomes the home directory.
PathText = Annotated[Text, AfterValidator(os.path.expanduser)]
# A mapping from text to text; YAML's bare numbers are keys and values like any other text.
Mapping = Annotated[dict[Text, T], BeforeValidator(_check_keys)]
# No item occurs twice.
UniqueList = Annotated[list[T], AfterValidator(_check_unique), Field(json_schema_extra={"uniqueItems": True})]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting as messages and documentation describe it: what pydantic derives from its declaration, in words."""

    name: str
    """Its dotted name."""

    default: Any
    """Its default; `dataclasses.MISSING` if it must be given."""

    valid: str
    """What is valid, in words that follow "must be"."""

    is_string: bool
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
        is_string = schema.get("anyOf", [schema])[0]["type"] == "string"
        yield Setting(name, default, _valid(schema), is_string)


def _valid(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        kinds = ["null" if each["type"] == "null" else _valid(each) for each in schema["anyOf"]]
        return f"{', '.join(kinds[:-1])}, or {kinds[-1]}"
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    match schema["type"]:
        case "array":
            choices = schema["items"].get("enum")
            words = f"a list of any of {', '.join(choices)}" if choices else "a list of strings"
            if examples := schema.get("examples"):
                words = f"a list such as [{', '.join(examples[0])}]"
            words += ", each at most once" if schema.get("uniqueItems") else ""
            return words + (f", at least {least}" if (least := schema.get("minItems")) else "")
        case "string":
            return "a non-empty string" if "minLength" in schema else "a string"
        case "object":
            return f"a mapping such as {{{schema['examples'][0]}}}"
        case "boolean":
            return "true or false"
        case kind:
            number = "an integer" if kind == "integer" else "a number"
            return " ".join(filter(None, (number, _bounds(schema))))


def _bounds(schema: dict[str, Any]) -> str:
    low, above, high = (schema.get(key) for key in ("minimum", "exclusiveMinimum", "maximum"))
    if low is not None and high is not None:
        return f"from {low:g} to {high:g}" if schema["type"] == "number" else f"from {low} to {high}"
    words = (("of at least", low), ("above", above), ("of at most", high))
    return " and ".join(f"{word} {bound:g}" for word, bound in words if bound is not None)
