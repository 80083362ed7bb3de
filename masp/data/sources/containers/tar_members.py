"""The members of a tar, found without reading what is in them.

`tarfile` takes 50 to 130 µs per member, minutes for the millions that large datasets have. Here the headers that such
tars consist of are read directly: ustar, and the PAX headers with times that Python writes before every member.
Whatever is out of the ordinary (long names of GNU, numbers in base 256, sparse files) is left to `tarfile`.
"""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Literal, NamedTuple

from masp.errors import InputError
from masp.files.text import all_lines, shown

BLOCK = 512
_WINDOW = 16 << 10
_MAX_EXTENSION_BYTES = 1 << 20
"""Size limit of a header that has a long name or the like."""
_MAX_PADDING = 64 << 20
"""Zeros after the end that are looked at: tars are filled up to a multiple of some size, at most megabytes."""

MemberKind = Literal["file", "directory", "symbolic link", "hard link", "device", "FIFO", "sparse file", "other"]
_KINDS: dict[int, MemberKind] = {
    ord("0"): "file",
    0: "file",
    ord("7"): "file",
    ord("1"): "hard link",
    ord("2"): "symbolic link",
    ord("3"): "device",
    ord("4"): "device",
    ord("5"): "directory",
    ord("6"): "FIFO",
}
_FILE, _PAX, _GLOBAL_PAX = ord("0"), ord("x"), ord("g")

# Of what PAX headers say, these change nothing for a reader. Vendors' own keys have a dot, such as `SCHILY.xattr.…`.
_PLAIN_KEYS = frozenset([b"atime", b"ctime", b"mtime", b"uid", b"gid", b"uname", b"gname", b"comment"])


class Member(NamedTuple):
    """A member of a tar."""

    name: str
    """As `os.fsdecode` gives it."""
    kind: MemberKind
    offset: int
    """Where its content begins."""
    size: int


class _Unusual(Exception):
    """A header that only `tarfile` understands."""


class TarScan:
    """Reads the headers of a tar, and small members."""

    def __init__(self, file: BinaryIO, path: str):
        """Take an open file; `path` is for errors."""
        self._file, self._path = file, path
        self._descriptor = file.fileno()
        self._size = os.fstat(self._descriptor).st_size
        self._window, self._base = b"", 0
        self._last = ""

    def content(self, offset: int, size: int) -> bytes:
        """A small part of the tar, such as what is in a member."""
        start = offset - self._base
        if start >= 0 and start + size <= len(self._window):
            return self._window[start : start + size]
        return os.pread(self._descriptor, size, offset)

    def members(self) -> Iterator[Member]:
        """All members, in their order.

        Raises:
            InputError: The tar is cut short or damaged; the message names the last member that is whole.
            OSError: It cannot be read.
        """
        place = 0
        while (block := self._block(place)).strip(b"\0"):
            try:
                member = self._member(place, block)
            except _Unusual:
                member = self._by_tarfile(place)
            if member is None:  # a header for all members, which names none
                place = self._after(place + BLOCK, _octal(block[124:136]))
                continue
            place = self._after(member.offset, member.size)
            if place > self._size:
                has = max(0, self._size - member.offset)
                raise InputError(
                    f"{self._path}: {shown(member.name)} is cut short: it claims {member.size:,} bytes, and the tar "
                    f"has {has:,} of them"
                )
            self._last = member.name
            yield member
        self._check_end(place)

    @staticmethod
    def _after(offset: int, size: int) -> int:
        return offset + -(-size // BLOCK) * BLOCK

    def _block(self, place: int) -> bytes:
        start = place - self._base
        block = self._window[start : start + BLOCK] if start >= 0 else b""
        if len(block) == BLOCK:
            return block
        self._window, self._base = os.pread(self._descriptor, _WINDOW, place), place
        block = self._window[:BLOCK]
        if len(block) < BLOCK:
            raise self._cut_short()
        return block

    def _cut_short(self) -> InputError:
        return InputError(f"{self._path}: is cut short{self._behind()}: a tar ends with blocks of zeros")

    def _behind(self) -> str:
        return f" after {shown(self._last)}" if self._last else ""

    def _member(self, place: int, block: bytes) -> Member | None:
        """The member whose first header is a block."""
        self._check(place, block)
        kind = block[156]
        if kind == _GLOBAL_PAX:
            self._pax(place, block)
            return None
        name = None
        size = -1
        if kind == _PAX:
            name, size, place = self._pax(place, block)
            block = self._block(place)
            self._check(place, block)
            kind = block[156]
        if kind not in _KINDS:
            raise _Unusual
        if name is None:
            name = block[:100].partition(b"\0")[0]
            if block[345]:
                if block[257:265] != b"ustar\x0000":
                    raise _Unusual
                name = block[345:500].partition(b"\0")[0] + b"/" + name
        if size < 0:
            size = _octal(block[124:136])
        what = _KINDS[kind]
        if what == "file" and name.endswith(b"/"):  # how the first tars marked directories
            what = "directory"
        if what != "file":
            size = 0
        return Member(name.decode("utf-8", "surrogateescape"), what, place + BLOCK, size)

    def _check(self, place: int, block: bytes) -> None:
        """Check the checksum of a header."""
        field = block[148:156]
        # Without the field itself, which counts as spaces. Adler-32 has the sum of all bytes modulo a prime, and takes
        # a tenth of the time of `sum`.
        expected = _octal(field) + sum(field) - 8 * 0x20
        if zlib.adler32(block) & 0xFFFF != (expected + 1) % 65521:
            raise _Unusual  # `tarfile` accepts other ways to write and to add it, or says what is wrong

    def _pax(self, place: int, block: bytes) -> tuple[bytes | None, int, int]:
        """Name and size that a PAX header gives, else None and -1, and where the next header is."""
        length = _octal(block[124:136])
        start, end = place + BLOCK, self._after(place + BLOCK, length)
        if length > _MAX_EXTENSION_BYTES:
            raise self._damaged(place, f"a PAX header claims {length:,} bytes; at most {_MAX_EXTENSION_BYTES:,}")
        if end > self._size:
            raise self._cut_short()
        data = self.content(start, length)
        name, size = None, -1
        while data:
            number = data.partition(b" ")[0]
            if not number.isdigit() or not len(number) + 3 < (count := int(number[:9])) <= len(data):
                raise _Unusual
            key, equals, value = data[len(number) + 1 : count - 1].partition(b"=")
            if data[count - 1] != 10 or not equals:
                raise _Unusual
            if key == b"path" and block[156] == _PAX:
                name = value
            elif key == b"size" and value.isdigit() and len(value) < 20 and block[156] == _PAX:
                size = int(value)
            elif key not in _PLAIN_KEYS and (b"." not in key or key.startswith(b"GNU.")):
                raise _Unusual
            data = data[count:]
        return name, size, end

    def _by_tarfile(self, place: int) -> Member:
        """The member whose first header is at a place, as `tarfile` reads it."""
        self._check_extension_sizes(place)
        self._file.seek(place)
        try:
            with tarfile.TarFile(fileobj=self._file, errorlevel=2) as tar:
                found = tar.next()
        except (tarfile.TarError, OSError, ValueError, RecursionError, MemoryError) as error:
            raise self._damaged(place, all_lines(error)) from None
        if found is None:
            raise self._damaged(place, "the header is not valid")
        kind: MemberKind = "other"
        if found.issparse():
            kind = "sparse file"
        elif found.isdir():
            kind = "directory"
        elif found.isreg():
            kind = "file"
        elif found.type in _LINKS:
            kind = _LINKS[found.type]
        if found.size < 0:
            raise self._damaged(place, f"a member claims {found.size:,} bytes")
        return Member(found.name, kind, found.offset_data, found.size if kind == "file" else 0)

    def _check_extension_sizes(self, place: int) -> None:
        """Check that the headers before a member are small, since `tarfile` reads them whole."""
        while (block := self._block(place))[156] in b"xgLKXAS" and place < self._size:
            try:
                length = _octal(block[124:136])
            except _Unusual:
                length = _MAX_EXTENSION_BYTES + 1
            if length > _MAX_EXTENSION_BYTES:
                raise self._damaged(place, "a header with a long name or the like claims more than 1 MiB")
            if block[156] == ord("S"):
                return
            place = self._after(place + BLOCK, length)

    def _damaged(self, place: int, problem: str) -> InputError:
        return InputError(f"{self._path}: damaged at byte {place:,}{self._behind()}: {problem}")

    def _check_end(self, place: int) -> None:
        """Check that only zeros follow, so that no images are passed over."""
        stop = min(self._size, place + _MAX_PADDING)
        while place < stop:
            data = os.pread(self._descriptor, min(1 << 20, stop - place), place)
            if not data:
                return
            if data.count(0) < len(data):
                raise InputError(
                    f"{self._path}: something comes after its end{self._behind()}, probably another tar; "
                    "join tars with `tar --concatenate`, or keep them apart"
                )
            place += len(data)


_LINKS: dict[bytes, MemberKind] = {
    tarfile.SYMTYPE: "symbolic link",
    tarfile.LNKTYPE: "hard link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "FIFO",
}


def _octal(field: bytes) -> int:
    digits = field.rstrip(b"\0 ").lstrip(b" ")
    if not digits.isdigit():
        raise _Unusual
    try:
        return int(digits, 8)
    except ValueError:  # an 8 or a 9
        raise _Unusual from None
