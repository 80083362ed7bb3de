"""The mistakes of a run's own evaluation, to be looked at again."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from masp.artifacts.export_format import SCHEME, is_exported
from masp.data.image_files.stored import Location
from masp.errors import InputError
from masp.files.regular import is_file
from masp.files.typed import plain
from masp.report.images import Images
from masp.report.mistakes import WrongPredictions, read_wrong_predictions
from masp.report.run_config import find_config
from masp.results.metrics_file import METRICS, MetricsFile, read_metrics


class RunMistakes:
    """What a run got wrong in its evaluation; read when it is first asked for. For one thread.

    Args:
        source: Directory of the run; an exported model has no evaluation of its own.
    """

    def __init__(self, source: str):
        self.source, self.directory = source, Path(source)

    @cached_property
    def _evaluation(self) -> tuple[MetricsFile, WrongPredictions]:
        if self.source.startswith(SCHEME) or is_exported(self.directory):
            raise InputError(f"{self.source}: an export holds no mistakes of its evaluation; its run does")
        evaluate_dir = self.directory / "evaluate"
        if not is_file(evaluate_dir / METRICS):
            raise InputError(f"{self.directory} has not been evaluated: masp evaluate shows what it gets wrong")
        metrics = read_metrics(evaluate_dir / METRICS, [])
        images = Images(find_config(evaluate_dir, self.directory))
        return metrics, read_wrong_predictions(evaluate_dir, metrics, images)

    def place(self, number: int) -> tuple[str, str, Location | None]:
        """Name, label and image of a mistake.

        Raises:
            MaspError: The evaluation is missing or damaged, or has fewer mistakes.
        """
        _, wrong = self._evaluation
        if not 0 <= number < len(wrong):
            raise InputError(f"there is no mistake {number}; there are {len(wrong)}")
        return wrong.place(number)

    def listed(self, start: int, count: int) -> dict[str, Any]:
        """Some mistakes, from number `start` on, with thumbnails; errors as of `place`."""
        metrics, wrong = self._evaluation
        return {
            "split": metrics.split,
            "num_mistakes": len(wrong),
            "num_samples": metrics.num_samples,
            "by_confidence": wrong.by_confidence,
            "start": start,
            "mistakes": [plain(one) for one in wrong.shown(start, count)],
        }
