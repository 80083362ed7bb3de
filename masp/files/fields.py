"""Types of fields that typed files have in common: numbers that fit where they are used, and digests; optional keys."""

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import Field, GetPydanticSchema

from masp.taxonomy import DatasetName, Split

Count = Annotated[int, Field(ge=0, lt=1 << 31)]
"""How many; fits into an int32."""
Size = Annotated[int, Field(ge=0, lt=1 << 63)]
"""Bytes, or a position in a file; fits into an int64."""
Positive = Annotated[int, Field(ge=1, lt=1 << 31)]
"""At least one; fits into an int32."""
Crc32 = Annotated[int, Field(ge=0, lt=1 << 32)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A digest in hexadecimal."""


def one_of(values: Sequence[str]) -> GetPydanticSchema:
    """Annotation of a string of a file that is one of a few, for code that takes any string."""
    return GetPydanticSchema(lambda _source, handler: handler(Literal[*values]))


SplitOf = Annotated[str, one_of(get_args(Split))]
"""A split of a dataset."""
DatasetOf = Annotated[str, one_of(get_args(DatasetName))]
"""Which dataset it is; `folder` is any but those that are known by name."""

OMIT_NONE = Field(exclude_if=lambda value: value is None)
"""`Annotated[T | None, OMIT_NONE] = None`: the key is written only where it has a value, so that files without one are
the same bytes as before there was such a key."""
