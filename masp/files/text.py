"""What an error line says of a foreign error or of a value: short, and on one line."""

from __future__ import annotations

from typing import Any

from masp.errors import one_line

MAX_SHOWN = 80
"""Characters of a value that an error line repeats."""
MAX_REASON = 300
"""Characters of a foreign error's text."""


def shortened(text: str, limit: int = MAX_SHOWN) -> str:
    """A text of at most `limit` characters; what was cut off is marked with `…`."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def first_line(error: BaseException) -> str:
    """The first line of an error's own text, shortened; the name of its type if it says nothing."""
    lines = str(error).strip().splitlines()
    return shortened(one_line(lines[0].strip()), MAX_REASON) if lines else type(error).__name__


def all_lines(error: BaseException) -> str:
    """An error's whole text on one line, shortened; the name of its type if it says nothing."""
    return shortened(one_line(" ".join(str(error).split())), MAX_REASON) or type(error).__name__


def reason(error: BaseException) -> str:
    """Why something failed: the system's words for an `OSError` (without path and number), else the first line."""
    return getattr(error, "strerror", None) or first_line(error)


def shown(value: Any) -> str:
    """A value of a file or a setting as an error line repeats it: spelled as in Python, at most `MAX_SHOWN` characters.

    None and booleans are spelled as in JSON and YAML.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | bytes):
        value = value[:MAX_SHOWN]  # a long text is not escaped whole only to be cut
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of more than 4,300 digits
        text = f"an {type(value).__name__} of thousands of digits"
    return shortened(one_line(text))
