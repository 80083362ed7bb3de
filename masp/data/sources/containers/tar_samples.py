"""The samples of one tar: members that are called alike, an image and what is said of it."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from masp.data.findings import MAX_EXAMPLES
from masp.data.sources.containers.listed_files import MAX_TEXT_BYTES, not_of_this_kind, open_listed
from masp.data.sources.containers.tar_members import BLOCK, Member, TarScan
from masp.data.sources.folders import IMAGE_EXTENSIONS
from masp.data.sources.rows import Column, ColumnBuilder, Value
from masp.errors import InputError, one_line
from masp.files.jsonl import parse_object
from masp.files.text import MAX_REASON, reason, shortened, shown

TEXTS = ("cls", "txt")
"""Members whose text is a column of that name."""
_JSON = "json"
_IMAGES = frozenset(extension[1:] for extension in IMAGE_EXTENSIONS)
_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)
"""WebDataset cuts a name at the first dot of the base name; names without one, or that begin with one, are not members
of samples."""
_NESTED = object()


@dataclass
class Counted:
    """Something that is left out."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count one."""
        self.count += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(name)


@dataclass
class TarSamples:
    """The samples with an image in a tar, in columns."""

    names: list[str]
    """Name of each image's member."""
    offsets: np.ndarray
    """`[N]` int64: where its bytes begin."""
    sizes: np.ndarray
    """`[N]` int64: how many there are."""
    columns: dict[str, Column]
    """Columns that were asked for."""
    without_image: Counted
    """Samples."""
    others: Counted
    """Members of no sample, or of kinds that are not read."""
    nested: Counted
    """Values that are objects."""


def read_samples(path: str, columns: Iterable[str], most: int | None = None) -> TarSamples:
    """List the samples of a tar.

    Args:
        path: Path of the tar.
        columns: `cls`, `txt` and keys of JSON members.
        most: End after so many samples; None for all.

    Raises:
        InputError: The tar is damaged, cut short or compressed, or a member is not as it should be; the message names
            the member.
    """
    reader = _Reader(path, columns)
    _scan(reader, path, most)
    return reader.found()


def column_names(path: str, most: int) -> list[str]:
    """The columns that the first samples of a tar have; errors as of `read_samples`."""
    reader = _Reader(path, (), keep_keys=True)
    _scan(reader, path, most)
    return list(reader.keys)


def all_members(path: str) -> Iterator[Member]:
    """All members of a tar, whatever they are; errors as of `read_samples`."""
    try:
        with open_listed(path) as file:
            _check_start(file, path)
            yield from TarScan(file, path).members()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None


def _scan(reader: _Reader, path: str, most: int | None) -> None:
    """Read the samples of a tar, at most so many."""
    try:
        with open_listed(path) as file:
            scan = TarScan(file, path)
            _check_start(file, path)
            reader.read(scan, most)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None


def _check_start(file: BinaryIO, path: str) -> None:
    """Check that a file is a tar: its first block is a header, or zeros if there are no members."""
    start = os.pread(file.fileno(), BLOCK, 0)
    is_header = start[257:262] == b"ustar" or start[148:156].strip(b"\0 ").isdigit()
    if start and start != bytes(len(start)) and not is_header:
        raise not_of_this_kind(file, path, "a tar")


class _Reader:
    """Groups the members of a tar by their keys."""

    def __init__(self, path: str, columns: Iterable[str], keep_keys: bool = False) -> None:
        self._path = path
        self._builders = {name: ColumnBuilder() for name in columns}
        self._keep_keys = keep_keys
        self.keys: dict[str, None] = {}
        """Columns that there are, in the order in which they are met; only with `keep_keys`."""
        wants_json = keep_keys or any(name not in TEXTS for name in self._builders)
        self._wanted = {name for name in TEXTS if keep_keys or name in self._builders}
        self._wanted |= {_JSON} if wants_json else set()
        self._names: list[str] = []
        self._offsets, self._sizes = array("q"), array("q")
        self._without_image, self._others, self._nested = Counted(), Counted(), Counted()

    def read(self, scan: TarScan, most: int | None) -> None:
        """Read the members up to the end, or of so many samples."""
        seen: set[str] = set()
        key, image, parts = "", None, dict[str, Member]()
        for member in scan.members():
            if member.kind == "directory":
                continue
            self._check(member)
            found = _NAME.fullmatch(member.name)
            if found is None:
                self._others.add(member.name)
                continue
            own_key, extension = found.groups()
            if own_key != key:
                self._finish(scan, key, image, parts)
                if most is not None and len(self._names) >= most:
                    return
                key, image, parts = own_key, None, {}
                if key in seen:
                    raise InputError(
                        f"{self._at(member)}: the key {shown(key)} occurs twice: the members of a sample must "
                        "follow one another, and each sample needs a key of its own (`tar --sort=name`)"
                    )
                seen.add(key)
            extension = extension.lower()
            if extension in _IMAGES:
                if image is not None:
                    raise InputError(
                        f"{self._at(member)}: a sample must have one image, and {_shown(image.name)} belongs to the "
                        "same one"
                    )
                image = member
            elif extension in parts:
                raise InputError(f"{self._at(member)}: its sample has two members {shown(extension)}")
            elif extension in self._wanted:
                parts[extension] = member
            elif extension not in TEXTS and extension != _JSON:
                self._others.add(member.name)
        self._finish(scan, key, image, parts)

    def found(self) -> TarSamples:
        """The samples that were read."""
        return TarSamples(
            self._names,
            np.array(self._offsets, dtype=np.int64),
            np.array(self._sizes, dtype=np.int64),
            {name: builder.column() for name, builder in self._builders.items()},
            self._without_image,
            self._others,
            self._nested,
        )

    def _at(self, member: Member) -> str:
        return f"{self._path}: {_shown(member.name)}"

    def _check(self, member: Member) -> None:
        """Check that a member is a file below the place where the tar would be unpacked."""
        name = member.name
        if member.kind != "file":
            raise InputError(f"{self._at(member)}: is a {member.kind}; must be a regular file")
        if not name or name[0] == "/" or "\0" in name or (".." in name and ".." in name.split("/")):
            raise InputError(f"{self._at(member)}: must be a relative path without '..'")

    def _finish(self, scan: TarScan, key: str, image: Member | None, parts: dict[str, Member]) -> None:
        """Add a sample; `key` is empty before the first one."""
        if not key:
            return
        if image is None:
            self._without_image.add(key)
            return
        values: dict[str, Value] = {}
        for extension, member in parts.items():
            text = self._text(scan, member)
            if extension == _JSON:
                values = self._values(member, text) | values
            else:
                values[extension] = _plain(extension, text)
        if self._keep_keys:
            self.keys.update(dict.fromkeys(values))
        name = image.name
        self._names.append(name[2:] if name.startswith("./") else name)
        self._offsets.append(image.offset)
        self._sizes.append(image.size)
        for wanted, builder in self._builders.items():
            builder.append(values.get(wanted))

    def _text(self, scan: TarScan, member: Member) -> bytes:
        if member.size > MAX_TEXT_BYTES:
            raise InputError(f"{self._at(member)}: {member.size:,} bytes of text; must be at most {MAX_TEXT_BYTES:,}")
        text = scan.content(member.offset, member.size)
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{self._at(member)}: must be text in UTF-8: {error}") from None
        return text.removeprefix(b"\xef\xbb\xbf")

    def _values(self, member: Member, text: bytes) -> dict[str, Value]:
        """The values of an object that are wanted, without those that are objects themselves."""
        found = parse_object(text)
        if found is None:
            raise InputError(f"{self._at(member)}: must be a JSON object, not {shown(text.decode())}")
        values: dict[str, Value] = {}
        for key, value in found.items():
            if self._keep_keys or key in self._builders:
                plain = _without_objects(value)
                if plain is _NESTED:
                    self._nested.add(f"{member.name} {shown(key)}")
                else:
                    values[key] = plain  # type: ignore[assignment]
        return values


def _shown(name: str) -> str:
    """A member's name on one line."""
    return shortened(one_line(name), MAX_REASON)


def _plain(extension: str, text: bytes) -> Value:
    """The value of a member: of `cls` an integer where it is one."""
    value = text.decode().strip()
    digits = value.removeprefix("-")
    if extension == "cls" and digits.isascii() and digits.isdigit() and len(digits) < 19:
        return int(value)
    return value or None


def _without_objects(value: object) -> object:
    """A value of JSON with tuples for lists; `_NESTED` if there is an object in it."""
    if isinstance(value, dict):
        return _NESTED
    if not isinstance(value, list):
        return value
    items = tuple(map(_without_objects, value))
    return _NESTED if _NESTED in items else items
