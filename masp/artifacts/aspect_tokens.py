"""The second-level cache: the aspect tokens of every image, for stage 2 and evaluation, bound to what made them.

<cache.dir>/aspect-tokens/<digest>.h5   tokens [num_samples, num_aspects, num_queries, hidden] fp32, crc32 [num_samples]
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from masp.artifacts.released_format import MAX_QUERIES
from masp.artifacts.trained import load_trained_aspects
from masp.cache.codec import checksum
from masp.cache.reader import Cache, open_matching_cache
from masp.config import Config
from masp.errors import InputError
from masp.files.atomic import replacing
from masp.files.hdf5 import Column, Hdf5File, Values, naming_damage
from masp.files.regular import is_file
from masp.files.sealed import digest_of
from masp.files.text import reason, shown
from masp.models.sequence import pad_features
from masp.runtime.devices import pick_device
from masp.runtime.log import say

DIRECTORY, FORMAT = "aspect-tokens", 1
BATCH = 32
"""Images whose tokens are computed at once."""
_MAX_BYTES = 1 << 40
REMEDY = "`masp cache aspects --config …` makes it"


@dataclass(frozen=True)
class Header:
    """All that the tokens depend on; its digest names the file, so that one of other modules is never found."""

    format: int
    index: str
    """Digest of the feature cache's index."""
    aspects: tuple[str, ...]
    """In the order of the prompt."""
    aspect_digest: str
    """Digest of the aspect modules."""

    def text(self) -> str:
        """The header as the file holds it."""
        return json.dumps(asdict(self))

    def path(self, cache: Cache) -> Path:
        """The file of these tokens."""
        return cache.directory / DIRECTORY / f"{digest_of(asdict(self))[:16]}.h5"


def _header(cache: Cache, aspects: Sequence[str], digest: str) -> Header:
    return Header(FORMAT, cache.manifest.index.sha256, tuple(aspects), digest)


def build_aspect_tokens(config: Config) -> Path:
    """Compute the tokens of all images with the aspect modules that the configuration names (`masp cache aspects`).

    Returns:
        The file. One that is there already is left alone.

    Raises:
        InputError: The configuration does without aspect modules, they are missing or do not fit, or what they make of
            an image is not finite.
    """
    cache, model = open_matching_cache(config, has_target=False)
    modules, lineage = load_trained_aspects(config, cache.hidden_size, model)
    if modules is None or lineage is None:
        raise InputError(
            "cache aspects: the configuration uses no aspect modules, so there are no aspect tokens to cache"
        )
    header = _header(cache, config.aspects, lineage.digest)
    path = header.path(cache)
    if is_file(path, key="cache.dir"):
        say(f"cache: {path} is there already")
        return path
    device = pick_device(config.engine.device, "engine.device")
    modules = modules.to(device).eval()
    shape = (len(cache), len(config.aspects), modules.num_queries, cache.hidden_size)
    try:
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary, h5py.File(temporary, "w") as file, torch.no_grad():
            file.attrs["made_of"] = np.bytes_(header.text())
            tokens = file.create_dataset("tokens", shape, dtype="f4", chunks=(1, *shape[1:]))
            crc32 = file.create_dataset("crc32", shape[:1], dtype="u4")
            bar = tqdm(total=len(cache), desc="aspects", unit="img", disable=not sys.stderr.isatty())
            for start in range(0, len(cache), BATCH):
                rows = range(start, min(start + BATCH, len(cache)))
                samples = [cache.read(row) for row in rows]
                features, mask = pad_features([sample.features.tokens.float() for sample in samples])
                found = modules(features.to(device), mask.to(device)).float().cpu().numpy()
                _check_finite(found, [sample.key for sample in samples], config.aspects, lineage.digest)
                tokens[rows.start : rows.stop] = found
                crc32[rows.start : rows.stop] = [checksum(one.tobytes()) for one in found]
                bar.update(len(rows))
            bar.close()
    except OSError as error:
        raise InputError(f"cache.dir: {path} cannot be written: {reason(error)}") from None
    say(f"cache: {path}: aspect tokens of {len(cache)} images, {path.stat().st_size / 1e9:.2f} GB")
    return path


def _check_finite(tokens: np.ndarray, keys: Sequence[str], aspects: Sequence[str], digest: str) -> None:
    """Raises InputError if tokens `[B, A, N, D]` are not finite; names the first image and the aspect."""
    bad = np.argwhere(~np.isfinite(tokens).all(axis=(2, 3)))
    if len(bad):
        image, aspect = bad[0]
        raise InputError(
            f"the aspect tokens of sample {shown(keys[image])} for aspect {shown(aspects[aspect])} are not finite: "
            f"aspect modules {digest[:12]} do not fit its features; train them again, or give another "
            "checkpoint.aspect; nothing was written"
        )


class AspectTokens:
    """A finished file, read-only. Picklable; each process opens it on first use.

    Args:
        cache: Feature cache that it belongs to.
        aspects: Names of the aspects, in the order of the prompt.
        digest: Digest of the aspect modules.

    Raises:
        InputError: No file of these modules and this cache exists.
        DataError: It is damaged.
    """

    def __init__(self, cache: Cache, aspects: Sequence[str], digest: str):
        header = _header(cache, aspects, digest)
        self.path = header.path(cache)
        self.num_queries = 0
        """Aspect tokens of each aspect, as the file has them."""
        self._file: Hdf5File | None = None
        self._columns: tuple[Values, Values] | None = None
        if not is_file(self.path, key="cache.dir"):
            raise InputError(
                f"cache.aspect_tokens = true: {self.path.parent} holds no tokens of aspect modules {digest[:12]} for "
                f"this cache; {REMEDY}, or give cache.aspect_tokens=false"
            )
        self._shape = (len(cache), len(header.aspects), cache.hidden_size)
        try:
            with self._naming_damage():
                self._check(header)
        finally:
            self.close()  # opened again after a fork

    def _check(self, header: Header) -> None:
        """Raises ValueError unless the file holds the tokens of this header."""
        tokens, _ = self._open()
        assert self._file is not None
        if not self._file.has_text("made_of", header.text()):
            raise ValueError("it is not what its name says")
        self.num_queries = tokens.shape[2]
        if not 1 <= self.num_queries <= MAX_QUERIES:
            raise ValueError(f"it holds {self.num_queries} tokens of each aspect; must be 1 to {MAX_QUERIES}")

    def close(self) -> None:
        """Close the file; reading opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = self._columns = None

    def _open(self) -> tuple[Values, Values]:
        """The tokens and their checksums."""
        if self._file is None or self._columns is None:
            num_samples, num_aspects, hidden_size = self._shape
            self._file = Hdf5File(self.path, max_bytes=_MAX_BYTES, key="cache.dir")
            self._columns = (
                self._file.dataset("tokens", Column("<f4", (num_samples, num_aspects, None, hidden_size))),
                self._file.dataset("crc32", Column("<u4", (num_samples,))),
            )
        return self._columns

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_columns": None}

    def read(self, row: int) -> Tensor:
        """The tokens of a row of the cache's index, `[A, N, D]` fp32.

        Raises:
            DataError: They are damaged.
        """
        with self._naming_damage():
            tokens, crc32 = self._open()
            found = tokens.rows(row, row + 1)[0]
            if checksum(found.tobytes()) != int(crc32.rows(row, row + 1)[0]):
                raise ValueError(f"row {row} does not match its checksum")
            return torch.from_numpy(found)

    def _naming_damage(self) -> contextlib.AbstractContextManager[None]:
        return naming_damage(self.path, f"remove the file, and {REMEDY} anew")


def open_aspect_tokens(config: Config, cache: Cache, digest: str | None) -> AspectTokens | None:
    """What `cache.aspect_tokens` asks for; None if it is off or there are no aspect modules (digest None)."""
    if not config.cache.aspect_tokens or digest is None:
        return None
    return AspectTokens(cache, config.aspects, digest)
