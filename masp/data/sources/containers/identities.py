"""Names of images from a column, and whether each image has one of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from masp.data.sources.rows import Column, Value
from masp.errors import InputError
from masp.files.text import shown


def identities_of(column: Column, name: str, where: Callable[[int], str]) -> list[str]:
    """The names of images that a column gives.

    Args:
        column: Values of all rows.
        name: Name of the column, for errors.
        where: Names a row in errors.

    Returns:
        Per row its value as a string.

    Raises:
        InputError: A row has no value, one that is neither a string nor an integer, or one that another row has.
    """
    texts = [_identity(value) for value in column.values]
    is_bad = np.array([not text for text in texts] + [True])  # the last one is that of code -1
    if (bad := np.flatnonzero(is_bad[column.codes])).size:
        row = int(bad[0])
        raise InputError(
            f"{where(row)}: column {shown(name)} = {shown(column[row])}: must name the image, as a string or an integer"
        )
    identities = [texts[code] for code in column.codes.tolist()]
    check_unique(identities, f"column {shown(name)} = ", where)
    return identities


def check_unique(identities: Sequence[str], what: str, where: Callable[[int], str]) -> None:
    """Check that each image has a name of its own.

    Args:
        identities: Per row its name.
        what: What to put before a name in errors.
        where: Names a row in errors.

    Raises:
        InputError: Two rows have the same name.
    """
    if len(set(identities)) == len(identities):
        return
    first: dict[str, int] = {}
    for row, identity in enumerate(identities):
        if (other := first.setdefault(identity, row)) != row:
            raise InputError(
                f"{where(row)}: {what}{shown(identity)} names {where(other)}, too; each image needs a name of its own"
            )


def _identity(value: Value) -> str:
    return value if isinstance(value, str) else str(value) if type(value) is int else ""
