"""Sample keys: one name per image that survives tar files, WebDataset and odd file names.

A key is the split, a slash, and the image's path with every byte escaped that is not an ASCII letter, a digit, `_`, `-`
or the `/` between directories. So it holds no dot (WebDataset cuts a key at the first dot of the base name), it is
plain ASCII whatever the file system allows, and it can be turned back into the path.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Annotated
from urllib.parse import quote, unquote_to_bytes

import numpy as np
from pydantic import Field

# quote() never escapes these two, and we must: WebDataset cuts keys at dots, and some file systems expand a tilde.
_ALSO_ESCAPED = {".": "%2E", "~": "%7E"}

# Most names have only these characters, of which the dot alone is escaped: ten times faster than quote().
_PLAIN = {
    "": re.compile(r"[A-Za-z0-9_.-]+", re.ASCII),
    "/": re.compile(r"[A-Za-z0-9_./-]+", re.ASCII),
}
"""By what is not escaped besides."""

# Keys become tar member names and fixed-width columns of the index. A name of 255 bytes, the longest that common file
# systems allow, takes 765 characters when every byte is escaped; PAX headers carry any length.
MAX_KEY_LENGTH = 2048

SampleKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9_/%-]+$", max_length=MAX_KEY_LENGTH)]
"""A sample key in a file; its characters are checked."""


def sample_key(split: str, relative_path: str) -> str:
    """The key of the image at `relative_path` of `split`.

    Args:
        split: `train`, `val` or `test`.
        relative_path: Path of the image with `/` between directories, relative to the directory that the dataset's
            layout names: the split's, or the root where index files list the images. Bytes that are not UTF-8 are
            expected as `os.fsdecode` gives them.

    Returns:
        A key of ASCII letters, digits and `_-/%`. Different arguments give different keys.

    Raises:
        ValueError: The split or path is empty, the path is absolute, holds a NUL or cannot be the name of a file, or
            the key would be longer than `MAX_KEY_LENGTH`.
    """
    if not split or not relative_path:
        raise ValueError("a sample key needs a split and a path")
    if relative_path.startswith("/") or "\0" in relative_path:
        raise ValueError(f"{relative_path!r} is not a relative path")
    try:
        key = f"{_escape(split, safe='')}/{_escape(relative_path, safe='/')}"
    except UnicodeEncodeError:
        raise ValueError(f"{relative_path!r} holds characters that no file name can hold") from None
    if len(key) > MAX_KEY_LENGTH:
        raise ValueError(
            f"{relative_path[:60]!r}… is too long: its key would have {len(key)} characters, "
            f"{MAX_KEY_LENGTH} are allowed"
        )
    return key


def sample_keys(split: str, directory: str, names: Sequence[str]) -> list[str]:
    """The keys of files in one directory, as `sample_key` makes each of `directory/name`; many at a time take less.

    Raises:
        ValueError: See `sample_key`.
    """
    prefix = f"{sample_key(split, directory)}/"
    if names and all(names) and _PLAIN[""].fullmatch("".join(names)):
        keys = (prefix + "\n".join(names).replace(".", "%2E").replace("\n", f"\n{prefix}")).split("\n")
        if max(map(len, keys)) <= MAX_KEY_LENGTH:
            return keys
    return [sample_key(split, f"{directory}/{name}") for name in names]


def split_key(key: str) -> tuple[str, str]:
    """The inverse of `sample_key`.

    Args:
        key: What `sample_key` returned.

    Returns:
        The split and the relative path.

    Raises:
        ValueError: `key` is not one that `sample_key` makes.
    """
    split, _, path = key.partition("/")
    arguments = (_unescape(split), _unescape(path))
    if sample_key(*arguments) != key:
        raise ValueError(f"{key!r} is not a sample key")
    return arguments


def path_of(key: str) -> str:
    """The relative path in a key that `sample_key` made, which is not checked again."""
    return _unescape(key.partition("/")[2])


def in_order_of_digests(keys: Iterable[str]) -> list[str]:
    """Sample keys in an order that looks random and is always the same: the first ones are a sample."""
    return sorted(keys, key=lambda key: hashlib.sha256(key.encode()).digest())


def key_order(text: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The places of keys in sorted order, int32 `[N]`, without a Python string for each.

    Args:
        text: All keys as one run of bytes, uint8.
        offsets: Where each starts in it, int64 `[N + 1]`.
    """
    order = np.arange(len(offsets) - 1, dtype=np.int32)
    group = np.zeros(len(order), dtype=np.int32)  # of each place of `order`: the first place of its equals so far
    tied = order.copy()  # places of `order` whose keys are equal so far
    for start in range(0, int(np.diff(offsets).max(initial=0)) + _WORD, _WORD):
        words = _words(text, offsets, order[tied], start)
        by_word = np.lexsort((words, group[tied]))
        order[tied] = order[tied[by_word]]
        words = words[by_word]
        is_first = np.append(True, (words[1:] != words[:-1]) | np.diff(group[tied]).astype(bool))[: len(tied)]
        group[tied] = tied[np.maximum.accumulate(np.where(is_first, np.arange(len(tied)), 0))]
        tied = tied[~(is_first & np.append(is_first[1:], True)[: len(tied)])]
        if not len(tied):
            break
    return order


_WORD = 8
_ROWS_AT_A_TIME = 1 << 12


def _words(text: np.ndarray, offsets: np.ndarray, rows: np.ndarray, start: int) -> np.ndarray:
    """Eight bytes of each key from a place in it, as a number; zeros, which no key holds, beyond its end."""
    found = np.zeros(len(rows), dtype=np.uint64)
    for begin in range(0, len(rows), _ROWS_AT_A_TIME):
        some = rows[begin : begin + _ROWS_AT_A_TIME]
        places = offsets[some, None] + np.arange(start, start + _WORD)
        inside = places < offsets[some + 1, None]
        bytes_ = np.where(inside, text[np.minimum(places, len(text) - 1)], 0).astype(np.uint8)
        found[begin : begin + len(some)] = bytes_.view(">u8")[:, 0]
    return found


def _escape(text: str, safe: str) -> str:
    if _PLAIN[safe].fullmatch(text):
        return text.replace(".", "%2E")
    escaped = quote(text, safe=safe, encoding="utf-8", errors="surrogateescape")
    for character, replacement in _ALSO_ESCAPED.items():
        escaped = escaped.replace(character, replacement)
    return escaped


def _unescape(text: str) -> str:
    plain = text.replace("%2E", ".")
    if "%" not in plain:
        return plain
    return unquote_to_bytes(text).decode("utf-8", errors="surrogateescape")
