"""Writing one shard: a tar with deterministic bytes under a temporary name, then its sidecar."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING

from webdataset import TarWriter

from masp.cache.codec import checksum, encode_features, encode_record
from masp.cache.fingerprint import FORMAT_VERSION, Fields, fingerprint_digest
from masp.cache.layout import Shard, plain_write_errors, sidecar_path, tar_path
from masp.files.atomic import fsync_directory, write_bytes
from masp.files.sealed import sealed

if TYPE_CHECKING:
    import torch


class _Digesting:
    """A binary file that digests what is written to it; once abandoned, it takes anything and writes nothing."""

    def __init__(self, file: IO[bytes]):
        self.file, self.sha256, self.size = file, hashlib.sha256(), 0

    def abandon(self) -> None:
        # a tar that is collected as garbage still writes its last block
        self.write = len  # type: ignore[method-assign,assignment]

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self.file.write(data)


class ShardWriter:
    """One shard in the making. Add its samples in order, then `finish`; `abandon` leaves nothing behind."""

    def __init__(self, folder: Path, shard: Shard, model: Fields, machine: Fields):
        """Open the temporary file.

        Args:
            folder: the cache.
            shard: which one.
            model: model part of the fingerprint.
            machine: machine part.

        Raises:
            InputError: the folder cannot be written or the disk is full (every method).
        """
        self._folder, self._shard = folder, shard
        self._fingerprint = {"model": fingerprint_digest(model), "machine": machine}
        self._hidden_size: int | None = None
        self._members: list[dict] = []
        self._quarantined: list[dict] = []
        self._path = tar_path(folder, shard.name)
        self._temporary = self._path.with_name(f".{self._path.name}.tmp")
        with plain_write_errors(folder):
            self._file = open(self._temporary, "wb", buffering=1 << 22)  # noqa: SIM115 - lives until finish or abandon
        self._out = _Digesting(self._file)
        # GNU headers take names of any length; owner, mode and time are fixed so that equal content is equal bytes
        fixed = {"user": "masp", "group": "masp", "mode": 0o444, "mtime": 0}
        self._tar = TarWriter(self._out, encoder=False, compress=False, format="GNU_FORMAT", **fixed)

    def add(self, sample, stored: dict[str, torch.Tensor], record: dict, source: dict) -> int:
        """Write a sample; returns the bytes of its members.

        Args:
            sample: the dataset's `Sample`.
            stored: of its features, by `masp.cache.codec.store`, on the CPU.
            record: what the JSON member holds besides key, split, category and answers: `image_size` (width, height),
                `grid` (t, h, w) and `source_sha256`.
            source: of the image file: `bytes`, `mtime_ns`, `sha256`.
        """
        record = {
            "key": sample.key,
            "split": sample.split,
            "category": sample.category,
            "answers": dict(sample.answers),
            **record,
        }
        num_tokens, self._hidden_size = stored["features"].shape
        text, tensor = encode_record(record), encode_features(stored)
        with plain_write_errors(self._folder):
            text_offset = self._member(sample.key, "json", text)
            tensor_offset = self._member(sample.key, "safetensors", tensor)
        self._members.append(
            {
                "key": sample.key,
                "category": sample.category,
                "answers": dict(sample.answers),
                "image_size": list(record["image_size"]),
                "grid": list(record["grid"]),
                "num_tokens": num_tokens,
                "json": {"offset": text_offset, "bytes": len(text), "crc32": checksum(text)},
                "features": {"offset": tensor_offset, "bytes": len(tensor), "crc32": checksum(tensor)},
                "source": source,
            }
        )
        return len(text) + len(tensor)

    def quarantine(self, sample, path: str, reason: str, source: dict) -> None:
        """Note a sample whose image cannot be read; `path` as the user knows it, the rest as in `add`."""
        entry = {"key": sample.key, "category": sample.category, "answers": dict(sample.answers)}
        self._quarantined.append({**entry, "path": path, "reason": reason, "source": source})

    def finish(self) -> dict:
        """Make the shard final, then write its sidecar; returns the sidecar."""
        with plain_write_errors(self._folder):
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            # fsync reports late write errors on network file systems, so only now is the name final
            os.replace(self._temporary, self._path)
            fsync_directory(self._path.parent)
            sidecar = {
                "format_version": FORMAT_VERSION,
                "name": self._shard.name,
                "split": self._shard.split,
                "generation": self._shard.generation,
                "tar": {"bytes": self._out.size, "sha256": self._out.sha256.hexdigest()},
                "fingerprint": self._fingerprint,
                "hidden_size": self._hidden_size,
                "samples": self._members,
                "quarantined": self._quarantined,
            }
            write_bytes(sidecar_path(self._folder, self._shard.name), sealed(sidecar))
        return sidecar

    def abandon(self) -> None:
        """Remove the temporary file."""
        self._out.abandon()
        with contextlib.suppress(OSError):  # a full disk refuses what is still in the buffer; it goes with the file
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _member(self, key: str, extension: str, data: bytes) -> int:
        """Append a member; returns the offset of its data."""
        self._tar.write({"__key__": key, extension: data})
        return self._tar.tarstream.offset - -(-len(data) // 512) * 512
