"""A dataset repository of the Hugging Face Hub, through huggingface_hub, whose business tokens and endpoints are."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Iterator, Sequence

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, is_offline_mode
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars, validate_repo_id
from huggingface_hub.utils import logging as hub_logging

from masp.cache.remote.place import Advance, CacheFile, Place, Unreachable, check_source, source_chunks
from masp.errors import InputError, MaspError
from masp.files.sealed import CHUNK
from masp.files.text import all_lines

SCHEME = "hf://"

COMMIT_FILES = 200
"""So many files are committed at once."""
COMMIT_BYTES = 50_000_000
"""So many bytes of small files, which travel inside a commit."""
COMMIT_S = 300.0
"""At the latest after so many seconds what has been sent is committed."""

_ADDRESS = re.compile(r"hf://(?:datasets/)?(?P<repository>[^/@]+/[^/@]+)(?:@(?P<revision>[^@]+?))?/?")
_TYPE = "dataset"
_SMALL_BYTES = 10_000_000
"""The hub keeps larger files outside git."""
_REFUSED = (400, 401, 402, 403, 404, 409, 413, 422)
"""HTTP status codes that another try would meet again."""


class HubPlace(Place):
    """A dataset repository; it is read as it was when `look` was called, whatever is committed meanwhile."""

    def __init__(self, address: str, public: bool):
        """Nothing is asked yet.

        Args:
            address: `hf://owner/name`, or `hf://owner/name@revision`.
            public: Whether a repository that is made is public.

        Raises:
            InputError: Not a valid address, or the hub is turned off.
        """
        self.address, self.public, self.sizes = address, public, {}
        match = _ADDRESS.fullmatch(address)
        if not match:
            raise InputError(f"{address}: must be hf://owner/name, which names a dataset repository of the hub")
        self._repository, self._revision = match["repository"], match["revision"]
        try:
            validate_repo_id(self._repository)
        except HFValidationError as error:
            raise InputError(f"{address}: not a valid name of a repository: {all_lines(error)}") from None
        if is_offline_mode():
            raise InputError(
                f"{address}: the hub is turned off by HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE; unset it, or give a "
                "directory"
            )
        disable_progress_bars()  # there is one bar for all files
        hub_logging.set_verbosity_error()
        self._api, self._files = HfApi(), HfFileSystem(skip_instance_cache=True)
        self._commit: str | None = None
        self._digests: dict[str, str] = {}
        self._lock = threading.Lock()
        self._sent: list[CommitOperationAdd] = []
        self._committed_at = time.monotonic()

    def look(self) -> None:
        """List the files of the newest commit, or of the revision."""
        self.sizes, self.absent = {}, ""
        with self._errors():
            try:
                info = self._api.repo_info(self._repository, repo_type=_TYPE, revision=self._revision)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                self.absent = (
                    "no such dataset repository, or you may not see it (`hf auth login` logs you in at the hub)"
                )
                return
            self._commit = info.sha
            for entry in self._api.list_repo_tree(
                self._repository, recursive=True, revision=self._commit, repo_type=_TYPE
            ):
                if isinstance(entry, RepoFile):
                    self.sizes[entry.path] = entry.size
                    self._digests[entry.path] = entry.lfs.sha256 if entry.lfs else entry.blob_id

    def prepare(self) -> None:
        """Make the repository, if it is not there."""
        if self.absent:
            with self._errors():
                self._api.create_repo(self._repository, repo_type=_TYPE, private=not self.public, exist_ok=True)

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of a file, as one stream."""
        path = f"datasets/{self._repository}@{self._commit}/{name}"
        with self._errors(name), self._files.open(path, "rb", block_size=0) as stream:
            while chunk := stream.read(CHUNK):
                yield chunk

    def holds(self, file: CacheFile) -> bool:
        """Whether the file is there, by the digest that the hub lists: SHA-256, or git's of small files."""
        if file.name not in self.sizes or not file.fits(self.sizes[file.name]):
            return False
        digest = self._digests[file.name]
        if len(digest) == len(file.sha256):
            return digest == file.sha256
        if self.sizes[file.name] > 2 * _SMALL_BYTES:  # in git, where somebody else has put it
            return False
        check_source(file)
        data = b"".join(source_chunks(file))
        return digest == hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

    def send(self, files: Sequence[CacheFile], advance: Advance) -> None:
        """Upload files; small ones travel with the next commit, and all of them are seen after it."""
        operations = []
        for file in files:
            source = check_source(file)
            operation = CommitOperationAdd(file.name, source if isinstance(source, bytes) else str(source.absolute()))
            operation.upload_info.sha256 = bytes.fromhex(file.sha256)  # computed above: not again by the hub's library
            operations.append(operation)
        with self._errors(files[-1].name):
            self._api.preupload_lfs_files(
                self._repository,
                operations,
                repo_type=_TYPE,
                revision=self._revision,
                num_threads=1,
                free_memory=False,
            )
        with self._lock:
            self._sent += operations
        for operation in operations:
            advance(operation.upload_info.size)

    def settle(self, last: bool = False) -> None:
        """Commit what has been sent, if it is much, old, or the last."""
        with self._lock:
            waiting = list(self._sent)
        small = sum(o.upload_info.size for o in waiting if o.upload_info.size <= _SMALL_BYTES)
        is_much = len(waiting) >= COMMIT_FILES or small >= COMMIT_BYTES
        if waiting and (last or is_much or time.monotonic() - self._committed_at >= COMMIT_S):
            self._make_commit(waiting, f"Add {len(waiting)} files of a feature cache")
            with self._lock:
                self._sent = self._sent[len(waiting) :]

    def remove(self, name: str) -> None:
        """Remove a file, in a commit of its own."""
        self._make_commit([CommitOperationDelete(name)], f"Remove {name}: the cache is being replaced by a later state")

    def _make_commit(self, operations: Sequence[CommitOperationAdd | CommitOperationDelete], message: str) -> None:
        with self._errors():
            self._api.create_commit(
                self._repository,
                operations,
                commit_message=message,
                repo_type=_TYPE,
                revision=self._revision,
                num_threads=1,
            )
        self._committed_at = time.monotonic()

    def _errors(self, name: str = "") -> contextlib.AbstractContextManager[None]:
        return hub_errors(self.where(name) if name else self.address, self._revision)


@contextlib.contextmanager
def hub_errors(where: str, revision: str | None = None) -> Iterator[None]:
    """Turn what huggingface_hub and the HTTP library below it raise into one line.

    Args:
        where: What was asked for, such as `hf://owner/name`.
        revision: Its revision; None for the newest.

    Raises:
        Unreachable: Another try may succeed.
        InputError: It would not.
    """
    try:
        yield
    except (MaspError, KeyboardInterrupt):
        raise
    except OfflineModeIsEnabled as error:
        raise InputError(f"{where}: the hub is turned off: {all_lines(error)}") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{where}: the repository has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:  # a gated one, too
        raise InputError(f"{where}: {all_lines(error)}") from error
    except Exception as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        refused = isinstance(cause, HfHubHTTPError) and cause.response.status_code in _REFUSED
        raise (InputError if refused else Unreachable)(f"{where}: {all_lines(cause)}") from error
