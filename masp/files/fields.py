"""Types of fields that typed files have in common: numbers that fit where they are used, and digests; optional keys."""

from typing import Annotated

from pydantic import Field

Count = Annotated[int, Field(ge=0, lt=1 << 31)]
"""How many; fits into an int32."""
Size = Annotated[int, Field(ge=0, lt=1 << 63)]
"""Bytes, or a position in a file; fits into an int64."""
Positive = Annotated[int, Field(ge=1, lt=1 << 31)]
"""At least one; fits into an int32."""
Crc32 = Annotated[int, Field(ge=0, lt=1 << 32)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A digest in hexadecimal."""
OMIT_NONE = Field(exclude_if=lambda value: value is None)
"""`Annotated[T | None, OMIT_NONE] = None`: the key is written only where it has a value, so that files without one are
the same bytes as before there was such a key."""
