"""Paths of image files as rows and lists give them: relative, and never leading out of the dataset's directory."""

from __future__ import annotations

import posixpath
import re

MAX_PATH_LENGTH = 4096
"""Longest path that Linux opens."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

INSIDE = "must be the path of a file, relative to the dataset's directory and inside it"
NO_URL = (
    "a URL, where the path of a file must be; download the images first (the tars that img2dataset writes can "
    "be read as they are)"
)


def path_inside(text: str, *, place: str = "", absolute: bool = False) -> str | None:
    """A path in its shortest form; None if it leads out of the dataset's directory, is a URL or is none.

    Args:
        text: Path with `/` or `\\` between directories.
        place: Directory in that of the dataset which the path is relative to, with a slash at its end; the result is
            relative to that of the dataset.
        absolute: Whether a path from the root of the file system will do too.
    """
    if is_url(text) or not text.strip():
        return None
    slashed = text.replace("\\", "/")
    path = posixpath.normpath(slashed if slashed.startswith("/") else f"{place}{slashed}")
    is_bad = path in (".", "/", place.rstrip("/")) or path.split("/")[0] == ".." or "\0" in path
    is_bad = is_bad or len(path) > MAX_PATH_LENGTH
    return None if is_bad or (path.startswith("/") and not absolute) else path


def is_url(text: str) -> bool:
    """Whether text is an address on the web and not a path."""
    return _URL.match(text) is not None


def why_not_inside(text: str) -> str:
    """What is wrong with text of which `path_inside` makes no path."""
    return NO_URL if is_url(text) else INSIDE
