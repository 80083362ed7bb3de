"""The second-level cache: the aspect tokens of every image, for stage 2 and evaluation, bound to what made them.

<cache.dir>/aspect-tokens/<digest>.h5   tokens [num_samples, num_aspects, num_queries, hidden] fp32, crc32 [num_samples]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from masp.errors import DataError, FilesInUse, InputError, MaspError
from masp.files.atomic import replacing
from masp.files.regular import is_file
from masp.files.sealed import digest_of
from masp.files.text import first_line, reason
from masp.models.sequence import pad_features
from masp.runtime.devices import pick_device
from masp.runtime.log import say

DIRECTORY, FORMAT = "aspect-tokens", 1
BATCH = 32
"""Images whose tokens are computed at once."""
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
        InputError: The configuration does without aspect modules, or they are missing or do not fit.
    """
    cache, model = open_matching_cache(config)
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
            file.attrs["made_of"] = header.text()
            tokens = file.create_dataset("tokens", shape, dtype="f4", chunks=(1, *shape[1:]))
            crc32 = file.create_dataset("crc32", shape[:1], dtype="u4")
            bar = tqdm(total=len(cache), desc="aspects", unit="img", disable=not sys.stderr.isatty())
            for start in range(0, len(cache), BATCH):
                rows = range(start, min(start + BATCH, len(cache)))
                features, mask = pad_features([cache.read(row).features.float() for row in rows])
                found = modules(features.to(device), mask.to(device)).float().cpu().numpy()
                tokens[rows.start : rows.stop] = found
                crc32[rows.start : rows.stop] = [checksum(one.tobytes()) for one in found]
                bar.update(len(rows))
            bar.close()
    except OSError as error:
        raise InputError(f"cache.dir: {path} cannot be written: {reason(error)}") from None
    say(f"cache: {path}: aspect tokens of {len(cache)} images, {path.stat().st_size / 1e9:.2f} GB")
    return path


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
        self._file: h5py.File | None = None
        if not is_file(self.path, key="cache.dir"):
            raise InputError(
                f"cache.aspect_tokens = true: {self.path.parent} holds no tokens of aspect modules {digest[:12]} for "
                f"this cache; {REMEDY}, or give cache.aspect_tokens=false"
            )
        try:
            with self._damage_named():
                self._check(header, (len(cache), len(header.aspects), cache.hidden_size))
        finally:
            self.close()  # opened again after a fork

    def _check(self, header: Header, shape: tuple[int, int, int]) -> None:
        """Raises ValueError unless the file holds the tokens of this header, for `(num_samples, num_aspects, D)`."""
        file = self._open()
        if file.attrs.get("made_of") != header.text():
            raise ValueError("it is not what its name says")
        tokens, crc32 = (_column(file, name, kind) for name, kind in (("tokens", "<f4"), ("crc32", "<u4")))
        fits = tokens.ndim == 4 and (*tokens.shape[:2], tokens.shape[3]) == shape and crc32.shape == shape[:1]
        if not fits or not 1 <= tokens.shape[2] <= MAX_QUERIES:
            raise ValueError(f"its shapes, {tokens.shape} and {crc32.shape}, are not those of this cache")
        self.num_queries = tokens.shape[2]

    def close(self) -> None:
        """Close the file; reading opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> h5py.File:
        if self._file is None:
            # Without a lock: a finished file is never written again, so readers need not wait for each other.
            self._file = h5py.File(self.path, "r", locking=False)
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def read(self, row: int) -> Tensor:
        """The tokens of a row of the cache's index, `[A, N, D]` fp32.

        Raises:
            DataError: They are damaged.
        """
        with self._damage_named():
            file = self._open()
            found: np.ndarray = file["tokens"][row]
            if checksum(found.tobytes()) != int(file["crc32"][row]):
                raise ValueError(f"row {row} does not match its checksum")
            return torch.from_numpy(found)

    @contextmanager
    def _damage_named(self) -> Iterator[None]:
        """Whatever a damaged file makes h5py raise, as one line."""
        try:
            yield
        except MaspError:
            raise
        except BlockingIOError as error:
            raise FilesInUse(f"{self.path} is being written by another process: {first_line(error)}") from None
        except PermissionError as error:
            raise InputError(f"{self.path} cannot be read: {reason(error)}") from None
        except Exception as error:  # h5py raises nearly anything: it has no list
            raise DataError(
                f"{self.path} is damaged: {first_line(error)}; remove the file, and {REMEDY} anew"
            ) from None


def _column(file: h5py.File, name: str, kind: str) -> h5py.Dataset:
    """A dataset whose values are in this file itself.

    Raises:
        ValueError: It is not one, or its values are of another type.
    """
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"it holds no {name}")
    column = file[name]
    if not isinstance(column, h5py.Dataset) or column.is_virtual or column.external or column.dtype != np.dtype(kind):
        raise ValueError(f"its {name} are not a plain array of {np.dtype(kind)}")
    return column


def open_aspect_tokens(config: Config, cache: Cache, digest: str | None) -> AspectTokens | None:
    """What `cache.aspect_tokens` asks for; None if it is off or there are no aspect modules (digest None)."""
    if not config.cache.aspect_tokens or digest is None:
        return None
    return AspectTokens(cache, config.aspects, digest)
