"""Writing one shard: a tar with deterministic bytes under a temporary name, then its sidecar."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import torch
from webdataset import TarWriter

from masp.cache.codec import SampleRecord, checksum, encode_features, encode_record
from masp.cache.fingerprint import FORMAT_VERSION
from masp.cache.layout import Shard, plain_write_errors, sidecar_path, tar_path
from masp.cache.shard_state import (
    Member,
    QuarantineEntry,
    SampleEntry,
    Sidecar,
    SidecarFingerprint,
    Source,
    TarFile,
)
from masp.data.sample import Sample
from masp.files.atomic import publish
from masp.files.sealed import sealed
from masp.vlm.features import ImageLayout


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

    def __init__(self, directory: Path, shard: Shard, fingerprint: SidecarFingerprint):
        """Open the temporary file.

        Args:
            directory: Directory of the cache.
            shard: Shard to write.
            fingerprint: Fingerprint of the cache, see `fingerprint_of`.

        Raises:
            InputError: The directory cannot be written or the disk is full (every method).
        """
        self._directory, self._shard, self._fingerprint = directory, shard, fingerprint
        self._hidden_size: int | None = None
        self._num_deep_maps: int | None = None
        self._members: list[SampleEntry] = []
        self._quarantined: list[QuarantineEntry] = []
        self._path = tar_path(directory, shard.name)
        # the lock of the shard protects these names, and whoever does the shard again replaces what was left behind
        self._temporary = self._path.with_name(f".{self._path.name}.tmp")
        self._temporary_sidecar = self._path.with_name(f".{self._path.stem}.json.tmp")
        with plain_write_errors(directory):
            self._file = open(self._temporary, "wb", buffering=1 << 22)  # noqa: SIM115 - lives until finish or abandon
        self._out = _Digesting(self._file)
        # GNU headers take names of any length; owner, mode and time are fixed so that equal content is equal bytes
        fixed = {"user": "masp", "group": "masp", "mode": 0o444, "mtime": 0}
        self._tar = TarWriter(self._out, encoder=False, compress=False, format="GNU_FORMAT", **fixed)

    def add(
        self,
        sample: Sample,
        stored: Mapping[str, torch.Tensor],
        *,
        image_size: tuple[int, int],
        layout: ImageLayout,
        source: Source,
    ) -> int:
        """Write a sample; returns the bytes of its members.

        Args:
            sample: Sample of the dataset.
            stored: Its features as `masp.cache.codec.store` returns them, on the CPU.
            image_size: Width and height of the image that was given to the image processor.
            layout: How the image lies in the prompt.
            source: Its image file, which has been read.
        """
        assert source.sha256 is not None, f"{sample.key} has features although its image was not read"
        num_tokens, hidden_size = stored["features"].shape
        num_deep_maps = len(stored["deep"]) if "deep" in stored else None
        assert num_tokens == layout.num_tokens, f"{sample.key} has {num_tokens} features for {layout.num_tokens} tokens"
        assert not self._members or num_deep_maps == self._num_deep_maps, f"{sample.key} has {num_deep_maps} deep maps"
        self._hidden_size, self._num_deep_maps = hidden_size, num_deep_maps
        answers = dict(sample.answers)
        record = SampleRecord(
            key=sample.key,
            split=sample.split,
            category=sample.category,
            answers=answers,
            image_size=image_size,
            grid=layout.grid,
            source_sha256=source.sha256,
            block=layout.block,
            distribution=sample.distribution,
        )
        text, tensor = encode_record(record), encode_features(stored)
        with plain_write_errors(self._directory):
            text_offset = self._member(sample.key, "json", text)
            tensor_offset = self._member(sample.key, "safetensors", tensor)
        self._members.append(
            SampleEntry(
                key=sample.key,
                category=sample.category,
                answers=answers,
                image_size=image_size,
                grid=layout.grid,
                num_tokens=num_tokens,
                json=Member(text_offset, len(text), checksum(text)),
                features=Member(tensor_offset, len(tensor), checksum(tensor)),
                source=source,
                distribution=sample.distribution,
            )
        )
        return len(text) + len(tensor)

    def quarantine(self, sample: Sample, path: str, reason: str, source: Source) -> None:
        """Note a sample whose image cannot be read; `path` is the one that the user knows."""
        self._quarantined.append(
            QuarantineEntry(
                sample.key, sample.category, dict(sample.answers), path, reason, source, sample.distribution
            )
        )

    def finish(self) -> Sidecar:
        """Make the shard final, then write its sidecar; returns the sidecar."""
        with plain_write_errors(self._directory):
            self._tar.close()
            self._file.close()
            publish(self._temporary, self._path)
            sidecar = Sidecar(
                format_version=FORMAT_VERSION,
                name=self._shard.name,
                split=self._shard.split,
                generation=self._shard.generation,
                tar=TarFile(self._out.size, self._out.sha256.hexdigest()),
                fingerprint=self._fingerprint,
                hidden_size=self._hidden_size,
                samples=tuple(self._members),
                quarantined=tuple(self._quarantined),
                num_deep_maps=self._num_deep_maps,
            )
            # not `write_bytes`, which lists the directory for leftovers, with two files of every shard of the cache
            self._temporary_sidecar.write_bytes(sealed(sidecar))
            publish(self._temporary_sidecar, sidecar_path(self._directory, self._shard.name))
        return sidecar

    def abandon(self) -> None:
        """Remove the temporary file."""
        self._out.abandon()
        with contextlib.suppress(OSError):  # a full disk refuses what is still in the buffer; it goes with the file
            self._file.close()
        with contextlib.suppress(OSError):  # what made this necessary is the error to report
            self._temporary.unlink(missing_ok=True)
            self._temporary_sidecar.unlink(missing_ok=True)

    def _member(self, key: str, extension: str, data: bytes) -> int:
        """Append a member; returns the offset of its data."""
        self._tar.write({"__key__": key, extension: data})
        return self._tar.tarstream.offset - -(-len(data) // 512) * 512
