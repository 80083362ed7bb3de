"""Image sizes that earlier calls read from headers, remembered for each dataset in the user's cache directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL

from masp.data.image_files.stored import Location
from masp.files.remembered import Examined, Remembered, memory_file
from masp.files.typed import Json

FORMAT_VERSION = 2
"""Raised whenever MASP determines the size of some image differently."""

COLUMNS = (("size", "<i4", (2,)),)


def made_by(max_side: int | None) -> dict[str, Json]:
    """What sizes depend on: software, and `vlm.max_side` that they were limited to."""
    return {"format_version": FORMAT_VERSION, "pillow": PIL.__version__, "max_side": max_side}


def memory_path(root: Path, max_side: int | None) -> Path:
    """File of the memory of a dataset."""
    return memory_file("headers", root.absolute(), max_side)


class HeaderMemory:
    """The sizes of some image files, as far as they are remembered. Look at them, fill in what was missing, save."""

    def __init__(self, path: Path, max_side: int | None, images: Sequence[Location] | Examined):
        """Look up images.

        Args:
            path: File of the memory, see `memory_path`.
            max_side: `vlm.max_side`, which sizes depend on.
            images: Where the images are; their files are examined but not opened. Or what
                `masp.files.remembered.examine` returned of them.
        """
        self._memory = Remembered(path, made_by(max_side), COLUMNS, images)
        self.is_known = self._memory.is_known
        """`[N]` bool: whose sizes are remembered."""

    @property
    def sizes(self) -> np.ndarray:
        """int32 `[N, 2]`: width and height, to be filled in; zeros where they are not known."""
        return self._memory.rows["size"]

    def save(self) -> None:
        """Replace the memory by the sizes of these files, if any is new; where that fails, say so and go on."""
        is_found = self.sizes[:, 0] > 0
        if (is_found & ~self.is_known).any():
            self._memory.save(is_found)
