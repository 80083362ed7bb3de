"""Validation: the loss on held-out images every so many steps, the best step so far, and whether to end early."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from masp.config.schema import EngineConfig, StageConfig
from masp.distributed.collectives import gather, sum_floats
from masp.errors import TrainingFailed
from masp.extraction.encoder import Encoder
from masp.files.jsonl import append_line, cut_lines, read_lines
from masp.files.text import shown
from masp.runtime.prefetch import ReadAhead
from masp.tracking.trackers import Trackers
from masp.training.checkpoint import ValidationState
from masp.training.engine import Engine
from masp.training.live_features import batches_of
from masp.training.steps import HeldOutSteps

FILE = "validation.jsonl"
PAUSES = "pauses.jsonl"
"""Losses with which a run paused to be compared with others; validation itself never sees them."""
SERIES = "validation_loss"
"""Name of its series in trackers."""
NAMED = 3
"""How many samples an error names."""
LOG = logging.getLogger(__name__)


def next_state(before: ValidationState, loss: float, step: int, patience: int | None) -> tuple[ValidationState, bool]:
    """The state after a measurement, and whether its loss is the lowest so far.

    Args:
        before: State before it.
        loss: What was measured, a finite number.
        step: Number of steps taken so far.
        patience: Measurements without a new lowest loss that end training; None for any number.
    """
    is_best = loss < (float("inf") if before.best_loss is None else before.best_loss)
    best_loss, best_step = (loss, step) if is_best else (before.best_loss, before.best_step)
    num_worse = 0 if is_best else before.num_worse + 1
    ended = patience is not None and num_worse >= patience
    return ValidationState(best_loss, best_step, num_worse, step, ended), is_best


@dataclass(frozen=True)
class PausedAt:
    """A line of `pauses.jsonl`."""

    step: Annotated[int, Field(ge=1)]
    loss: float | None
    """On the images that `Stage.compared_rows` names; None where it is not finite."""

    @property
    def rank_loss(self) -> float:
        """The loss, infinite where it is not finite."""
        return math.inf if self.loss is None else self.loss


def paused_loss(directory: Path, step: int) -> float | None:
    """Loss with which a run paused after a step, infinite where it is not finite; None where it has not paused there.

    Args:
        directory: Directory of the stage.
        step: Number of steps taken.

    Raises:
        DataError: A line is damaged. InputError: The file cannot be read.
    """
    lines = read_lines(PausedAt, directory / PAUSES) or []
    return next((line.rank_loss for line in lines if line.step == step), None)


def note_paused(directory: Path, step: int, loss: float) -> None:
    """Note the loss with which a run pauses; rank 0 does, once per step."""
    if paused_loss(directory, step) is None:
        append_line(directory / PAUSES, {"step": step, "loss": loss if math.isfinite(loss) else None})


def held_out_loss(engine: Engine, steps: HeldOutSteps, settings: EngineConfig, encoder: Encoder | None) -> float:
    """Mean loss on held-out images, without a note of it anywhere; all ranks call it and come to the same."""
    with ReadAhead(steps, range(len(steps)), settings.num_workers, "engine.num_workers") as parts:
        total = sum(engine.measure(batches_of(part, encoder)) for part in parts)
    return sum_floats([total], engine.device)[0] / float(steps.held_out.weights.sum())


class Validation:
    """What was measured so far. A resumed run comes to the same decisions: all of it is in the checkpoint.

    Args:
        directory: Directory of the stage; rank 0 writes `validation.jsonl` there.
        settings: Settings of the stage.
        engine: Settings of the engine.
        steps: The held-out images, this rank's part.
        state: State of an earlier call; None at the start.
        encoder: The encoder, where features are computed live.
        trackers: What else rank 0 tells the loss.
    """

    def __init__(
        self,
        directory: Path,
        settings: StageConfig,
        engine: EngineConfig,
        steps: HeldOutSteps,
        state: ValidationState | None,
        encoder: Encoder | None = None,
        trackers: Trackers | None = None,
    ):
        self.path, self.settings, self.engine_settings, self.steps = directory / FILE, settings, engine, steps
        self.state, self.encoder = state or ValidationState(), encoder
        self.trackers = trackers or Trackers()
        if steps.rank == 0:
            cut_lines(self.path, self.state.measured)

    @property
    def ended(self) -> bool:
        """Whether the loss has not fallen for so long that training ends."""
        return self.state.ended

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
            InputError: The loss is not finite; names the samples, and no line of it is written.
        """
        total = 0.0
        suspects: list[str] = []
        with ReadAhead(
            self.steps, range(len(self.steps)), self.engine_settings.num_workers, "engine.num_workers"
        ) as parts:
            for part in parts:
                of_part = engine.measure(batches_of(part, self.encoder))
                if not math.isfinite(of_part):
                    suspects += [key for key, is_finite in part.finite_keys(engine.row_losses) if not is_finite]
                total += of_part
        (loss,) = sum_floats([total], engine.device)
        loss /= float(self.steps.held_out.weights.sum())
        if not math.isfinite(loss):
            raise self._not_finite(step, loss, sorted({key for keys in gather(suspects) for key in keys}))
        return self.note(loss, step)

    def note(self, loss: float, step: int) -> bool:
        """Take up what was measured, the same on all ranks.

        Args:
            loss: Loss on the held-out images, a finite number.
            step: Number of steps taken so far.

        Returns:
            Whether the loss is the lowest so far.
        """
        self.state, is_best = next_state(self.state, loss, step, self.settings.patience)
        if self.steps.rank == 0:
            state = self.state
            line = {"step": step, "loss": loss, "best_step": state.best_step, "num_worse": state.num_worse}
            append_line(self.path, line)
            self.trackers.log({SERIES: loss}, step)
            note = "the lowest so far" if is_best else f"{state.best_loss} after step {state.best_step} was lower"
            LOG.info("validation after step %d: loss %.5f, %s", step, loss, note)
        return is_best

    def _not_finite(self, step: int, loss: float, suspects: list[str]) -> TrainingFailed:
        """The error of a loss that is not finite, the same on all ranks."""
        names = ", ".join(shown(key) for key in suspects[:NAMED])
        more = f" and {len(suspects) - NAMED} more" if len(suspects) > NAMED else ""
        precision = self.engine_settings.precision
        remedy = "" if precision == "fp32" else "another engine.precision, or "
        return TrainingFailed(
            f"validation after step {step}: the loss is {loss} in {precision}, from {names}{more}; use "
            f"{remedy}a lower {self.steps.stage.name}.learning_rate, which is "
            f"{self.settings.learning_rate}"
        )
