"""How far an extraction is, how fast, and which of its three stages the others wait for."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, get_args

from pydantic import Field
from tqdm import tqdm

from masp.cache.fingerprint import CacheDtype
from masp.files.fields import Count, Size, one_of
from masp.files.jsonl import append_line, read_lines
from masp.files.text import reason

LOG = logging.getLogger(__name__)

TIMINGS = "timings.jsonl"
"""One line per call that encoded something. For people and for `masp plan`; not a part of the cache."""

STAGES = ("reading", "encoding", "writing")


@dataclass(frozen=True)
class Timing:
    """A line of `timings.jsonl`."""

    device: str
    dtype: Annotated[str, one_of(get_args(CacheDtype))]
    num_images: Count
    num_bytes: Size
    seconds: Annotated[float, Field(ge=0, le=1e12)]
    share_reading: Annotated[float, Field(ge=0, le=1)]
    """Share of the time in this stage, as the next two."""
    share_encoding: Annotated[float, Field(ge=0, le=1)]
    share_writing: Annotated[float, Field(ge=0, le=1)]


class Progress:
    """Counts images and bytes, and how long the encoder's thread spent on each stage.

    `reading`: no image was ready. `encoding`: the encoder ran. `writing`: the queue to the writer was full. Their
    shares sum up to one and say where the time goes: the largest is the stage to make faster.
    """

    def __init__(self, total: int):
        """Start with nothing done, of `total` images."""
        self.num_images, self.num_bytes = 0, 0
        self.spent_s = dict.fromkeys(STAGES, 0.0)
        self.started = time.perf_counter()
        pause_s = 0.1 if sys.stderr.isatty() else 30.0  # a log file is not a screen
        self._bar = tqdm(total=total, unit="img", desc="extract", mininterval=pause_s)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside towards a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spent_s[name] += time.perf_counter() - start

    def wrote(self, num_images: int, num_bytes: int) -> None:
        """Count what is in a tar; images in quarantine count too. Called by the writer."""
        self.num_images += num_images
        self.num_bytes += num_bytes
        self._bar.set_postfix_str(self._postfix(), refresh=False)
        self._bar.update(num_images)

    def close(self) -> None:
        """End the progress bar."""
        self._bar.close()

    def shares(self) -> dict[str, float]:
        """Share of the time in each stage."""
        total = sum(self.spent_s.values())
        return {name: spent / total if total else 0.0 for name, spent in self.spent_s.items()}

    def _postfix(self) -> str:
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.shares().items())
        return f"{self.num_bytes / 1e6 / elapsed:.1f} MB/s, waiting for {shares}"

    def save(self, directory: Path, device: str, dtype: str) -> None:
        """Append a line about this call to the cache's `timings.jsonl`; where that fails, say so and go on.

        Args:
            directory: Directory of the cache.
            device: Device of the encoder, as the fingerprint names it.
            dtype: `cache.dtype`.
        """
        shares = {name: round(share, 4) for name, share in self.shares().items()}
        timing = Timing(
            device=device,
            dtype=dtype,
            num_images=self.num_images,
            num_bytes=self.num_bytes,
            seconds=round(time.perf_counter() - self.started, 3),
            share_reading=shares["reading"],
            share_encoding=shares["encoding"],
            share_writing=shares["writing"],
        )
        try:
            append_line(directory / TIMINGS, asdict(timing), sort_keys=True)
        except OSError as error:
            LOG.info("%s cannot be written: %s", directory / TIMINGS, reason(error))


def read_timings(directory: Path) -> list[Timing]:
    """What the calls that encoded something took, those without images left out; none without a log.

    Raises:
        InputError: The log may not be read.
    """
    found = read_lines(Timing, directory / TIMINGS, skip_damaged=True, key="cache.dir") or []
    return [timing for timing in found if timing.num_images and timing.seconds]
