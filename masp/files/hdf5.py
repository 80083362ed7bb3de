"""Reading HDF5 files that anybody may have written: only values that are in the file itself, all of them, and no more.

An HDF5 file can name other files (external storage and links, virtual datasets), claim terabytes that it does not hold,
make libhdf5 load a filter from a library, and hold strings of variable length, of which libhdf5 never returns from some
damaged ones. Everything is refused here that a schema, the caller's `Column`s, does not ask for.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np

from masp.errors import DataError, FilesInUse, InputError, MaspError
from masp.files.regular import file_size
from masp.files.text import all_lines, reason, shortened, shown

MAX_BYTES = 64 << 30
"""Default size limit of a file: the attention maps of a million images."""
MAX_RATIO = 200
"""A compressed dataset may be this much larger than what the file holds of it; deflate itself reaches 1,032."""
MAX_NAMES = 1000
"""In a group."""
MAX_STRING = 1 << 16
"""Bytes of a string."""
_START = 1 << 20


@dataclass(frozen=True)
class Column:
    """What a dataset must be."""

    dtype: str
    """In NumPy's notation, such as `<i8`; `S` for strings of fixed length, whatever length."""
    shape: tuple[int | None, ...]
    """None where any number will do."""


class Hdf5File:
    """A file, open for reading, without a lock: it never changes once it has its name, and some file systems have none.

    Its methods raise ValueError, or whatever h5py raises, if the file is damaged or not what was asked for; use them
    inside `naming_damage`.

    Args:
        path: Path of a regular file.
        max_bytes: Largest size.
        key: Setting or option that the path comes from, for errors.

    Raises:
        InputError: It is missing, may not be read, is not a regular file or is too large.
        OSError: It is not an HDF5 file.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, key: str = ""):
        size = file_size(path, max_bytes=max_bytes, key=key)
        if size is None:
            raise InputError(f"{f'{key}: ' if key else ''}{path} does not exist")
        self.num_bytes = size
        self._path = path
        self._file = h5py.File(path, "r", locking=False)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Hdf5File:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def has(self, name: str) -> bool:
        """Whether there is something of this name, such as `attention/weights`, in the file itself."""
        group = self._file
        for part in name.split("/"):
            if not isinstance(group, h5py.Group) or not isinstance(group.get(part, getlink=True), h5py.HardLink):
                return False
            group = group[part]
        return True

    def names(self, name: str) -> list[str]:
        """What a group holds, in the order of the names.

        Raises:
            ValueError: It is missing, not a group of the file itself, or holds too many.
        """
        group = self._file[name] if self.has(name) else None
        if not isinstance(group, h5py.Group) or len(group) > MAX_NAMES:
            raise ValueError(f"{name} must be a group of at most {MAX_NAMES:,} names")
        return sorted(group)

    def attribute(self, name: str) -> int | str | None:
        """An attribute of the file that is one integer or one string of fixed length; None if it is anything else."""
        if name not in self._file.attrs:
            return None
        found = self._file.attrs.get_id(name)
        if found.shape != () or found.dtype.kind not in "iuS" or found.dtype.itemsize > MAX_STRING:
            return None  # not read: a damaged string of variable length could keep libhdf5 busy forever
        value = np.empty((), found.dtype)
        found.read(value)
        return bytes(value[()]).decode() if found.dtype.kind == "S" else int(value)

    def has_text(self, name: str, text: str) -> bool:
        """Whether an attribute of the file is this string.

        Earlier versions wrote strings of variable length. Those are not asked of libhdf5, but looked for where it puts
        the first ones that it writes: near the start of the file, as they are.
        """
        if name not in self._file.attrs:
            return False
        string = h5py.check_string_dtype(self._file.attrs.get_id(name).dtype)
        if string is None or string.length is not None:
            return self.attribute(name) == text
        with open(self._path, "rb") as file:
            return text.encode() in file.read(_START)

    def dataset(self, name: str, column: Column) -> Values:
        """A dataset, checked before anything of it is read.

        Raises:
            ValueError: It is missing, not in the file itself, not as `column` says, or claims more than the file holds.
        """
        if not self.has(name):
            raise ValueError(f"it holds no {name}")
        dataset = self._file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise ValueError(f"{name} is not a dataset")
        # Asked first: the shape alone of a virtual dataset may open the files that it names.
        if dataset.is_virtual or dataset.external:
            raise ValueError(f"the values of {name} are in another file")
        _check_kind(name, dataset, column)
        compressed = _is_compressed(name, dataset)
        held = min(dataset.id.get_storage_size(), self.num_bytes)
        if dataset.nbytes > held * (MAX_RATIO if compressed else 1):
            raise ValueError(f"{name} claims {dataset.nbytes:,} bytes; the file holds {held:,} of them")
        return Values(name, dataset, compressed)


class Values:
    """A dataset of a file; the values are read when they are asked for."""

    def __init__(self, name: str, dataset: h5py.Dataset, compressed: bool):
        self.name, self._dataset, self._compressed = name, dataset, compressed
        self.shape: tuple[int, ...] = dataset.shape

    def read(self) -> np.ndarray:
        """All values."""
        return self.rows(0, self.shape[0])

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`, without `stop`; of compressed datasets their chunks are read whole.

        Raises:
            ValueError: There are no such rows, or they are damaged.
        """
        if not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(f"{self.name} has no rows {start} to {stop}")
        if not self._compressed:
            return self._dataset[start:stop]
        size = self._dataset.chunks[0]
        first, last = start // size, -(-stop // size)
        chunks = [self._inflated(number * size) for number in range(first, last)]
        found = np.concatenate(chunks) if chunks else np.empty((0, *self.shape[1:]), self._dataset.dtype)
        return found[start - first * size : stop - first * size]

    def strings(self) -> list[str]:
        """All values of a list of strings.

        Raises:
            ValueError: One is not UTF-8.
        """
        return [text.decode() for text in self.read().tolist()]

    def _inflated(self, start: int) -> np.ndarray:
        """The chunk that starts at a row. libhdf5 would inflate whatever is in it, gigabytes if need be."""
        chunk, dtype = self._dataset.chunks, self._dataset.dtype
        num_bytes = math.prod(chunk) * dtype.itemsize
        mask, data = self._dataset.id.read_direct_chunk((start,) + (0,) * (len(chunk) - 1))
        if mask == 0:
            inflate = zlib.decompressobj()
            try:
                data = inflate.decompress(data, num_bytes + 1)
            except zlib.error as error:
                raise ValueError(f"{self.name} is not compressed as it says: {error}") from None
        if len(data) != num_bytes:
            raise ValueError(f"a chunk of {self.name} has {len(data)} bytes or more; must be {num_bytes}")
        if self._dataset.shuffle:
            data = np.frombuffer(data, "u1").reshape(dtype.itemsize, -1).T.tobytes()
        return np.frombuffer(data, dtype).reshape(chunk)


def _check_kind(name: str, dataset: h5py.Dataset, column: Column) -> None:
    dtype, shape = dataset.dtype, dataset.shape
    wanted = "strings of fixed length" if column.dtype == "S" else str(np.dtype(column.dtype))
    fits = dtype.kind == "S" if column.dtype == "S" else dtype == np.dtype(column.dtype)
    if not fits or dtype.itemsize > MAX_STRING:
        raise ValueError(f"{name} is {shortened(str(dtype))}; must be {wanted}")
    has_rank = shape is not None and len(shape) == len(column.shape)
    if not has_rank or any(n not in (None, m) for m, n in zip(shape, column.shape, strict=True)):
        expected = ", ".join("any" if n is None else str(n) for n in column.shape)
        raise ValueError(f"{name} has the shape {shown(shape)}; must be [{expected}]")


def _is_compressed(name: str, dataset: h5py.Dataset) -> bool:
    """Whether a dataset has the filters of `compression="gzip"`, with `shuffle` or without.

    Raises:
        ValueError: It has other ones, which libhdf5 might look for in a library, or chunks that are not whole rows.
    """
    creation = dataset.id.get_create_plist()
    filters = [creation.get_filter(number)[0] for number in range(creation.get_nfilters())]
    if not filters:
        return False
    if filters not in ([h5py.h5z.FILTER_DEFLATE], [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE]):
        raise ValueError(f"{name} is stored with the filters {shown(filters)}; must be plain or gzip")
    if dataset.chunks[1:] != dataset.shape[1:]:
        raise ValueError(f"the chunks of {name} are not whole rows")
    num_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if num_bytes > max(1 << 24, MAX_RATIO * dataset.id.get_storage_size()):
        raise ValueError(f"a chunk of {name} claims {num_bytes:,} bytes")
    return True


def write_strings(group: h5py.Group, name: str, texts: Sequence[str]) -> None:
    """Write strings so that `Values.strings` reads them: of fixed length, that of the longest one.

    What HDF5's strings cannot hold is replaced: a NUL, which would end one, and lone surrogates, which are not UTF-8.
    """
    plain = [text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "backslashreplace") for text in texts]
    length = max((len(text) for text in plain), default=0) or 1
    if length > MAX_STRING:
        raise ValueError(f"{name}: a string of {length} bytes; at most {MAX_STRING}")
    values = np.array(plain, dtype=h5py.string_dtype("utf-8", length))
    group.create_dataset(name, data=values, track_times=False)


@contextlib.contextmanager
def naming_damage(path: Path, remedy: str = "") -> Iterator[None]:
    """Turn whatever a damaged file makes h5py raise into one line; errors of MASP pass.

    Args:
        path: The file.
        remedy: What to do about it.

    Raises:
        FilesInUse: Another process is writing it.
        InputError: It may not be read.
        DataError: The block raised something else.
    """
    try:
        yield
    except (MaspError, MemoryError):
        raise
    except BlockingIOError as error:  # HDF5 locks a file that it writes
        raise FilesInUse(f"{path} is being written by another process: {reason(error)}") from None
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from None
    except Exception as error:  # h5py raises nearly anything: OSError, KeyError, RuntimeError, TypeError …
        raise DataError(f"{path} is damaged: {all_lines(error)}{f'; {remedy}' if remedy else ''}") from None
