"""A bucket, or whatever else fsspec gives a URL: s3://, gs://, sftp://, memory://, …"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from fsspec.callbacks import Callback
from fsspec.core import split_protocol, url_to_fs

from masp.cache.remote.place import Advance, CacheFile, Place, Unreachable, check_source
from masp.errors import InputError, MaspError
from masp.files.retry import PERMANENT_ERRORS
from masp.files.sealed import CHUNK
from masp.files.text import first_line, reason

_LOCAL = ("file", "local")


class BucketPlace(Place):
    """A directory of a file system of fsspec.

    Most of these give no digest of what they hold. So a tar counts as there if it has its size and its sidecar, which
    is sent after it, is there byte for byte; every other file is read back.
    """

    def __init__(self, address: str):
        """Nothing is read yet.

        Raises:
            InputError: fsspec does not know the URL, or the package for it is not installed.
        """
        self.address, self.sizes = address, {}
        options = {"auto_mkdir": True} if split_protocol(address)[0] in _LOCAL else {}
        try:
            self._fs, root = url_to_fs(address, **options)
        except ImportError as error:
            raise InputError(f"{address}: a package is not installed: {first_line(error)}") from None
        except Exception as error:
            valid = "hf://owner/name, a directory, or a URL that fsspec knows, such as s3://bucket/path"
            raise InputError(f"{address}: {first_line(error)}; valid: {valid}") from None
        self._root = root.rstrip("/")

    def look(self) -> None:
        """List the files."""
        self.sizes, self.absent = {}, ""
        with self._errors():
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._root, maxdepth=2, detail=True)
            except FileNotFoundError:
                found = {}
        for path, info in found.items():
            self.sizes[path[len(self._root) :].lstrip("/")] = int(info.get("size") or 0)
        if not self.sizes:
            self.absent = "nothing is there"

    def prepare(self) -> None:
        """Nothing to do: directories of buckets come with their files."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of a file."""
        with self._errors(name), self._fs.open(self._path(name), "rb") as stream:
            while chunk := stream.read(CHUNK):
                yield chunk

    def holds(self, file: CacheFile) -> bool:
        """Whether the file is there, of a tar by its size and its sidecar."""
        if file.name not in self.sizes or not file.fits(self.sizes[file.name]):
            return False
        if file.receipt:
            return self.holds(file.receipt)
        return self.digest(file.name, file.max_bytes) == file.sha256

    def send(self, files: Sequence[CacheFile], advance: Advance) -> None:
        """Send files; what has arrived must have the size of what was sent."""
        for file in files:
            source, path = check_source(file), self._path(file.name)
            with self._errors(file.name):
                if isinstance(source, bytes):
                    self._fs.pipe_file(path, source)
                    advance(len(source))
                else:
                    callback = _Advancing(advance)
                    self._fs.put_file(str(source), path, callback=callback)
                    advance((file.num_bytes or 0) - callback.num_bytes)
                self._fs.invalidate_cache()
                size = self._fs.info(path)["size"]
            if not file.fits(size):
                raise Unreachable(f"{self.where(file.name)} arrived with {size} bytes instead of {file.num_bytes}")

    def remove(self, name: str) -> None:
        """Remove a file."""
        with self._errors(name):
            self._fs.rm(self._path(name))

    def settle(self, last: bool = False) -> None:
        """Nothing to do: files are there when they have been sent."""

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _errors(self, name: str = "") -> Iterator[None]:
        """Turn what libraries of buckets raise, each its own, into one line."""
        where = self.where(name) if name else self.address
        try:
            yield
        except MaspError:
            raise
        except OSError as error:
            kind = InputError if error.errno in PERMANENT_ERRORS or _is_permanent(error) else Unreachable
            raise kind(f"{where}: {reason(error)}") from error
        except NotImplementedError as error:
            raise InputError(f"{where}: this file system cannot do that: {first_line(error)}") from error
        except Exception as error:
            raise Unreachable(f"{where}: {first_line(error)}") from error


def _is_permanent(error: OSError) -> bool:
    return isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError)


class _Advancing(Callback):
    """Hears from fsspec how much of a file has been sent."""

    def __init__(self, advance: Advance):
        super().__init__()
        self._advance, self.num_bytes = advance, 0

    def relative_update(self, inc: int = 1) -> None:
        self.num_bytes += inc
        self._advance(inc)

    def absolute_update(self, value: int) -> None:
        self.relative_update(value - self.num_bytes)
