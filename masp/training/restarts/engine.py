"""One optimizer step of all restarts of stage 1, behind one pass of what they share."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from masp.config.schema import EngineConfig, StageConfig
from masp.distributed.collectives import sum_tensor
from masp.distributed.ranks import Ranks
from masp.models.restarts import RestartModel
from masp.models.sequence import Batch
from masp.training.checkpoint import EngineCounters
from masp.training.engine import Accumulated, Engine
from masp.training.steps import Batches

LOG = logging.getLogger(__name__)


class RestartEngine(Engine):
    """The restarts under DeepSpeed.

    The gradient of each restart is computed by a backward pass of its own, so that the graph of one restart is in
    memory at a time, and clipped by its own norm. DeepSpeed gets all of them at the end of a step, from the gradient of
    `sum(tensor x gradient)`: the fp32 masters, their moments and the rounding of what is trained are those of a run of
    its own.

    Args:
        model: The restarts.
        engine: Settings of the engine.
        stage: Settings of stage 1.
        ranks: This process among the others.
        device: `cpu` or `cuda`.
    """

    def __init__(self, model: RestartModel, engine: EngineConfig, stage: StageConfig, ranks: Ranks, device: str):
        super().__init__(model, engine, replace(stage, max_grad_norm=None), ranks, device)
        self.max_grad_norm, self.num_restarts = stage.max_grad_norm, len(model.restarts)
        self.dropped: dict[int, int] = {}
        """Restart -> the step that it could not take, since its loss or gradient was not finite."""
        self.ended: frozenset[int] = frozenset()
        """Restarts that have taken their last step, because validation ended them."""
        self.losses: list[float | None] = [None] * self.num_restarts
        """Of each restart, the loss of the last step; None of one that stands still."""
        self._norms: list[float] = []
        self._gradients: dict[str, Tensor] = {}
        self._names = [
            [name for name in self.names if name.startswith(f"restarts.{number}.")]
            for number in range(self.num_restarts)
        ]

    @property
    def active(self) -> list[int]:
        """Numbers of the restarts that take steps."""
        return [n for n in range(self.num_restarts) if n not in self.dropped and n not in self.ended]

    def accumulate(self, batches: Batches, total_weight: float, sums: Sequence[float] = ()) -> Accumulated:
        """Losses and gradients of all restarts, without taking the step.

        A restart whose loss or gradient is not finite is dropped, unless it is the last one.

        Args:
            batches: This rank's micro-batches, as many as on every other rank.
            total_weight: Sum of the rows' weights over the whole global batch.
            sums: More numbers to be summed over the ranks.

        Returns:
            The mean loss of the restarts that take the step.
        """
        numbers = self.active
        flat = {number: self._zeros(number) for number in numbers}
        losses = torch.zeros(len(numbers), dtype=torch.float64, device=self.device)
        rows: dict[int, list[Tensor]] = {number: [] for number in numbers}
        for batch in batches:
            batch = batch.to(self.device, self.dtype)
            prefix = self._prefix(batch)
            for place, number in enumerate(numbers):
                of_rows = self.engine.module(batch, number, prefix)
                loss = (of_rows * batch.weights).sum() / total_weight
                self._add(flat[number], torch.autograd.grad(loss, [self.names[name] for name in self._names[number]]))
                losses[place] += loss.detach()
                rows[number].append(of_rows.detach())
        more = torch.tensor(sums, dtype=torch.float64, device=self.device)
        found = sum_tensor(torch.cat([losses, more])).tolist()
        self.losses = [None] * self.num_restarts
        self._norms, self._gradients, going = [], {}, []
        for place, number in enumerate(numbers):
            gradient = sum_tensor(flat.pop(number))
            norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
            if not (math.isfinite(found[place]) and math.isfinite(norm)):
                continue
            going.append(place)
            self.losses[number] = found[place]
            self._norms.append(norm)
            # as DeepSpeed clips: by the norm over all that is trained, with its small number against zero
            if self.max_grad_norm:
                gradient *= min(1.0, self.max_grad_norm / (norm + 1e-6))
            self._gradients |= self._by_name(number, gradient)
        if not going:  # then the run ends, and names the samples
            self.row_losses = rows[numbers[0]]
            return Accumulated(found[0], False, found[len(numbers) :])
        for place, number in enumerate(numbers):
            if place not in going:
                self._drop(number, found[place])
        return Accumulated(sum(found[place] for place in going) / len(going), True, found[len(numbers) :])

    def _drop(self, number: int, loss: float) -> None:
        self.dropped[number] = self.num_steps + 1
        if self.ranks.is_rank_0:
            what = f"its loss is {loss}" if not math.isfinite(loss) else "its gradient is not finite"
            LOG.warning(
                "stage1: restart %d is dropped: %s in step %d; the other %d go on",
                number, what, self.num_steps + 1, len(self.active),
            )  # fmt: skip

    def drop_measured(self, number: int, step: int, loss: float) -> None:
        """Drop a restart whose held-out loss is not finite."""
        self.dropped[number] = step
        if self.ranks.is_rank_0:
            LOG.warning("stage1: restart %d is dropped: its held-out loss after step %d is %s", number, step, loss)

    def update(self, learning_rate: float) -> float:
        """Take the step that was accumulated; a restart that was dropped, or has ended, stays as it is.

        Returns:
            The mean norm of the gradients before clipping.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        going = {number for number, loss in enumerate(self.losses) if loss is not None}
        absent = self._absent
        of_part = {part: part.partition(".") for part in self.taken}
        self.leave_out({part for part, (n, _, aspect) in of_part.items() if int(n) not in going or aspect in absent})
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.backward(self.engine(None, gradients=self._gradients), scale_wrt_gas=False)
        self.engine.step()
        self.num_steps += 1
        for part in self.taken.keys() - self._absent:
            self.taken[part] += 1
        self._absent, self._gradients = frozenset(), {}
        return sum(self._norms) / len(self._norms)

    @torch.no_grad()
    def measure_by_aspect(self, batches: Batches, numbers: Sequence[int], num_aspects: int) -> Tensor:
        """This rank's sums of weight x loss, without gradient, and of weights; under ZeRO 3 a collective.

        Args:
            batches: Micro-batches of held-out images.
            numbers: Restarts that are measured.
            num_aspects: A, the number of aspects.

        Returns:
            `[restarts + 1, A]`, fp64; the last row has the weights.
        """
        total = torch.zeros(len(numbers) + 1, num_aspects, dtype=torch.float64, device=self.device)
        for batch in batches:
            batch = batch.to(self.device, self.dtype)
            assert batch.row_aspect is not None
            prefix = self._prefix(batch)
            for place, number in enumerate(numbers):
                losses = self.engine.module(batch, number, prefix)
                # a padded row has weight 0, which a loss that is not finite would survive
                weighted = torch.where(batch.weights > 0, losses * batch.weights, 0.0)
                total[place].index_add_(0, batch.row_aspect, weighted.double())
            total[-1].index_add_(0, batch.row_aspect, batch.weights.double())
        return total

    def _prefix(self, batch: Batch) -> object:
        with torch.no_grad():
            return self.engine.module(batch)

    def _shape(self, name: str) -> torch.Size:
        parameter = self.names[name]
        return getattr(parameter, "ds_shape", parameter.shape)

    def _zeros(self, number: int) -> Tensor:
        """Room for the gradient of a restart, all its tensors in one."""
        return torch.zeros(sum(self._shape(name).numel() for name in self._names[number]), device=self.device)

    @staticmethod
    def _add(flat: Tensor, gradients: Sequence[Tensor]) -> None:
        at = 0
        for gradient in gradients:
            flat[at : at + gradient.numel()] += gradient.flatten().float()
            at += gradient.numel()

    def _by_name(self, number: int, flat: Tensor) -> dict[str, Tensor]:
        names = self._names[number]
        parts = flat.split([self._shape(name).numel() for name in names])
        return {name: part.view(self._shape(name)) for name, part in zip(names, parts, strict=True)}

    def counters(self) -> EngineCounters:
        return replace(super().counters(), dropped={str(n): step for n, step in self.dropped.items()} or None)

    def load_state(self, state: dict[str, Tensor], num_steps: int, counters: EngineCounters) -> None:
        super().load_state(state, num_steps, counters)
        self.dropped = {int(number): step for number, step in (counters.dropped or {}).items()}
