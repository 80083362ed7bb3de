"""What a tracker is told, and how it takes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar


class Ending(Enum):
    """How a part of a run ended."""

    FINISHED = "finished"
    STOPPED = "stopped"
    """It can be resumed."""
    FAILED = "failed"


@dataclass(frozen=True)
class TrackedRun:
    """A run, and which part of it is tracked now. All parts of a run, resumed or not, are one run of a tracker."""

    id: str
    """By which the tracker finds the run again."""
    name: str
    project: str
    part: str
    """`stage1`, `stage2`, or the directory of an evaluation: the beginning of the names of its series."""
    settings: Mapping[str, str | int | float | bool | None]
    """Resolved settings by dotted name."""
    digests: Mapping[str, str]
    """What the part is made from, by digest."""


class Tracker(ABC):
    """A place that series and results are sent to. Anything that it raises while it is told something is its own."""

    name: ClassVar[str]
    begins_at_once: ClassVar[bool] = False
    """Whether `begin` says what the user has to give, so that the run waits for it; it waits for nothing else."""

    @abstractmethod
    def connect(self) -> None:
        """Import the library and look at its configuration, without waiting for a network.

        Raises:
            InputError: It lacks something that the user has to give.
        """

    @abstractmethod
    def begin(self) -> None:
        """Find or make the run, and attach settings and digests that it does not have yet."""

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take the values of some series after a step."""

    @abstractmethod
    def summarize(self, values: Mapping[str, float]) -> None:
        """Take results that have no step."""

    @abstractmethod
    def end(self, ending: Ending) -> None:
        """Send what is left."""
