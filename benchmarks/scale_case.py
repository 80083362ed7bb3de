"""Where the dataset and the caches of `benchmarks/scale.py` are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from masp.config import Config


@dataclass(frozen=True)
class Case:
    """What was made, and where."""

    directory: Path
    num_images: int
    num_shards: int

    def config(self, cache: str = "cache", *overrides: str) -> Config:
        """The configuration of a cache in this directory."""
        from masp.config import load_config

        return load_config(
            None,
            [
                f"vlm.path={self.directory / 'vlm'}",
                f"dataset.root={self.directory / 'data'}",
                "dataset.name=emoset",
                f"cache.dir={self.directory / cache}",
                f"cache.num_shards={self.num_shards}",
                f"output_dir={self.directory / 'run'}",
                "extract.device=cpu",
                "extract.num_threads=1",
                "extract.num_workers=0",
                *overrides,
            ],
        )
