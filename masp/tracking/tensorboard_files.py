"""TensorBoard: event files in the directory of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from masp.tracking.tracker import Ending, Tracker

DIRECTORY = "tensorboard"


class TensorBoardFiles(Tracker):
    """Writes event files; nothing leaves the machine.

    Args:
        directory: Directory of the stage.
        first_step: Steps already taken; what an earlier call wrote of later ones is not shown.
    """

    name = "tensorboard"

    def __init__(self, directory: Path, first_step: int):
        self._directory, self._first_step = directory / DIRECTORY, first_step

    def connect(self) -> None:
        """Nothing to look at."""

    def begin(self) -> None:
        self._writer = SummaryWriter(self._directory, purge_step=self._first_step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def summarize(self, values: Mapping[str, float]) -> None:
        """Event files are those of a stage, which has series alone."""

    def end(self, ending: Ending) -> None:
        self._writer.close()
