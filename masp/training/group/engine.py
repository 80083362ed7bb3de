"""One optimizer step of all members of a group, behind one pass of what they share."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from masp.config.schema import EngineConfig, Stage2Config
from masp.distributed.collectives import sum_tensor
from masp.distributed.ranks import Ranks
from masp.models.group import GroupModel
from masp.models.sequence import Batch
from masp.training.checkpoint import EngineCounters
from masp.training.engine import Engine
from masp.training.group.steps import GroupBatch, GroupStep

PREFIX = "members."
NAME = "soft_prompt.weight"
"""Name of the trained tensor in a run of its own."""


@dataclass(frozen=True)
class MemberStep:
    """What a global batch amounts to for a member before its optimizer step, the same on all ranks."""

    loss: float
    grad_norm: float
    """Norm of its gradient before clipping."""

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class GroupEngine(Engine):
    """The members under DeepSpeed.

    Members take turns, so that the graph of one is in memory at a time; where a micro-batch has few rows, the graphs of
    several (`GroupBatch.at_once`). DeepSpeed gets all gradients at the end of a step, from the gradient of `sum(soft
    prompt x gradient)`: the fp32 masters, their moments and the rounding of what is trained are those of a run of its
    own.

    Args:
        model: The members.
        engine: Settings of the engine.
        stages: Settings of stage 2 of each member.
        ranks: This process among the others.
        device: `cpu` or `cuda`.
    """

    def __init__(
        self, model: GroupModel, engine: EngineConfig, stages: Sequence[Stage2Config], ranks: Ranks, device: str
    ):
        # each member is clipped by its own norm, here
        super().__init__(model, engine, replace(stages[0], max_grad_norm=None), ranks, device)
        self.stages = list(stages)
        for group in self.inner.param_groups:
            group["weight_decay"] = self.stages[int(group["part"])].weight_decay

    def accumulate_members(
        self, step: GroupStep, members: Collection[int], sums: Sequence[float] = ()
    ) -> tuple[dict[int, MemberStep], list[float]]:
        """Losses and gradients of some members, without taking the step.

        Args:
            step: This rank's part of the global batch.
            members: Numbers of the members, the same on all ranks.
            sums: More numbers to be summed over the ranks.
        """
        numbers = sorted(members)
        shapes = {n: self._parameter(n) for n in numbers}
        gradients = {n: self._zeros(n) for n in numbers}
        losses = torch.zeros(len(numbers), dtype=torch.float64, device=self.device)
        for batch in step.batches:
            variants = self._moved(batch)
            prefix = self.engine.module([variants[0]])
            for start in range(0, len(numbers), batch.at_once):
                some = numbers[start : start + batch.at_once]
                own = [variants[batch.variant_of[number]] for number in some]
                rows = self.engine.module(own, some, prefix)
                each = torch.stack([(loss * part.weights).sum() for loss, part in zip(rows, own, strict=True)])
                each = each / step.total_weight
                found_gradients = torch.autograd.grad(each.sum(), [shapes[number] for number in some])
                for number, gradient in zip(some, found_gradients, strict=True):
                    gradients[number] += gradient.float()
                losses[start : start + len(some)] += each.detach()
            del prefix  # or it would be held while the next one runs
        flat = torch.cat([gradients[n].flatten() for n in numbers]).double()
        more = torch.tensor(sums, dtype=torch.float64, device=self.device)
        total = sum_tensor(torch.cat([losses, more, flat]))
        found, summed = {}, total[len(numbers) : len(numbers) + len(sums)].tolist()
        at = len(numbers) + len(sums)
        self._gradients = {}
        for place, number in enumerate(numbers):
            count = gradients[number].numel()
            gradient = total[at : at + count].reshape(gradients[number].shape)
            at += count
            norm = float(gradient.square().sum().sqrt())
            found[number] = MemberStep(float(total[place]), norm)
            self._gradients[number] = self._clipped(gradient, norm, self.stages[number].max_grad_norm)
        return found, summed

    @staticmethod
    def _clipped(gradient: Tensor, norm: float, largest: float | None) -> Tensor:
        """As DeepSpeed clips: by the norm over all that is trained, with its small number against zero."""
        if not largest:
            return gradient.float()
        return (gradient * min(1.0, largest / (norm + 1e-6))).float()

    def update_members(self, rates: dict[int, float]) -> None:
        """Take the step that was accumulated, with the learning rate of each member; others stay as they are."""
        for group in self.optimizer.param_groups:
            group["lr"] = rates.get(int(group["part"]), 0.0)
        self.leave_out({part for part in self.taken if int(part) not in rates})
        self.engine.set_gradient_accumulation_boundary(True)
        gradients = [self._gradients[number] if number in rates else None for number in range(len(self.stages))]
        self.engine.backward(self.engine([], gradients=gradients), scale_wrt_gas=False)
        self.engine.step()
        self.num_steps += 1
        for part in self.taken.keys() - self._absent:
            self.taken[part] += 1
        self._absent = frozenset()

    @torch.no_grad()
    def measure_members(self, step: GroupStep, members: Collection[int]) -> dict[int, float]:
        """This rank's sum of weight x loss of each member, without gradient."""
        found = dict.fromkeys(sorted(members), 0.0)
        for batch in step.batches:
            variants = self._moved(batch)
            prefix = self.engine.module([variants[0]])
            for number in found:
                own = variants[batch.variant_of[number]]
                (losses,) = self.engine.module([own], [number], prefix)
                found[number] += float((losses * own.weights).sum())
        return found

    def _moved(self, batch: GroupBatch) -> list[Batch]:
        return [variant.to(self.device, self.dtype) for variant in batch.variants]

    def _parameter(self, number: int) -> Tensor:
        return self.names[f"{PREFIX}{number}.weight"]

    def _zeros(self, number: int) -> Tensor:
        parameter = self._parameter(number)
        return torch.zeros(getattr(parameter, "ds_shape", parameter.shape), device=self.device)

    def states(self) -> list[dict[str, Tensor]]:
        """What `Engine.state` of each member's own run would give; a collective under ZeRO."""
        whole = self.state()
        found: list[dict[str, Tensor]] = [{} for _ in self.stages]
        for name, value in whole.items():
            number, _, suffix = name.removeprefix(PREFIX).partition(".weight")
            found[int(number)][NAME + suffix] = value
        return found

    def load_states(self, states: Sequence[dict[str, Tensor]], taken: Sequence[int]) -> None:
        """Take over what `states` gave; each member may have taken another number of steps."""
        joined = {
            f"{PREFIX}{number}.weight{name.removeprefix(NAME)}": value
            for number, state in enumerate(states)
            for name, value in state.items()
        }
        counters = EngineCounters(taken={str(number): count for number, count in enumerate(taken)})
        self.load_state(joined, max(taken), counters)
