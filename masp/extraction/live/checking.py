"""A pass over all images of a dataset before features are computed live: which can be read, and their vision tokens.

What cannot be read is left out exactly as a cache leaves it out, in quarantine. What can be read is remembered in the
user's cache directory until its file changes, and of the processes of a run that need it at the same time one makes the
pass, while the others wait for it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from masp.cache.fingerprint import Fields
from masp.config import Config
from masp.data.image_files.stored import Location
from masp.errors import DataError, MaspError, StoppedEarly
from masp.extraction.image_stream import ImageDataset
from masp.files.locks import locked
from masp.files.remembered import Remembered, memory_file
from masp.files.sealed import digest_of
from masp.files.typed import Json
from masp.runtime.prefetch import ReadAhead
from masp.runtime.stop import StopFlag

LOG = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Raised whenever MASP reads some image differently."""
COLUMNS = (("num_tokens", "<i4"), ("size", "<i4", (2,)), ("sha256", "u1", (32,)))
"""What is remembered of an image."""
SAVE_EVERY_S = 60.0
NAMED = 3
"""How many images a message names."""
_OF_FEATURES = ("weights", "dtype", "quantisation", "attention")
"""Fields of the fingerprint's model part that the encoder alone depends on."""


@dataclass(frozen=True)
class CheckedImages:
    """What the pass found, in the order of the images. `N` images."""

    num_tokens: np.ndarray
    """`[N]` int32: vision tokens; 0 where the image cannot be read."""
    sizes: np.ndarray
    """`[N, 2]` int32: width and height as the image processor gets them."""
    digests: np.ndarray
    """`[N, 32]` uint8: SHA-256 of each file; zeros where not a byte of it could be read."""
    reasons: dict[int, str]
    """Place of each image that cannot be read -> why."""

    @property
    def is_good(self) -> np.ndarray:
        """`[N]` bool: which images can be read."""
        return self.num_tokens > 0

    def digest(self, place: int) -> str | None:
        """SHA-256 of an image file in hexadecimal; None where not a byte of it could be read."""
        found = self.digests[place]
        return found.tobytes().hex() if found.any() else None


@dataclass(frozen=True)
class _Checked:
    num_tokens: int
    size: tuple[int, int]
    sha256: str | None
    reason: str | None


class _Checks(Dataset):
    """Images read, decoded and preprocessed, of which only what is to be known about them is kept."""

    def __init__(self, images: ImageDataset):
        self.images = images

    def __getitem__(self, place: int) -> _Checked:
        image = self.images[place]
        if image.failure:
            raise DataError(f"{image.failure}; run the same command again when it can be read")
        return _Checked(image.layout.num_tokens, image.image_size, image.source.sha256, image.reason)


def check_images(
    config: Config, images: ImageDataset, places: Sequence[Location], model: Fields, stop: StopFlag | None = None
) -> CheckedImages:
    """Find out which images can be read and how many vision tokens each has.

    Args:
        config: Run configuration; `extract.num_workers` processes read.
        images: The images.
        places: Where each is.
        model: Model part of the fingerprint.
        stop: Looked at after each image; None for no request to stop.

    Raises:
        DataError: Too many images cannot be read, or the file system does not answer.
        StoppedEarly: As `stop` asked; what was found out is remembered.
    """
    made_by: dict[str, Json] = {
        "format_version": FORMAT_VERSION,
        "pillow": version("pillow"),
        "transformers": version("transformers"),
        "settings": digest_of({name: value for name, value in model.items() if name not in _OF_FEATURES}),
    }
    path = memory_file("images", config.dataset.root, made_by["settings"])
    with _alone(path.with_suffix(".lock")):
        memory = Remembered(path, made_by, COLUMNS, places)
        reasons = _examine(config, images, memory, stop)
    rows = memory.rows
    found = CheckedImages(rows["num_tokens"].copy(), rows["size"].copy(), rows["sha256"].copy(), reasons)
    _refuse_too_many(config, found, places)
    return found


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process makes the pass; where there can be no lock, each makes its own."""
    with contextlib.ExitStack() as stack:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(lock, [(0, 1)], key="XDG_CACHE_HOME", wait=True))
        except (OSError, MaspError) as error:
            LOG.info("%s; each process examines the images by itself", error)
        yield


def _examine(config: Config, images: ImageDataset, memory: Remembered, stop: StopFlag | None) -> dict[int, str]:
    """Fill the rows of images that are not known; returns why some cannot be read."""
    unknown = np.flatnonzero(~memory.is_known).tolist()
    reasons: dict[int, str] = {}
    if not unknown:
        return reasons
    rows, saved_at = memory.rows, time.monotonic()
    bar = tqdm(total=len(unknown), desc="images", unit="image", delay=1.0, leave=False, disable=None)
    workers = min(config.extract.num_workers, len(unknown))
    try:
        with bar, ReadAhead(_Checks(images), unknown, workers, "extract.num_workers", prefetch=4) as stream:
            for place, found in zip(unknown, stream, strict=True):
                if found.sha256 is not None:
                    rows["sha256"][place] = np.frombuffer(bytes.fromhex(found.sha256), dtype=np.uint8)
                if found.reason is None:
                    rows["num_tokens"][place], rows["size"][place] = found.num_tokens, found.size
                else:
                    reasons[place] = found.reason
                if time.monotonic() - saved_at > SAVE_EVERY_S:
                    memory.save(rows["num_tokens"] > 0)
                    saved_at = time.monotonic()
                bar.update()
                if stop:
                    raise StoppedEarly(
                        "stopped on request while the images were examined; the same command goes on where it was"
                    )
    finally:
        memory.save(rows["num_tokens"] > 0)  # what cannot be read is tried again
    return reasons


def _refuse_too_many(config: Config, found: CheckedImages, images: Sequence[Location]) -> None:
    num_bad, limit = len(found.reasons), config.extract.max_bad_fraction
    if num_bad > limit * len(images) or num_bad == len(images):
        raise DataError(
            f"{num_bad} of {len(images)} images cannot be read, more than extract.max_bad_fraction = {limit} allows: "
            f"{named(found, images)}; repair the images, or allow more, and run the same command again"
        )


def named(found: CheckedImages, images: Sequence[Location]) -> str:
    """The first images that cannot be read, each with the reason."""
    places = sorted(found.reasons)
    more = ", …" if len(places) > NAMED else ""
    return ", ".join(f"{images[place]} ({found.reasons[place]})" for place in places[:NAMED]) + more
