"""Whether a cache fits where it is to lie."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from masp.cache.layout import SHARDS
from masp.errors import InputError
from masp.files.text import reason


@dataclass(frozen=True)
class Space:
    """Room at the target."""

    folder: str
    """The nearest folder that exists."""
    free_bytes: int
    needed_bytes: int
    """That are still to be written."""
    present_bytes: int
    """Of tars that are there already."""

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return self.free_bytes >= self.needed_bytes

    def verdict(self) -> str:
        """One line for the user."""
        free, needed = self.free_bytes / 1e9, self.needed_bytes / 1e9
        there = f" beside {self.present_bytes / 1e9:.2f} GB that are there already" if self.present_bytes else ""
        if self.fits:
            return f"fits: needs {needed:.2f} GB{there}, {free:.2f} GB are free at {self.folder}"
        return (
            f"DOES NOT FIT: needs {needed:.2f} GB{there}, {free:.2f} GB are free at {self.folder}: "
            f"{needed - free:.2f} GB too few"
        )


def check_space(folder: str | Path, num_bytes: int) -> Space:
    """Compare what a cache will take with what is free; tars that are there already count as written.

    Args:
        folder: `cache.dir`; need not exist yet.
        num_bytes: of the whole cache.

    Raises:
        InputError: the file system gives no answer.
    """
    folder = Path(folder).expanduser().absolute()
    try:
        existing = next(p for p in (folder, *folder.parents) if p.is_dir())
        free = shutil.disk_usage(existing).free
        present = 0
        if (folder / SHARDS).is_dir():
            with os.scandir(folder / SHARDS) as entries:
                present = sum(entry.stat().st_size for entry in entries if entry.name.endswith(".tar"))
    except OSError as error:
        raise InputError(f"cache.dir: {folder} cannot be looked at: {reason(error)}") from None
    return Space(str(existing), free, max(0, num_bytes - present), present)
