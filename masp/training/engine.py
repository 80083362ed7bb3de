"""DeepSpeed: one optimizer step over a global batch, and the trained tensors with their moments by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
    set_z3_leaf_module,
)
from torch import Tensor, nn

from masp.config.schema import EngineConfig, StageConfig
from masp.distributed.collectives import sum_tensor
from masp.distributed.ranks import Ranks
from masp.errors import InputError
from masp.models.forward import Stage1Model, Stage2Model
from masp.models.group import GroupModel
from masp.models.restarts import RestartModel
from masp.runtime.devices import torch_dtype
from masp.training.checkpoint import EngineCounters
from masp.training.steps import Batches

MOMENTS = ("exp_avg", "exp_avg_sq")
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""State of DeepSpeed's dynamic loss scaler."""
BY_DATA = "Indexer"
"""In the names of classes of transformers that run a part of theirs once per token or so. Under ZeRO 3 the parameters
of such a module are gathered together, when it begins: ranks have other tokens, and would each wait for a collective
that the others never enter."""


@dataclass(frozen=True)
class Accumulated:
    """What a global batch amounts to before the optimizer step, the same on all ranks."""

    loss: float
    """The sum of weight x loss over the sum of weights, over all ranks and micro-batches."""
    gradient_is_finite: bool
    """Always true in fp16, where DeepSpeed skips such steps and lowers the loss scale."""
    sums: list[float]
    """Sums over all ranks of the numbers that were given."""


def deepspeed_config(engine: EngineConfig, stage: StageConfig) -> dict:
    """DeepSpeed's configuration, made from ours.

    Stage 0 in half precision runs as stage 1, which computes the same: DeepSpeed's own stage 0 keeps the fp32 masters
    where they cannot be saved by name.

    Args:
        engine: Settings of the engine.
        stage: Settings of the stage.

    Raises:
        InputError: `engine.offload` without ZeRO.
    """
    zero_stage = max(engine.zero_stage, 1) if engine.precision != "fp32" else engine.zero_stage
    zero: dict = {"stage": zero_stage}
    if engine.offload:
        if not zero_stage:
            raise InputError("engine.offload = true: DeepSpeed offloads from engine.zero_stage 1 on, and it is 0")
        zero["offload_optimizer"] = {"device": "cpu"}
        if zero_stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,  # ours vary; DeepSpeed only counts with it
        "gradient_accumulation_steps": 1,  # boundaries are set by hand: micro-batches per step vary
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # its own Adam is compiled on first use, and rounds in its own way
        "bf16": {"enabled": engine.precision == "bf16"},
        "fp16": {"enabled": engine.precision == "fp16"},
        # micro-batches and ranks must not change the result: gradients are added in fp32, whatever the model is in
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "gradient_clipping": stage.max_grad_norm or 0.0,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


class Partition:
    """ZeRO 3 before there is an engine: parameters divided over the ranks one by one, while a model is loaded.

    `Engine` finds them divided and leaves them as they are. Every method is a collective.
    """

    def __init__(self, config: dict):
        self.config = config
        self._first: nn.Parameter | None = None

    def cut(self, parameter: nn.Parameter) -> None:
        """Keep only this rank's part of rank 0's values, where the configuration says that parameters are kept."""
        if torch.distributed.get_rank():
            # Rank 0's values come by broadcast. Received into the values of a mapped file, they would be
            # kept in memory until the file is closed.
            parameter.data = torch.empty_like(parameter)
        if self._first is None:
            deepspeed.zero.Init(module=nn.ParameterList([parameter]), config_dict_or_path=self.config)
            self._first = parameter
        else:  # as DeepSpeed does it for parameters that it finds whole among divided ones
            self._first.convert_to_zero_parameters([parameter])  # type: ignore[attr-defined]  # DeepSpeed adds it

    def whole(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager:
        """Parameters are whole on every rank while this is entered; they must not be changed then."""
        return deepspeed.zero.GatheredParameters(list(parameters))


def make_partition(engine: EngineConfig, stage: StageConfig) -> Partition | None:
    """The partition that divides the language model while it is loaded; None below ZeRO 3."""
    config = deepspeed_config(engine, stage)
    return Partition(config) if config["zero_optimization"]["stage"] == 3 else None


def optimizer_groups(parts: Mapping[str, nn.Module], weight_decay: float) -> list[dict]:
    """Parameters in two groups per part: matrices with weight decay, vectors (biases) without, as is usual.

    Groups of their own, because DeepSpeed flattens a group into one tensor, which moves as a whole or not at all.

    Args:
        parts: What is trained, by name.
        weight_decay: Weight decay of the matrices.
    """
    return [
        {"params": group, "weight_decay": decay, "lr": 0.0, "part": name}
        for name, module in parts.items()
        for group, decay in (
            ([p for p in module.parameters() if p.dim() > 1], weight_decay),
            ([p for p in module.parameters() if p.dim() == 1], 0.0),
        )
        if group
    ]


class Engine:
    """A model under DeepSpeed.

    Args:
        model: Model whose forward maps a `Batch` to the losses of the rows `[B]`; its `parts()` are trained.
        engine: Settings of the engine: precision and ZeRO stage.
        stage: Settings of the stage: weight decay and clipping.
        ranks: This process among the others; `masp.distributed.ranks.join` was called.
        device: `cpu` or `cuda`.
    """

    def __init__(
        self,
        model: Stage1Model | RestartModel | Stage2Model | GroupModel,
        engine: EngineConfig,
        stage: StageConfig,
        ranks: Ranks,
        device: str,
    ):
        self.ranks, self.device, self.dtype = ranks, device, torch_dtype(engine.precision)
        plain = [parameter for parameter in model.parameters() if not hasattr(parameter, "ds_id")]
        if len(plain) < len(list(model.parameters())):
            for parameter in plain:  # DeepSpeed casts a model only where nothing was divided before
                parameter.data = parameter.data.to(self.dtype)
        for module in model.modules():
            if BY_DATA in type(module).__name__:
                set_z3_leaf_module(module, True)
        parts = model.parts()
        part_of = {id(p): name for name, module in parts.items() for p in module.parameters()}
        self.inner = torch.optim.AdamW(optimizer_groups(parts, stage.weight_decay))
        self.inner.register_step_pre_hook(self._hide_gradients)
        self.inner.register_step_post_hook(self._put_back)
        self._absent: frozenset[str] = frozenset()
        self._left_out: list[tuple[Tensor, Tensor | None]] = []
        self.taken = dict.fromkeys(parts, 0)
        """Steps that each part has taken."""
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=self.inner, config=deepspeed_config(engine, stage)
        )
        self.names = {name: p for name, p in self.engine.module.named_parameters() if p.requires_grad}
        self.part_of = {name: part_of[id(p)] for name, p in self.names.items()}
        self.sharded = self.optimizer is not self.inner  # masters and moments live in DeepSpeed's partitions
        self.num_steps = self._skipped_before = 0
        self.row_losses: list[Tensor] = []
        """Of each micro-batch of the last `accumulate` or `measure`, the losses of its rows."""
        self._probe = torch.zeros((), dtype=torch.float32, device=device)
        self.fp16 = engine.precision == "fp16"
        if not self.fp16:
            for parameter in self.names.values():
                parameter.register_hook(self._look_at)

    def _hide_gradients(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Before the optimizer's step: without a gradient it passes over a tensor, moments and weight decay included.

        The gradient of a part that no sample asked for is there, and zero, since every part runs in every micro-batch.
        DeepSpeed hands over one group at a time.
        """
        for group in optimizer.param_groups:
            if group["part"] in self._absent:
                for tensor in group["params"]:
                    self._left_out.append((tensor, tensor.grad))
                    tensor.grad = None

    def _put_back(self, *_: object) -> None:
        """After the optimizer's step: with `offload`, DeepSpeed keeps its gradients in the same tensors for ever."""
        for tensor, gradient in self._left_out:
            tensor.grad = gradient
        self._left_out.clear()

    def _look_at(self, gradient: Tensor) -> None:
        """Add up each gradient before ranks are summed: one that is not finite shows here, and is not yet in Adam."""
        self._probe += gradient.detach().sum(dtype=torch.float32)

    def accumulate(self, batches: Batches, total_weight: float, sums: Sequence[float] = ()) -> Accumulated:
        """Losses and gradients of a step, without taking it. The only reduction of a step beside DeepSpeed's own.

        Args:
            batches: This rank's micro-batches, as many as on every other rank.
            total_weight: Sum of the rows' weights over the whole global batch.
            sums: More numbers to be summed over the ranks in the same reduction.
        """
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)  # read once a step: each read waits
        self._probe.zero_()
        self.row_losses = []
        for number, batch in enumerate(batches, 1):
            # DeepSpeed reduces when the boundary is set, in the backward pass of the last micro-batch
            self.engine.set_gradient_accumulation_boundary(number == len(batches))
            batch = batch.to(self.device, self.dtype)
            losses = self.engine(batch)
            loss = (losses * batch.weights).sum() / total_weight
            self.engine.backward(loss * self.ranks.size, scale_wrt_gas=False)  # DeepSpeed averages over ranks
            loss_sum += loss.detach()
            self.row_losses.append(losses.detach())
        bad = (~self._probe.isfinite()).double()
        more = torch.tensor(sums, dtype=torch.float64, device=self.device)
        total, num_bad, *summed = sum_tensor(torch.cat([torch.stack([loss_sum, bad]), more])).tolist()
        return Accumulated(total, num_bad == 0, summed)

    def leave_out(self, parts: Collection[str]) -> None:
        """Leave parts as they are in the next `update`, as if that step had not been.

        Args:
            parts: Those that no sample of the global batch asks for, the same on all ranks.
        """
        self._absent = frozenset(parts)

    def update(self, learning_rate: float) -> float:
        """Take the step that was accumulated.

        Returns:
            The norm of the gradient before clipping.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = None if self.sharded else self._grad_norm()
        num_skipped = self.engine.skipped_steps
        self.engine.step()
        self.num_steps += 1
        if self.engine.skipped_steps == num_skipped:
            for part in self.taken.keys() - self._absent:
                self.taken[part] += 1
        self._absent = frozenset()
        return float(self.engine.get_global_grad_norm()) if norm is None else norm

    def measure(self, batches: Batches) -> float:
        """This rank's sum of weight x loss, without gradient; under ZeRO 3 a collective."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.row_losses = []
        with torch.no_grad():
            for batch in batches:
                batch = batch.to(self.device, self.dtype)
                losses = self.engine(batch)
                total += (losses * batch.weights).sum()
                self.row_losses.append(losses)
        return float(total)

    @property
    def skipped_steps(self) -> int:
        """Steps that fp16 has lost to a loss scale that was too high; 0 in other precisions."""
        return self._skipped_before + self.engine.skipped_steps

    def counters(self) -> EngineCounters:
        """What `load_state` needs beside tensors."""
        scaler = getattr(self.optimizer, "loss_scaler", None)
        if not self.fp16 or scaler is None:
            return EngineCounters(self.skipped_steps, taken=dict(self.taken))
        scale = {name: getattr(scaler, name) for name in SCALER if hasattr(scaler, name)}
        return EngineCounters(self.skipped_steps, scale, dict(self.taken))

    def state(self) -> dict[str, Tensor]:
        """Trained tensors and their moments in fp32 on the CPU, whole, whatever the ZeRO stage.

        A collective under ZeRO: every rank calls it.

        Returns:
            `parameter name`, and after its part's first step `parameter name#exp_avg` and `…#exp_avg_sq`.
        """
        self._link_moments()
        state = {}
        for name, parameter in self.names.items():
            values = {"": safe_get_full_fp32_param(parameter) if self.sharded else parameter}
            if self.taken[self.part_of[name]]:  # before that there are none
                for moment in MOMENTS:
                    values[f"#{moment}"] = (
                        safe_get_full_optimizer_state(parameter, moment)
                        if self.sharded
                        else self.inner.state[parameter][moment]
                    )
            for suffix, value in values.items():
                shape = getattr(parameter, "ds_shape", parameter.shape)
                state[name + suffix] = value.detach().float().cpu().reshape(shape).clone()
        return state

    def load_state(self, state: dict[str, Tensor], num_steps: int, counters: EngineCounters) -> None:
        """Take over what `state` gave, on any number of ranks and any ZeRO stage.

        The model must hold the trained tensors already (`load_trained`, before this engine was made): this sets their
        fp32 masters and the moments, which DeepSpeed would otherwise start from rounded values and from zero.

        Args:
            state: Tensors as `state` returned them.
            num_steps: Optimizer steps so far, skipped ones included.
            counters: Counters as `counters` returned them. The steps that a part has taken count for Adam's bias
                correction.
        """
        self.num_steps, self._skipped_before = num_steps, counters.skipped_steps
        for name, value in (counters.loss_scale or {}).items():
            setattr(self.optimizer.loss_scaler, name, value)
        num_taken = num_steps - self._skipped_before
        if not num_taken:
            return
        self.taken = dict(counters.taken or dict.fromkeys(self.taken, num_taken))
        for master, part in self._masters():
            if self.taken[part]:
                self.inner.state[master] = {
                    "step": torch.tensor(float(self.taken[part])),
                    **{moment: torch.zeros_like(master) for moment in MOMENTS},
                }
        self._link_moments()
        for name, parameter in self.names.items():
            if self.sharded:
                self._set(parameter, state[name], None)
            for moment in MOMENTS if self.taken[self.part_of[name]] else ():
                if self.sharded:
                    self._set(parameter, state[f"{name}#{moment}"], moment)
                else:
                    self.inner.state[parameter][moment].copy_(state[f"{name}#{moment}"])

    def _masters(self) -> list[tuple[Tensor, str]]:
        """The tensors that the optimizer steps, each with its part."""
        groups = self.inner.param_groups
        partitioned = getattr(self.optimizer, "fp32_partitioned_groups_flat", None)
        if partitioned:  # ZeRO 3 puts them into their groups one at a time, while it steps
            numbers = self.optimizer.sub_group_to_group_id
            return [(master, groups[numbers[i]]["part"]) for i, master in enumerate(partitioned)]
        return [(tensor, group["part"]) for group in groups for tensor in group["params"]]

    def _set(self, parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
        """Set the fp32 master of a parameter, or one of its moments, in DeepSpeed's partitions."""
        value = value.to(self.device)
        if hasattr(parameter, "ds_id"):
            # ZeRO 3. Setting the full tensor fails where it does not divide by the ranks: the last part is padded.
            count = parameter.ds_tensor.numel()  # type: ignore[attr-defined]  # DeepSpeed adds it
            value = nn.functional.pad(value.flatten(), (0, count * self.ranks.size - value.numel()))
            value = value.narrow(0, count * self.ranks.rank, count)
            set_master, set_moment = safe_set_local_fp32_param, safe_set_local_optimizer_state
        else:
            set_master, set_moment = safe_set_full_fp32_param, safe_set_full_optimizer_state
        if moment is None:
            set_master(parameter, value)
        else:
            set_moment(parameter, value, moment)

    def _link_moments(self) -> None:
        """Link every parameter to its moments: DeepSpeed does so once, after the first *group's* first step, and leaves
        the parameters of later groups without."""
        if hasattr(self.optimizer, "_hp_optimizer_states_linked") and self.num_steps > self.skipped_steps:
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _grad_norm(self) -> float:
        """Norm of the gradient of this step, before clipping; called after the last backward pass, before the step."""
        squares = [p.grad.double().square().sum() for p in self.names.values() if p.grad is not None]
        return float(torch.stack(squares).sum().sqrt())


def load_trained(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put trained tensors into a model, by name; moments are ignored."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state[name])
