"""Validation: the loss on held-out images every so many steps, the best step so far, and whether to end early."""

from __future__ import annotations

import sys
from pathlib import Path

from masp.config.schema import EngineConfig, StageConfig
from masp.distributed.collectives import sum_floats
from masp.files.jsonl import append_line, cut_lines
from masp.runtime.prefetch import ReadAhead
from masp.training.steps import HeldOutSteps

FILE = "validation.jsonl"


class Validation:
    """What was measured so far. A resumed run comes to the same decisions: all of it is in the checkpoint.

    Args:
        folder: of the stage; the lead rank writes `validation.jsonl` there.
        settings: of the stage.
        engine: for its workers.
        steps: the held-out images, this rank's part.
        state: as `state` gave it; empty at the start.
    """

    def __init__(self, folder: Path, settings: StageConfig, engine: EngineConfig, steps: HeldOutSteps, state: dict):
        self.path, self.settings, self.engine, self.steps = folder / FILE, settings, engine, steps
        self.best_loss: float | None = state.get("best_loss")
        self.best_step: int | None = state.get("best_step")
        self.num_worse: int = state.get("num_worse", 0)
        self.measured: int = state.get("measured", 0)
        if steps.rank == 0:
            cut_lines(self.path, self.measured)

    def state(self) -> dict:
        """For the checkpoint."""
        names = ("best_loss", "best_step", "num_worse", "measured", "ended")
        return {name: getattr(self, name) for name in names}

    @property
    def ended(self) -> bool:
        """Whether the loss has not fallen for so long that training ends."""
        return self.settings.patience is not None and self.num_worse >= self.settings.patience

    def due(self, step: int) -> bool:
        """Whether to measure after so many steps: every so often, and after the last."""
        if step == 0 or self.measured == step:
            return False
        every = self.settings.validate_every
        assert every is not None, "a stage without it has no validation"
        return step % every == 0 or step == self.steps.schedule.num_steps

    def measure(self, engine, step: int) -> bool:
        """Measure; all ranks call it and come to the same.

        Args:
            engine: a `masp.training.engine.Engine`.
            step: steps taken so far.

        Returns:
            Whether the loss is the lowest so far. One that is not finite never is.
        """
        total = 0.0
        order = range(len(self.steps))
        with ReadAhead(self.steps, order, self.engine.num_workers, "engine.num_workers") as parts:
            for part in parts:
                total += engine.measure(part.batches)
        (loss,) = sum_floats([total], engine.device)
        loss /= float(self.steps.held_out.weights.sum())
        better = loss < (float("inf") if self.best_loss is None else self.best_loss)
        self.measured = step
        if better:
            self.best_loss, self.best_step, self.num_worse = loss, step, 0
        else:
            self.num_worse += 1
        if self.steps.rank == 0:
            line = {"step": step, "loss": loss, "best_step": self.best_step, "num_worse": self.num_worse}
            append_line(self.path, line)
            note = "the lowest so far" if better else f"{self.best_loss} after step {self.best_step} was lower"
            print(f"\nvalidation after step {step}: loss {loss:.5f}, {note}", file=sys.stderr)
        return better
