"""Validation: the loss on held-out images every so many steps, the best step so far, and whether to end early."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from masp.config.schema import EngineConfig, StageConfig
from masp.distributed.collectives import sum_floats
from masp.errors import InputError
from masp.files.jsonl import append_line, cut_lines
from masp.runtime.prefetch import ReadAhead
from masp.training.checkpoint import ValidationState
from masp.training.engine import Engine
from masp.training.steps import HeldOutSteps

FILE = "validation.jsonl"
LOG = logging.getLogger(__name__)


class Validation:
    """What was measured so far. A resumed run comes to the same decisions: all of it is in the checkpoint.

    Args:
        directory: Directory of the stage; rank 0 writes `validation.jsonl` there.
        settings: Settings of the stage.
        engine: Settings of the engine, for the number of workers.
        steps: The held-out images, this rank's part.
        state: State of an earlier call; None at the start.
    """

    def __init__(
        self,
        directory: Path,
        settings: StageConfig,
        engine: EngineConfig,
        steps: HeldOutSteps,
        state: ValidationState | None,
    ):
        self.path, self.settings, self.num_workers, self.steps = directory / FILE, settings, engine.num_workers, steps
        self.state = state or ValidationState()
        if steps.rank == 0:
            cut_lines(self.path, self.state.measured)

    def is_due(self, step: int) -> bool:
        """Whether to measure after so many steps: every so often, and after the last."""
        if step in (0, self.state.measured):
            return False
        every = self.settings.validate_every
        assert every is not None, "a stage without it has no validation"
        return step % every == 0 or step == self.steps.schedule.num_steps

    def measure(self, engine: Engine, step: int) -> bool:
        """Measure; all ranks call it and come to the same.

        Args:
            engine: Engine with the model.
            step: Number of steps taken so far.

        Returns:
            Whether the loss is the lowest so far.

        Raises:
            InputError: The loss is not finite; no line of it is written.
        """
        total = 0.0
        with ReadAhead(self.steps, range(len(self.steps)), self.num_workers, "engine.num_workers") as parts:
            for part in parts:
                total += engine.measure(part.batches)
        (loss,) = sum_floats([total], engine.device)
        loss /= float(self.steps.held_out.weights.sum())
        if not math.isfinite(loss):
            raise InputError(
                f"validation after step {step}: the loss is {loss} in {engine.dtype}; use engine.precision=bf16 or "
                "fp32, or a lower learning rate"
            )
        before = self.state
        is_best = loss < (float("inf") if before.best_loss is None else before.best_loss)
        best_loss, best_step = (loss, step) if is_best else (before.best_loss, before.best_step)
        num_worse = 0 if is_best else before.num_worse + 1
        patience = self.settings.patience
        ended = patience is not None and num_worse >= patience
        self.state = ValidationState(best_loss, best_step, num_worse, step, ended)
        if self.steps.rank == 0:
            line = {"step": step, "loss": loss, "best_step": best_step, "num_worse": num_worse}
            append_line(self.path, line)
            note = "the lowest so far" if is_best else f"{best_loss} after step {best_step} was lower"
            LOG.info("validation after step %d: loss %.5f, %s", step, loss, note)
        return is_best
