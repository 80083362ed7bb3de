"""The second-level cache: the aspect tokens of every image, for stage 2 and evaluation, bound to what made them.

<cache.dir>/aspect-tokens/<digest>.h5   tokens [num_samples, num_aspects, num_queries, hidden] fp32, crc32 [num_samples]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from masp.artifacts.trained import load_trained_aspects
from masp.cache.codec import checksum
from masp.cache.reader import Cache
from masp.config import Config
from masp.errors import DataError, InputError
from masp.extraction.provenance import open_matching_cache
from masp.files.atomic import replacing
from masp.files.sealed import digest_of
from masp.files.text import reason
from masp.models.sequence import pad_features
from masp.runtime.devices import pick_device

FOLDER, FORMAT = "aspect-tokens", 1
BATCH = 32
"""Images whose tokens are computed at once."""
REMEDY = "`masp cache aspects --config …` makes it"


def _made_of(cache: Cache, aspects: list[str], digest: str) -> dict[str, Any]:
    """All that the tokens depend on; its digest names the file, so that one of other modules is never found."""
    return {"format": FORMAT, "index": cache.manifest.index.sha256, "aspects": aspects, "aspect_digest": digest}


def _path(cache: Cache, made_of: dict[str, Any]) -> Path:
    return cache.directory / FOLDER / f"{digest_of(made_of)[:16]}.h5"


def build_aspect_tokens(config: Config) -> Path:
    """Compute the tokens of all images with the aspect modules that the configuration names (`masp cache aspects`).

    Returns:
        The file. One that is there already is left alone.

    Raises:
        InputError: the configuration does without aspect modules, or they are missing or do not fit.
    """
    cache, model = open_matching_cache(config)
    modules, lineage = load_trained_aspects(config, cache.hidden_size, model)
    if modules is None or lineage is None:
        raise InputError("cache aspects: the configuration does without aspect modules, so there are no tokens to keep")
    made_of = _made_of(cache, list(config.aspects), lineage.digest)
    path = _path(cache, made_of)
    if path.is_file():
        print(f"cache: {path} is there already")
        return path
    device = pick_device(config.engine.device, "engine.device")
    modules = modules.to(device).eval()
    shape = (len(cache), len(config.aspects), modules.num_queries, cache.hidden_size)
    try:
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary, h5py.File(temporary, "w") as file, torch.no_grad():
            file.attrs["made_of"] = json.dumps(made_of)
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
    print(f"cache: {path}: aspect tokens of {len(cache)} images, {path.stat().st_size / 1e9:.2f} GB")
    return path


class AspectTokens:
    """A finished file, read-only. Picklable; each process opens it on first use.

    Args:
        cache: the feature cache that it belongs to.
        aspects: in the order of the prompt.
        digest: of the aspect modules.

    Raises:
        InputError: there is no file of these modules and this cache.
    """

    def __init__(self, cache: Cache, aspects: list[str], digest: str):
        made_of = _made_of(cache, aspects, digest)
        self.path, self._file = _path(cache, made_of), None
        if not self.path.is_file():
            raise InputError(
                f"cache.aspect_tokens = true: {self.path.parent} holds no tokens of aspect modules {digest[:12]} for "
                f"this cache; {REMEDY}, or give cache.aspect_tokens=false"
            )
        if self._open().attrs["made_of"] != json.dumps(made_of):
            raise DataError(f"{self.path} is damaged: it is not what its name says; remove it, and {REMEDY} anew")
        self._open().close()
        self._file = None  # opened again after a fork

    def _open(self):
        if self._file is None:
            try:
                self._file = h5py.File(self.path, "r")
            except OSError as error:
                raise DataError(f"{self.path} cannot be read ({error}); remove it, and {REMEDY} anew") from None
        return self._file

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}

    def read(self, row: int) -> Tensor:
        """The tokens of a row of the cache's index, `[A, N, D]` fp32.

        Raises:
            DataError: they are damaged.
        """
        file = self._open()
        found: np.ndarray = file["tokens"][row]
        if checksum(found.tobytes()) != int(file["crc32"][row]):
            raise DataError(f"{self.path}: row {row} does not match its checksum; remove the file, and {REMEDY} anew")
        return torch.from_numpy(found)


def open_aspect_tokens(config: Config, cache: Cache, digest: str | None) -> AspectTokens | None:
    """What `cache.aspect_tokens` asks for; None if it is off or there are no aspect modules (digest None)."""
    if not config.cache.aspect_tokens or digest is None:
        return None
    return AspectTokens(cache, list(config.aspects), digest)
