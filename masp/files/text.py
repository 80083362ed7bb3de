"""Errors of libraries and values, as a message repeats them: short, and on one line; names in one Unicode form."""

from __future__ import annotations

import errno
import unicodedata
from typing import Any

from masp.errors import one_line

MAX_SHOWN = 80
"""Characters of a value that a message repeats."""
MAX_REASON = 300
"""Characters of a library's error that a message repeats."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_OF_A_PATH = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ESTALE,
    errno.EINVAL,  # also of files that are not regular or too large, see `masp.files.regular`
}
"""System errors that say of a path that it cannot be used as the user asked."""


def nfc(text: str) -> str:
    """A name in Unicode's composed form, in which names are compared: file systems and editors differ in the form that
    they write. Bytes of a file name that are not UTF-8 stay as `os.fsdecode` gives them."""
    return unicodedata.normalize("NFC", text)


def shortened(text: str, limit: int = MAX_SHOWN) -> str:
    """Shorten a string to at most `limit` characters; `…` marks the cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, shortened; the name of its type if the message is empty."""
    lines = str(error).strip().splitlines()
    return shortened(one_line(lines[0].strip()), MAX_REASON) if lines else type(error).__name__


def all_lines(error: BaseException) -> str:
    """An error's whole message on one line, shortened; the name of its type if the message is empty."""
    return shortened(one_line(" ".join(str(error).split())), MAX_REASON) or type(error).__name__


def reason(error: BaseException) -> str:
    """Why something failed: of an `OSError` the system's message without path and errno, else the first line."""
    return getattr(error, "strerror", None) or first_line(error)


def users_error(error: OSError) -> str | None:
    """What to tell the user of an error that only they can mend: a full disk, or a path that cannot be used.

    Returns:
        One line; None for any other error, which is a bug.
    """
    name = shortened(one_line(str(error.filename)), MAX_REASON) if error.filename else ""
    if error.errno in _NO_SPACE:
        where = f" for {name}" if name else ""
        return f"no space is left{where}; free some and run the same command again"
    return f"{name}: {reason(error)}" if name and error.errno in _OF_A_PATH else None


def shown(value: Any) -> str:
    """A value of a file or a setting as a message repeats it: in Python's notation, at most `MAX_SHOWN` characters.

    None and booleans are in the notation of JSON and YAML.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | bytes):
        value = value[:MAX_SHOWN]  # do not escape all of a long string only to cut it
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of more than 4,300 digits
        text = f"an {type(value).__name__} of thousands of digits"
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return shortened(one_line(text))
