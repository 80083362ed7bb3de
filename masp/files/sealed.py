"""JSON objects that contain their own digest, so that any changed byte is detected; digests of values and files.

A sealed file is the object with one more key, `digest`: SHA-256 of the canonical JSON of the others. It is written with
sorted keys and one line per value, for people.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, TypeVar

from masp.errors import DataError
from masp.files.atomic import create_bytes
from masp.files.json_text import parse_json
from masp.files.regular import MAX_BYTES, open_binary, read_bytes
from masp.files.typed import canonical_json, decode, plain

__all__ = [
    "CHUNK",
    "canonical_json",
    "create_sealed",
    "digest_file",
    "digest_of",
    "read_sealed",
    "read_sealed_object",
    "sealed",
    "unseal",
    "unseal_object",
]

CHUNK = 1 << 20
"""Bytes that are read at a time to compute the digest of a file."""

MAX_DIGESTED = 1 << 40
"""Size limit of a file whose digest is computed: a few times the weights of the largest VLM."""

T = TypeVar("T")

_LINE = re.compile(rb'\n "digest": "([0-9a-f]{64})"(,?)')
_INDENTATION = re.compile(rb"\n *")
_MAYBE_IN_A_STRING = (b'\\": ', b' ": ')  # what ends a key elsewhere


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a regular file's bytes, in hexadecimal.

    Raises:
        UnsuitableFile: Something else, or more than `MAX_DIGESTED` bytes.
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    with open_binary(path, max_bytes=MAX_DIGESTED) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sealed(value: Any, *, omit_none: bool = False) -> bytes:
    """Serialize a JSON object or a dataclass together with its digest, so that any later change is detected.

    Args:
        value: The object; it has no key `digest`.
        omit_none: Leave out the keys of a dataclass whose value is None.
    """
    fields = value if isinstance(value, dict) else plain(value, omit_none=omit_none)
    return _serialized({**fields, "digest": digest_of(fields)})


def unseal(kind: type[T], data: bytes, name: str) -> T:
    """Undo `sealed` for a dataclass.

    Args:
        kind: The (frozen) dataclass.
        data: The sealed text.
        name: Name of the text in errors, usually the path.

    Raises:
        DataError: The text does not match its digest, or is not a valid `kind`.
    """
    return decode(kind, _checked(data, name), name, unique_keys=False, surrogates=True)


def unseal_object(data: bytes, name: str) -> dict[str, Any]:
    """Undo `sealed` for an object with any keys.

    Raises:
        DataError: The text is not a JSON object or does not match its digest.
    """
    return _object(_checked(data, name), name)


def read_sealed(kind: type[T], path: Path, *, max_bytes: int = MAX_BYTES) -> T | None:
    """Read a sealed file into a dataclass; None if there is none.

    Raises:
        DataError: The file is damaged, or not a valid `kind`.
        InputError: It may not be read or is too large.
    """
    data = read_bytes(path, max_bytes=max_bytes)
    return None if data is None else unseal(kind, data, str(path))


def read_sealed_object(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any] | None:
    """Read a sealed file with any keys; None if there is none.

    Raises:
        DataError: The file is damaged.
        InputError: It may not be read or is too large.
    """
    data = read_bytes(path, max_bytes=max_bytes)
    return None if data is None else unseal_object(data, str(path))


def create_sealed(path: Path, value: Any, *, omit_none: bool = False) -> bool:
    """Write a sealed file unless it exists already; true if this call wrote it."""
    return create_bytes(path, sealed(value, omit_none=omit_none))


def _serialized(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def _checked(data: bytes, name: str) -> bytes:
    """The text of a sealed object without its digest.

    Raises:
        DataError: The text does not match the digest.
    """
    body = _matching_body(data)
    if body is not None:
        return body
    # Rare: damaged, or a string contains what looks like the end of a key. Serializing the value again decides, at ten
    # times the cost.
    value = _object(data, name)
    found = value.pop("digest", None)
    if found != digest_of(value) or _serialized({**value, "digest": found}) != data:
        raise DataError(f"{name} is damaged: its content does not match its digest")
    return canonical_json(value)


def _matching_body(data: bytes) -> bytes | None:
    """The text without its digest, if it certainly matches; None if deciding that takes parsing.

    Strings contain no line ends, so a line end and the spaces after it are layout. Without them and the spaces after
    keys the text is the canonical JSON, of which the digest was computed. Of the layout itself, no line is empty or
    ends in a space or colon; a changed byte of it makes such a line, or is not layout any more.
    """
    if not data.startswith(b"{\n ") or not data.endswith(b"\n}\n"):
        return None
    if any(end in data for end in (b"\n\n", b" \n", b":\n")) or any(key in data for key in _MAYBE_IN_A_STRING):
        return None
    found = list(_LINE.finditer(data))  # one space deep: a key of the object itself
    if len(found) != 1:
        return None
    line = found[0]
    before, after = data[: line.start()], data[line.end() :]
    body = (before if line[2] else before.removesuffix(b",")) + after
    compact = _INDENTATION.sub(b"", body).replace(b'": ', b'":')
    return body if hashlib.sha256(compact).hexdigest().encode() == line[1] else None


def _object(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = parse_json(data)
    except ValueError:
        raise DataError(f"{name} is damaged: it is not JSON") from None
    if not isinstance(value, dict):
        raise DataError(f"{name} is damaged: it is not a JSON object")
    return value
