"""Errors of libraries and values, as a message repeats them: short, and on one line; names in one Unicode form."""

from __future__ import annotations

import errno
import unicodedata
from collections.abc import Sequence
from typing import Any

from masp.errors import one_line

MAX_SHOWN = 80
"""Characters of a value that a message repeats."""
MAX_REASON = 300
"""Characters of a library's error that a message repeats."""

MAX_COMPARED = 100_000
"""Characters of a text that is set against another one."""

# Letters of other scripts that look like Latin ones.
_LATIN_LOOK = str.maketrans(
    "аеорсхуіјѕһԁԛԝАВЕКМНОРСТУХІЈЅοαινυΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "aeopcxyijshdqwABEKMHOPCTYXIJSoaivuABEZHIKMNOPTYX"
)

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


def shown_apart(old: str, new: str, limit: int = MAX_SHOWN) -> tuple[str, str]:
    """Two different texts as a message sets them against each other: what a reader sees differs, too.

    Args:
        old, new: The texts, such as values in the notation of Python or JSON.
        limit: Most characters of each.

    Returns:
        Both on one line. Where they look the same, what is not ASCII is escaped, and the second says so; where they
        begin the same for longer than `limit`, the beginning is left out.
    """
    old, new, note = old[:MAX_COMPARED], new[:MAX_COMPARED], ""
    if old != new and _look(old) == _look(new):
        same = nfc(old) == nfc(new)
        note = " (the same text in another Unicode form)" if same else " (which only looks the same)"
        old, new = _escaped(old), _escaped(new)
    old, new = one_line(old), one_line(new)
    pairs = enumerate(zip(old, new, strict=False))
    at = next((number for number, (a, b) in pairs if a != b), min(len(old), len(new)))
    if at >= limit - 1:
        old, new = (f"…{text[at - limit // 2 :]}" for text in (old, new))
    return shortened(old, limit), shortened(new, limit) + note


def listed_apart(names: Sequence[str], others: Sequence[str]) -> tuple[str, str]:
    """Names that are not among others, and those others, as a message lists them: with commas, see `shown_apart`."""
    looks, note = {_look(other): other for other in others}, ""
    if any(looks.get(_look(name), name) != name for name in names):
        names, others = [_escaped(name) for name in names], [_escaped(other) for other in others]
        note = " (one only looks the same)"
    first, second = (shortened(one_line(", ".join(listed)), MAX_REASON) for listed in (names, others))
    return first, second + note


def _escaped(text: str) -> str:
    return "".join(c if c.isascii() else c.encode("unicode_escape").decode() for c in text)


def _look(text: str) -> str:
    """What a text looks like: alike in texts that a reader cannot tell apart."""
    visible = (c for c in unicodedata.normalize("NFKC", text) if not _is_invisible(c))
    return "".join(visible).translate(_LATIN_LOOK)


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in ("Cf", "Cc") or "\ufe00" <= character <= "\ufe0f"
