"""A loss or gradient that is no number: the run ends before the step is taken, and leaves what to look at."""

from __future__ import annotations

import json
import math
from pathlib import Path

from masp.errors import InputError
from masp.files.atomic import write_bytes


def report_not_finite(
    folder: Path, name: str, step: int, loss: float, keys: list[list[str]], suspects: list[list[str]], settings
) -> InputError:
    """Write the samples of the step into the stage's folder, and say what happened.

    Args:
        folder: of the stage.
        name: `stage1` or `stage2`.
        step: from 1; it was not taken.
        loss: of the global batch; finite if only a gradient is not.
        keys: sample keys of the step, per rank.
        suspects: those of them whose own loss is not finite.
        settings: of the stage.

    Returns:
        The error to raise.
    """
    path = folder / f"not-finite-step-{step:08d}.json"
    found = sorted({key for part in suspects for key in part})
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the loss is {loss:.4g}, but a gradient is not finite"
    record = {"step": step, "loss": str(loss), "suspects": found, "keys_per_rank": keys}
    write_bytes(path, json.dumps(record, indent=1).encode() + b"\n")
    num_samples = len({key for part in keys for key in part})
    return InputError(
        f"{name}: step {step} is not taken: {what}; {path} names its {num_samples} samples"
        + (f", {len(found)} of them with such a loss" if found else "")
        + f"; the last checkpoint is kept: lower {name}.learning_rate, which is {settings.learning_rate}, or give "
        "another engine.precision"
    )
