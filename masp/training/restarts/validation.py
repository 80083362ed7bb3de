"""The loss of every restart on held-out images, aspect by aspect, and which restart each aspect is taken from."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from masp.config.schema import EngineConfig, StageConfig
from masp.distributed.collectives import sum_tensor
from masp.errors import InputError
from masp.extraction.encoder import Encoder
from masp.files.jsonl import append_line, cut_lines
from masp.runtime.prefetch import ReadAhead
from masp.tracking.trackers import Trackers
from masp.training.checkpoint import RestartState
from masp.training.live_features import batches_of
from masp.training.restarts.engine import RestartEngine
from masp.training.steps import HeldOutSteps
from masp.training.validation import FILE, SERIES, next_state

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """Which restart an aspect is taken from."""

    chosen: int
    """Number of the restart."""
    seed: int
    """Seed of its initial values."""
    step: int
    """Steps after which it is taken."""
    held_out_losses: tuple[float | None, ...]
    """Of each restart, after its own best step; None of one that was dropped, or without a held-out answer."""


class RestartValidation:
    """What was measured so far of each restart. A resumed run comes to the same decisions: it is in the checkpoint.

    Args:
        directory: Directory of the stage; rank 0 writes `validation.jsonl` there.
        settings: Settings of stage 1.
        engine: Settings of the engine.
        steps: The held-out images, this rank's part.
        states: States of an earlier call; empty at the start.
        num_restarts: Number of restarts.
        encoder: The encoder, where features are computed live.
        trackers: What else rank 0 tells the loss.
    """

    def __init__(
        self,
        directory: Path,
        settings: StageConfig,
        engine: EngineConfig,
        steps: HeldOutSteps,
        states: Sequence[RestartState],
        num_restarts: int,
        encoder: Encoder | None = None,
        trackers: Trackers | None = None,
    ):
        self.path, self.settings, self.engine_settings, self.steps = directory / FILE, settings, engine, steps
        self.restarts = tuple(states) or (RestartState(),) * num_restarts
        self.encoder, self.trackers = encoder, trackers or Trackers()
        self.aspects = steps.stage.aspects
        if steps.rank == 0:
            cut_lines(self.path, self.measured)

    @property
    def measured(self) -> int:
        """Step of the last measurement; 0 before the first."""
        return max(state.total.measured for state in self.restarts)

    @property
    def ended(self) -> frozenset[int]:
        """Restarts whose loss has not fallen for so long that their training ends."""
        return frozenset(number for number, state in enumerate(self.restarts) if state.total.ended)

    def is_due(self, step: int) -> bool:
        """Whether to measure after so many steps: every so often, and after the last."""
        if step in (0, self.measured):
            return False
        every = self.settings.validate_every
        return step == self.steps.schedule.num_steps or (every is not None and step % every == 0)

    def measure(self, engine: RestartEngine, step: int) -> bool:
        """Measure the restarts that still take steps; all ranks call it and come to the same.

        Returns:
            Whether the loss of one of them is the lowest so far.

        Raises:
            InputError: No restart is left with a finite loss.
        """
        numbers = engine.active
        workers = self.engine_settings.num_workers
        total: Tensor | None = None
        with ReadAhead(self.steps, range(len(self.steps)), workers, "engine.num_workers") as parts:
            for part in parts:
                found = engine.measure_by_aspect(batches_of(part, self.encoder), numbers, len(self.aspects))
                total = found if total is None else total + found
        assert total is not None, "a schedule with held-out images has a step of them"
        *sums, weights = sum_tensor(total).tolist()
        best = False
        for number, of_aspects in zip(numbers, sums, strict=True):
            loss = sum(of_aspects) / sum(weights)
            if not math.isfinite(loss):
                engine.drop_measured(number, step, loss)
                continue
            before = self.restarts[number]
            state, is_best = next_state(before.total, loss, step, self.settings.patience)
            by_aspect = before.by_aspect
            if is_best:
                each = zip(self.aspects, of_aspects, weights, strict=True)
                by_aspect = {aspect: own / weight for aspect, own, weight in each if weight}
            self._set(number, RestartState(state, by_aspect))
            best = best or is_best
        if len(engine.dropped) == len(self.restarts):
            raise InputError(
                f"stage1: the held-out loss of every restart is not finite after step {step}; lower "
                f"stage1.learning_rate, which is {self.settings.learning_rate}, or give another engine.precision"
            )
        engine.ended = self.ended
        self._note(step, engine.dropped, dict(zip(self.aspects, weights, strict=True)))
        return best

    def _set(self, number: int, state: RestartState) -> None:
        self.restarts = (*self.restarts[:number], state, *self.restarts[number + 1 :])

    def _note(self, step: int, dropped: Mapping[int, int], weights: Mapping[str, float]) -> None:
        """Write a line: the loss of what would be kept now, and the lowest of each restart."""
        if self.steps.rank:
            return
        kept = [
            (weight, min(losses))
            for aspect, weight in weights.items()
            if (losses := [s.by_aspect[aspect] for n, s in self._usable(dropped) if aspect in s.by_aspect])
        ]
        loss = sum(weight * own for weight, own in kept) / sum(weight for weight, _ in kept)
        restarts = [state.by_aspect if number not in dropped else None for number, state in enumerate(self.restarts)]
        append_line(self.path, {"step": step, "loss": loss, "restarts": restarts})
        self.trackers.log({SERIES: loss}, step)
        LOG.info("validation after step %d: loss %.5f with the best restart of each aspect", step, loss)

    def _usable(self, dropped: Mapping[int, int]) -> list[tuple[int, RestartState]]:
        return [(n, state) for n, state in enumerate(self.restarts) if n not in dropped and state.total.best_step]

    def choose(self, dropped: Mapping[int, int], seeds: Sequence[int]) -> dict[str, Choice]:
        """Choose for each aspect the restart with the lowest held-out loss; the first of equal ones.

        An aspect without a held-out answer goes by the loss over all aspects.

        Args:
            dropped: Restarts that were dropped.
            seeds: Seed of each restart.
        """
        usable = dict(self._usable(dropped))
        choices = {}
        for aspect in self.aspects:
            losses = {n: state.by_aspect[aspect] for n, state in usable.items() if aspect in state.by_aspect}
            ranked = losses or {n: float(state.total.best_loss or 0.0) for n, state in usable.items()}
            chosen = min(ranked, key=lambda number: (ranked[number], number))
            step = usable[chosen].total.best_step
            assert step is not None
            found = tuple(losses.get(number) for number in range(len(self.restarts)))
            choices[aspect] = Choice(chosen, seeds[chosen], step, found)
        return choices


def chosen_state(choices: Mapping[str, Choice], states: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of the chosen aspect modules, and their moments, by the names of a run with one restart.

    Args:
        choices: Aspect -> choice.
        states: Step -> tensors of all restarts after it.
    """
    found = {}
    for aspect, choice in choices.items():
        prefix = f"restarts.{choice.chosen}.by_aspect.{aspect}."
        for name, tensor in states[choice.step].items():
            if name.startswith(prefix):
                found[f"aspect_modules.by_aspect.{aspect}.{name.removeprefix(prefix)}"] = tensor
    return found


def to_json(choices: Mapping[str, Choice], seeds: Sequence[int], dropped: Mapping[int, int]) -> dict:
    """What `restarts.json` and the lineage say of the choice."""
    return {
        "seeds": list(seeds),
        "dropped": {str(number): step for number, step in dropped.items()},
        "aspects": {aspect: {**asdict(choice), "held_out_losses": list(choice.held_out_losses)}
                    for aspect, choice in choices.items()},
    }  # fmt: skip
