"""Event files, read back with TensorBoard's own reader."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from masp.tracking.tensorboard_files import DIRECTORY, TensorBoardFiles
from masp.tracking.trackers import Trackers


def series(directory) -> dict[str, list[tuple[int, float]]]:
    """The series of event files: step and value."""
    found = EventAccumulator(str(directory / DIRECTORY))
    found.Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_series_are_written_and_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path):
    for first, last in ((0, 7), (5, 10)):
        with Trackers([TensorBoardFiles(tmp_path, first)]) as tracked:
            if first:
                tracked.log({"validation_loss": 2.0}, first)  # an earlier call left it to this one
            for step in range(first + 1, last + 1):
                tracked.log({"loss": step / 2}, step)
            tracked.summarize({"accuracy": 1.0})
    assert series(tmp_path) == {"loss": [(s, s / 2) for s in range(1, 11)], "validation_loss": [(5, 2.0)]}
