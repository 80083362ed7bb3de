"""How far an extraction is, how fast, and which of its three stages the others wait for."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from masp.files.jsonl import append_line
from masp.files.text import reason

TIMINGS = "timings.jsonl"
"""One line per call that encoded something. A note for people and for `masp plan`: no part of the cache."""

STAGES = ("reading", "encoding", "writing")


class Progress:
    """Counts images and bytes, and how long the encoder's thread spent on each stage.

    `reading`: no picture was ready. `encoding`: the encoder ran. `writing`: the queue to the writer was full. Shares
    that sum up to one say where the time goes: the largest is the stage to make faster.
    """

    def __init__(self, total: int):
        """Nothing done yet, of `total` images."""
        self.num_images, self.num_bytes = 0, 0
        self.spent_s = dict.fromkeys(STAGES, 0.0)
        self.started = time.perf_counter()
        pause_s = 0.1 if sys.stderr.isatty() else 30.0  # a log file is no screen
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
        """End the bar."""
        self._bar.close()

    def shares(self) -> dict[str, float]:
        """Share of the time in each stage."""
        total = sum(self.spent_s.values())
        return {name: spent / total if total else 0.0 for name, spent in self.spent_s.items()}

    def _postfix(self) -> str:
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.shares().items())
        return f"{self.num_bytes / 1e6 / elapsed:.1f} MB/s, waiting for {shares}"

    def save(self, folder: Path, facts: dict) -> None:
        """Append a line about this call to the cache's `timings.jsonl`; where that fails, say so and go on.

        Args:
            folder: the cache.
            facts: what else to write down, such as the device.
        """
        line = {
            **facts,
            "num_images": self.num_images,
            "num_bytes": self.num_bytes,
            "seconds": round(time.perf_counter() - self.started, 3),
            **{f"share_{name}": round(share, 4) for name, share in self.shares().items()},
        }
        try:
            append_line(folder / TIMINGS, line, sort_keys=True)
        except OSError as error:
            print(f"note: {folder / TIMINGS} cannot be written: {reason(error)}", file=sys.stderr)
