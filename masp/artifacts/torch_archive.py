"""Files of `torch.save` that may come from anyone, read without unpickling them.

Such a file is a zip archive: `data.pkl` describes the tensors, and each storage is a member of its own. `torch.load`
calls some thirty functions with whatever arguments a file gives them, and believes the size that it states of a
storage. Here the few operations that tensors in plain containers need are followed one by one: nothing is called or
imported, and every size is compared with what the file holds before anything is read.
"""

from __future__ import annotations

import math
import pickletools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import torch
from torch import Tensor

from masp.files.regular import open_binary
from masp.files.sealed import CHUNK
from masp.files.text import first_line, shown

MAX_PICKLE_BYTES = 8 << 20
"""Size limit of `data.pkl`; 4096 rows take 400 kB."""
MAX_OPERATIONS = 1 << 19
"""Limit of the operations in it; 4096 rows take 150,000."""
MAX_DIMENSIONS = 8

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_DICT = "collections OrderedDict"
_TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_KNOWN = {_DICT, _TENSOR, _PARAMETER, *(f"torch {name}" for name in _DTYPES)}
_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"),
    *("NONE", "NEWTRUE", "NEWFALSE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}


class _Bounded:
    """A file of which little is read at a time: zipfile reads a list of members of any size, and keeps it."""

    def __init__(self, file: BinaryIO):
        self.file, self.seek, self.tell, self.seekable = file, file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        """As of any file."""
        data = self.file.read(min(count, MAX_PICKLE_BYTES + 1) if count >= 0 else MAX_PICKLE_BYTES + 1)
        if len(data) > MAX_PICKLE_BYTES:
            raise Refused(f"its list of members has more than {MAX_PICKLE_BYTES:,} bytes")
        return data


class Refused(ValueError):
    """A file is not read; the message says why."""


class NotAnArchive(ValueError):
    """A file is not one of `torch.save`."""


@dataclass(frozen=True)
class _Name:
    """A name that a pickle imports."""

    text: str


class _OrderedDict(dict):
    """What stands for an OrderedDict: its attributes, such as the versions in a state dict, are left out."""


@dataclass(frozen=True)
class _Storage:
    """Numbers in the file."""

    member: str
    dtype: torch.dtype
    start: int
    """Position in the file of the first byte."""
    num_numbers: int


def read_archive(path: str | Path, max_bytes: int) -> Any:
    """Read tensors in dicts, lists and tuples.

    Args:
        path: Path of a regular file.
        max_bytes: Largest size.

    Raises:
        NotAnArchive: It is something else, or damaged.
        Refused: It contains or claims what such a file need not.
        OSError: It cannot be read.
    """
    with open_binary(path, max_bytes=max_bytes) as file:
        try:
            with ZipFile(_Bounded(file)) as archive:
                members = archive.infolist()
                size = file.seek(0, 2)
                data, prefix = _description(archive, members, size)
        except (BadZipFile, NotImplementedError, RuntimeError, EOFError, UnicodeDecodeError) as error:
            if _is_older(file):
                raise Refused(
                    "it is in torch's format from before version 1.6; load it there and save it again with torch.save"
                ) from None
            raise NotAnArchive(first_line(error)) from None
        return _Description(file, size, {m.filename: m for m in members}, prefix).follow(data)


def _description(archive: ZipFile, members: list[ZipInfo], size: int) -> tuple[bytes, str]:
    """`data.pkl`, and what the names of all members start with."""
    packed = [member.filename for member in members if member.compress_type != ZIP_STORED]
    if packed:  # torch does not write them; unpacked, a small file could fill all memory
        raise Refused(f"{shown(packed[0])} in it is compressed")
    claimed = sum(member.file_size for member in members)
    if claimed > size:  # members that overlap
        raise Refused(f"it has {size:,} bytes, and its members claim {claimed:,}")
    found = [member for member in members if member.filename.rpartition("/")[2] == "data.pkl"]
    if len(found) != 1:
        raise NotAnArchive(f"it has {len(found)} members data.pkl")
    (member,) = found
    if member.file_size > MAX_PICKLE_BYTES:
        raise Refused(
            f"{shown(member.filename)} in it has {member.file_size:,} bytes; must be at most {MAX_PICKLE_BYTES:,}"
        )
    prefix = member.filename.removesuffix("data.pkl")
    order = [m for m in members if m.filename == f"{prefix}byteorder"]
    if order and (order[0].file_size > 6 or archive.read(order[0]) != b"little"):
        raise Refused("the byte order of its numbers is not little")
    return archive.read(member), prefix


def _is_older(file: BinaryIO) -> bool:
    """Whether a file starts with the number by which torch's older format is known."""
    file.seek(0)
    return torch.serialization.MAGIC_NUMBER.to_bytes(10, "little") in file.read(64)


class _Description:
    """Follows the operations of a pickle.

    Args:
        file: The archive.
        size: Its bytes.
        members: Its members by name.
        prefix: What their names start with.
    """

    def __init__(self, file: BinaryIO, size: int, members: dict[str, ZipInfo], prefix: str):
        self.file, self.size, self.members, self.prefix = file, size, members, prefix
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.checked: set[str] = set()
        """Storages whose checksum was computed."""
        self.num_read = 0
        """Bytes of tensors so far: tensors that share bytes could fill all memory."""

    def follow(self, data: bytes) -> Any:
        """The value that the pickle describes."""
        try:
            for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
                if operation.name == "STOP":
                    return self.stack.pop()
                if number >= MAX_OPERATIONS:
                    raise Refused(f"data.pkl in it has more than {MAX_OPERATIONS:,} operations")
                self._do(operation.name, argument)
        except (Refused, NotAnArchive):
            raise
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            raise NotAnArchive(f"data.pkl in it is damaged: {first_line(error)}") from None
        raise NotAnArchive("data.pkl in it is cut short")

    def _do(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _VALUES:
            stack.append(_CONSTANTS[name]() if name in _CONSTANTS else argument)
            return
        match name:
            case "PROTO":
                pass
            case "MARK":
                self.marks.append(stack)
                self.stack = []
            case "TUPLE":
                items = self._marked()
                self.stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[len(stack) - count :])]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "APPEND" | "APPENDS":
                items = self._marked() if name == "APPENDS" else [stack.pop()]
                _of_kind(self.stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._marked() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                target = _of_kind(self.stack[-1], dict)
                for key, value in zip(items[::2], items[1::2], strict=True):
                    if type(key) not in (str, int):  # computing the hash of nested tuples can take for ever
                        raise Refused(f"a key in it is of type {type(key).__name__}; must be a string or an integer")
                    target[key] = value
            case "GLOBAL":
                if argument not in _KNOWN:
                    text = shown(argument.replace(" ", "."))
                    raise Refused(f"it names {text}, which no dense tensor needs and is not run")
                stack.append(_Name(argument))
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case "REDUCE":
                arguments = _of_kind(stack.pop(), tuple)
                stack.append(self._called(_of_kind(stack.pop(), _Name).text, arguments))
            case "BUILD":
                stack.pop()
                _of_kind(stack[-1], _OrderedDict)
            case _:
                raise Refused(f"data.pkl in it has the operation {name}, which no dense tensor needs")

    def _marked(self) -> list[Any]:
        """What was pushed since the last mark."""
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def _called(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name == _DICT and not arguments:
            return _OrderedDict()
        if name == _PARAMETER and len(arguments) == 3:
            return _of_kind(arguments[0], Tensor)
        if name == _TENSOR and len(arguments) in (6, 7):
            return self._tensor(_of_kind(arguments[0], _Storage), *arguments[1:4])
        raise Refused(f"it calls {shown(name.replace(' ', '.'))} with {len(arguments)} arguments")

    def _storage(self, named: Any) -> _Storage:
        """The storage of a persistent id, if the file holds all of it."""
        match named:
            case ("storage", _Name(text), str(key), str(), int(count)) if text.startswith("torch ") and count >= 0:
                dtype = _DTYPES[text.removeprefix("torch ")]
            case _:
                raise Refused("data.pkl in it names a storage in another way than torch does")
        member = self.members.get(f"{self.prefix}data/{key}")
        if member is None:
            raise NotAnArchive(f"its storage {shown(key)} is missing")
        if count * dtype.itemsize > member.file_size:
            raise Refused(
                f"its storage {shown(key)} has {member.file_size:,} bytes, and data.pkl claims "
                f"{count * dtype.itemsize:,}"
            )
        start = self._start(member)
        if key not in self.checked:
            self._check(member, start)
            self.checked.add(key)
        return _Storage(key, dtype, start, count)

    def _check(self, member: ZipInfo, start: int) -> None:
        """Compare a member with its checksum."""
        self.file.seek(start)
        left, found = member.file_size, 0
        while left and (data := self.file.read(min(left, CHUNK))):
            left, found = left - len(data), zlib.crc32(data, found)
        if found != member.CRC:
            raise NotAnArchive(f"{shown(member.filename)} in it does not match its checksum")

    def _start(self, member: ZipInfo) -> int:
        """Position in the file of a member's first byte."""
        self.file.seek(member.header_offset)
        header = self.file.read(30)
        if len(header) < 30 or not header.startswith(b"PK\3\4"):
            raise NotAnArchive(f"{shown(member.filename)} in it is damaged")
        start = member.header_offset + 30 + int.from_bytes(header[26:28], "little")
        start += int.from_bytes(header[28:30], "little")
        if start + member.file_size > self.size:
            raise NotAnArchive(f"{shown(member.filename)} in it is cut short")
        return start

    def _tensor(self, storage: _Storage, offset: Any, shape: Any, strides: Any) -> Tensor:
        """A tensor of its own memory: a released row is a view into a whole embedding table."""
        for numbers in ((offset,), shape, strides):
            if type(numbers) is not tuple or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
                raise Refused(f"a tensor of its storage {shown(storage.member)} has an odd shape, strides or offset")
        if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
            raise Refused(f"a tensor of its storage {shown(storage.member)} has {len(shape)} dimensions")
        count = math.prod(shape)
        span = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if count else 0
        if max(count, offset + span) > storage.num_numbers:
            raise Refused(
                f"a tensor {list(shape)} with strides {list(strides)} from number {offset:,} on claims more than its "
                f"storage {shown(storage.member)} has, which is {storage.num_numbers:,} numbers"
            )
        if not count:
            raise Refused(f"a tensor {list(shape)} of its storage {shown(storage.member)} is empty")
        size = storage.dtype.itemsize
        self.num_read += span * size
        if self.num_read > self.size:
            raise Refused(f"it has {self.size:,} bytes, and its tensors claim more")
        self.file.seek(storage.start + offset * size)
        data = bytearray(self.file.read(span * size))
        if len(data) < span * size:
            raise NotAnArchive(f"its storage {shown(storage.member)} is cut short")
        return torch.frombuffer(data, dtype=storage.dtype).as_strided(shape, strides)


def _of_kind(value: Any, kind: type) -> Any:
    """The value, if it is of this kind."""
    if not isinstance(value, kind):
        raise Refused(f"data.pkl in it puts {_word(type(value))} where {_word(kind)} must be")
    return value


def _word(kind: type) -> str:
    return kind.__name__.removeprefix("_")
