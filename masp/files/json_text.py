"""JSON whose shape is not known beforehand, read strictly; what has a type is read by `masp.files.typed`.

Nothing else in MASP parses JSON. Python's own reader takes the last of two equal keys, the text in five encodings and
NaN, and lets a RecursionError out.
"""

from __future__ import annotations

import json
import math
from typing import Any

from masp.files.text import shown


def parse_json(text: bytes | str, *, finite: bool = True, unique_keys: bool = True) -> Any:
    """Parse JSON text.

    Args:
        text: The text; bytes in UTF-8.
        finite: Refuse NaN and numbers beyond the range of floats. Otherwise they are NaN or infinite in the value, for
            a check that names their key.
        unique_keys: Refuse an object that contains a key twice.

    Returns:
        Its value, as Python's json module gives it.

    Raises:
        ValueError: Says in one line what is wrong with it.
    """
    try:
        return _DECODERS[finite, unique_keys].decode(text.decode() if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def is_json(text: bytes) -> bool:
    """Whether text is JSON in its form, whatever it says; what is nested too deeply to tell counts."""
    try:
        _DECODERS[False, False].decode(text.decode())
    except RecursionError:
        return True
    except ValueError:  # includes bytes that are not UTF-8
        return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{shown(twice)} is given twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _not_finite(text)
    return value


def _not_finite(text: str) -> None:
    raise ValueError(f"{shown(text)} is not a finite number")


_DECODERS = {
    (finite, unique): json.JSONDecoder(
        object_pairs_hook=_unique if unique else None,
        parse_float=_finite if finite else None,
        parse_constant=_not_finite if finite else None,
    )
    for finite in (False, True)
    for unique in (False, True)
}
