"""The types of settings that more than one field has: what pydantic checks beyond a Python type."""

import os
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, InstanceOf, Strict
from pydantic_core import PydanticCustomError

T = TypeVar("T")


class Settings:
    """Base of the dataclasses of settings: an unknown key is an error."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", allow_inf_nan=False)


# What a message says after "must be" comes from the declaration of the field; the error only has to be one.
_NOT_VALID = PydanticCustomError("not_valid", "not valid")


def _check_number(value: Any) -> Any:
    """Refuse what pydantic would turn into a number, and integers beyond 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _NOT_VALID
    if isinstance(value, int) and value.bit_length() > 64:
        raise _NOT_VALID
    return value


def _check_literal_text(text: str) -> str:
    if "${" in text:
        raise ValueError("must be written out: references such as ${…} are not replaced")
    if "\0" in text:
        raise ValueError("must not hold a zero byte")
    return text


def _check_not_blank(text: str) -> str:
    if not text.strip():
        raise _NOT_VALID
    return text


def _check_unique(items: Sequence[str]) -> Sequence[str]:
    if len(set(items)) < len(items):
        raise _NOT_VALID
    return items


# The last of a number's annotations: `Annotated[int, Field(ge=1), Number]`. 1e5 is a float in YAML and a valid integer.
Number = BeforeValidator(_check_number)
Boolean = Annotated[bool, Strict()]

Count = Annotated[int, Field(ge=1), Number]
Fraction = Annotated[float, Field(ge=0.0, le=1.0), Number]
Positive = Annotated[float, Field(gt=0.0), Number]
# A file name may hold bytes that are not UTF-8, which pydantic's own `str` refuses.
Item = Annotated[InstanceOf[str], AfterValidator(_check_literal_text)]
Text = Annotated[Item, AfterValidator(_check_not_blank)]
# A leading `~` stands for the home directory.
PathText = Annotated[Text, AfterValidator(os.path.expanduser)]
# No entry occurs twice.
UniqueList = Annotated[list[T], AfterValidator(_check_unique), Field(json_schema_extra={"uniqueItems": True})]
