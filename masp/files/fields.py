"""Types of fields that typed files have in common: numbers that fit where they are used, digests, distributions;
optional keys."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, GetPydanticSchema

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

DISTRIBUTION_ROUNDING = 1e-6
"""How far the sum of a distribution may be from 1."""


def check_distribution(values: tuple[float, ...]) -> tuple[float, ...]:
    """A distribution over categories, as it is.

    Args:
        values: Probability of each category.

    Raises:
        ValueError: There is none, one is negative or not finite, or they do not sum to 1 within 1e-6.
    """
    if not values or not all(0 <= value < math.inf for value in values):
        raise ValueError("must hold a finite number of 0 or more for each category")
    if abs(math.fsum(values) - 1) > DISTRIBUTION_ROUNDING:
        raise ValueError("must sum to 1")
    return values


Distribution = Annotated[tuple[float, ...], AfterValidator(check_distribution)]
"""The probability of each category of a dataset, in their order."""
