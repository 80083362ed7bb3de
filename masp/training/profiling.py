"""Where the time of a few training steps goes, operation by operation: `masp train --profile`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from masp.training.logs import StepResult

FIRST_STEPS, NUM_STEPS = 3, 5
"""Steps left to warm up, and steps traced."""


class Profile:
    """Traces a few steps of this process with torch's profiler. Use as a context manager, and call `step` after each.

    Leaves `profile/trace.json` (for https://ui.perfetto.dev or chrome://tracing) and `profile/table.txt`, the
    operations by their time.

    Args:
        directory: Directory of the stage.
    """

    def __init__(self, directory: Path):
        self.directory = directory / "profile"
        self.directory.mkdir(exist_ok=True)
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        plan = schedule(wait=FIRST_STEPS - 1, warmup=1, active=NUM_STEPS, repeat=1)
        self._by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        self._profile = profile(activities=activities, schedule=plan, on_trace_ready=self._write)

    def _write(self, profile) -> None:
        profile.export_chrome_trace(str(self.directory / "trace.json"))
        (self.directory / "table.txt").write_text(profile.key_averages().table(sort_by=self._by, row_limit=40))

    def step(self, result: StepResult) -> None:
        """Note that another step was taken."""
        self._profile.step()

    def __enter__(self) -> Profile:
        self._profile.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._profile.__exit__(*error)
