"""Images that are not files of their own but parts of larger ones: members of tars, cells of columns."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from masp.data.reading import MAX_BYTES, opened
from masp.files.regular import UnsuitableFile, open_binary
from masp.files.sealed import digest_file


@dataclass(frozen=True, slots=True)
class StoredImage(ABC):
    """An image inside a larger file, the container. Small and picklable: workers get these and read the bytes."""

    container: str
    """Path of the larger file."""

    name: str
    """Name of the image inside it, for people: `0001.jpg` of a tar, `row 17` of a column."""

    def __str__(self) -> str:
        return f"{self.container}: {self.name}"

    @abstractmethod
    def open(self) -> BinaryIO:
        """A file of the image's bytes alone, at its beginning.

        Raises:
            UnsuitableFile: There are none.
            OSError: The container cannot be read, or is not what it was when it was listed.
        """

    def read(self) -> bytes:
        """All of its bytes; errors as of `open`."""
        with open_image(self) as file:
            return file.read()

    @property
    def num_bytes(self) -> int | None:
        """Size of the image in bytes, if it is known without reading it."""
        return None


@dataclass(frozen=True, slots=True)
class Section(StoredImage):
    """An image whose bytes lie one after another in the container, as in a tar."""

    offset: int
    """Where its bytes begin."""

    size: int
    """How many there are."""

    @property
    def num_bytes(self) -> int | None:
        return self.size

    def open(self) -> BinaryIO:
        return io.BufferedReader(_SectionReader(self.container, self.offset, self.size), 16 << 10)


class _SectionReader(io.RawIOBase):
    """The bytes of a container from `offset` on, `size` of them, as a file."""

    def __init__(self, path: str, offset: int, size: int) -> None:
        super().__init__()
        self._file = open_binary(path)
        if os.fstat(self._file.fileno()).st_size < offset + size:
            self._file.close()
            raise OSError(errno.ESTALE, "is shorter than when it was listed", path)
        self._start, self._size, self._place = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = min(len(buffer), max(0, self._size - self._place))
        data = os.pread(self._file.fileno(), wanted, self._start + self._place)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


Location = str | Path | StoredImage
"""Where an image is: the path of its file, or its place in a larger one. `str()` of it is its name for people."""


def open_image(image: Location) -> BinaryIO:
    """Open an image's bytes for reading.

    Raises:
        UnsuitableFile: There is none in its place, it is larger than `MAX_BYTES`, or its file is not a regular one.
        OSError: It cannot be opened.
    """
    if not isinstance(image, StoredImage):
        return opened(image)
    if image.num_bytes is not None and image.num_bytes > MAX_BYTES:
        raise UnsuitableFile(errno.EINVAL, f"{image.num_bytes:,} bytes; must be at most {MAX_BYTES:,}", str(image))
    return image.open()


@dataclass(frozen=True, slots=True)
class ImageStatus:
    """What shows without reading an image whether it has changed."""

    num_bytes: int | None
    """Size in bytes; None if only reading the image tells."""

    mtime_ns: int
    """Modification time of the file that it is, or is in (ns)."""


def image_status(image: Location) -> ImageStatus:
    """Examine an image's file without opening it.

    Raises:
        OSError: There is none, or it cannot be examined.
    """
    if isinstance(image, StoredImage):
        return ImageStatus(image.num_bytes, os.stat(image.container).st_mtime_ns)
    status = os.stat(image)
    return ImageStatus(status.st_size, status.st_mtime_ns)


def digest_image(image: Location) -> str:
    """SHA-256 of an image's bytes, in hexadecimal.

    Raises:
        UnsuitableFile: It is not a regular file, or is too large.
        OSError: It cannot be read.
    """
    return hashlib.sha256(image.read()).hexdigest() if isinstance(image, StoredImage) else digest_file(Path(image))
