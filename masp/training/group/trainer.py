"""Training a group: one loop over the images, and per member the checkpoints, logs and artifact of a run of its own."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from masp.config import Config
from masp.distributed.collectives import check_agreed, on_rank_0, sum_floats
from masp.distributed.liveness import RankLost
from masp.distributed.ranks import Ranks, read_ranks
from masp.errors import InputError, MaspError, OtherRankFailed, StoppedEarly
from masp.files.text import reason
from masp.models.forward import Stage2Model
from masp.models.group import GroupModel
from masp.runtime.devices import pick_device, plain_memory_errors
from masp.runtime.prefetch import ReadAhead
from masp.runtime.run_directory import RunInUse, RunLock, RunState, write_status
from masp.runtime.stop import StopFlag, StopRequests
from masp.training.checkpoint import Checkpoint, EngineCounters, load_latest, load_step, step_name
from masp.training.engine import make_partition
from masp.training.group.engine import NAME, GroupEngine, MemberStep
from masp.training.group.members import open_members
from masp.training.group.steps import GroupStep, GroupSteps
from masp.training.logs import StepResult, TrainingLog, device_peak, report_not_finite
from masp.training.loop import Trainer, watched
from masp.training.schedule import learning_rate
from masp.training.stages import SoftPromptStage
from masp.training.steps import HeldOutSteps
from masp.training.validation import Validation
from masp.vlm.prompt import Prompt

LOG = logging.getLogger(__name__)


@dataclass
class MemberEngine:
    """What a `Trainer` needs of an engine to save a member: its part of the group's state."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    num_taken: int = 0
    skipped_steps: int = 0
    row_losses: list[Tensor] = field(default_factory=list)

    def state(self) -> dict[str, Tensor]:
        """Trained tensor and moments, by the names of a run of its own."""
        return self.tensors

    def counters(self) -> EngineCounters:
        """What the engine of a run of its own would have counted."""
        return EngineCounters(taken={"soft_prompt": self.num_taken})


class Member(Trainer):
    """One member: a run of stage 2 whose steps the group takes."""

    engine: Any
    failure: str = ""
    """Why it was stopped; empty where it was not."""
    checkpoint: Checkpoint | None = None
    log: TrainingLog | None = None
    stage: SoftPromptStage
    validation: Validation | None

    def begin(self) -> bool:
        """Find where an earlier call left it; returns whether there is anything left to do."""
        self.checkpoint = load_latest(self.directory / "checkpoints", self.identity)
        self.num_taken = self.checkpoint.step if self.checkpoint else 0
        self.validation = None
        if self.is_finished(self.checkpoint):
            self.note_finished(f"finished already, {self.num_taken} steps")
            return False
        return not self.is_compared()

    def go_back(self, step: int) -> bool:
        """Go back to an earlier step, if its checkpoint is there: a kill came between the saves of two members."""
        if step and not (self.directory / "checkpoints" / step_name(step)).is_dir():
            return False
        if self.num_taken - step > self.settings.checkpoint_every:
            return False
        self.checkpoint = load_step(self.directory / "checkpoints", step, self.identity) if step else None
        self.num_taken = step
        return True

    def take(self, result: StepResult) -> None:
        """Note a step that the group took."""
        self.num_taken += 1
        if self.log:
            self.log.step(result)

    def save_state(self, tensors: dict[str, Tensor]) -> None:
        """Write a checkpoint of what the group holds of it; every rank calls it."""
        self.engine = MemberEngine(tensors, self.num_taken)
        self.save()

    def finish(self, tensors: dict[str, Tensor]) -> None:
        """Write the artifact; every rank calls it."""
        self.engine = MemberEngine(tensors, self.num_taken)
        on_rank_0(self.ranks, self.device, lambda: self.export(tensors))


def train_group(
    configs: Sequence[Config],
    stop: StopFlag | None = None,
    on_loss: Callable[[RankLost], None] | None = None,
    until: Sequence[int] | None = None,
) -> list[str]:
    """Train several soft prompts behind one pass of what comes before them, or go on with it.

    Under a launcher every rank calls this.

    Args:
        configs: Configurations of the members: different `output_dir`, the same `group_key`, none with `why_alone`.
        stop: Flag that is checked after each step; None lets signals stop the run.
        on_loss: See `masp.training.loop.train`.
        until: Step after which each member pauses, as `masp.training.loop.train` does; None trains all to their ends.

    Returns:
        Of each member why it was stopped; an empty string where it was trained to its end.

    Raises:
        InputError, DataError: See `masp.errors`.
        StoppedEarly: Something asked to stop; the checkpoints of all members were written.
        RankLost: Another rank was killed.
    """
    ranks = read_ranks()
    device = pick_device(configs[0].engine.device, "engine.device")
    with ExitStack() as stack:
        flag = stack.enter_context(nullcontext(stop) if stop is not None else StopFlag())
        first = configs[0]
        requests = StopRequests(flag, Path(first.output_dir), first.engine.time_limit_min, ranks.is_rank_0)
        directories = [Path(config.output_dir) / "stage2" for config in configs]
        locks = [RunLock(directory) for directory in directories]
        for lock in locks:
            stack.callback(lock.release)
        ends: Sequence[int | None] = [None] * len(configs) if until is None else until
        members: list[Member] = []
        left: list[Member] = []
        try:
            with watched(device, directories, ranks, locks, on_loss):
                stages = open_members(configs, device)
                for config, lock, stage, end in zip(configs, locks, stages, ends, strict=True):
                    members.append(Member(config, "stage2", ranks, lock, requests, stage, end))
                left += [member for member in members if member.begin()]
                while left:
                    start = min(member.num_taken for member in left)
                    together = [member for member in left if member.num_taken == start or member.go_back(start)]
                    GroupTrainer(together, ranks, device, requests).train()
                    left = [member for member in left if member not in together]
        except (OtherRankFailed, RunInUse):  # the rank that met the cause notes it; a run in use is not ours
            raise
        except Exception as error:
            _note_failure(left, error)
            raise
    return [member.failure for member in members]


def _note_failure(members: Sequence[Member], error: Exception) -> None:
    """Write why a group ended into the statuses of its members that are neither finished nor failed for themselves."""
    state = RunState.STOPPED if isinstance(error, StoppedEarly) else RunState.FAILED
    if isinstance(error, MaspError):
        code, text = error.exit_code, str(error)
    else:
        code, text = 1, f"{type(error).__name__}: {error}"
    for member in members:
        if member.failure or member.stage.artifact.is_file() or not member.directory.is_dir():
            continue
        try:
            write_status(member.directory, state, code, text, step=member.num_taken)
        except OSError as problem:  # most likely what ended the group, whose own message must get through
            LOG.warning("%s: its status cannot be written: %s", member.directory, reason(problem))


class GroupTrainer:
    """The loop over the images that the members share.

    Args:
        members: Members that have taken the same number of steps.
        ranks: This process among the others.
        device: `cpu` or `cuda`.
        stop: What may ask the run to stop.
    """

    def __init__(self, members: Sequence[Member], ranks: Ranks, device: str, stop: StopRequests):
        self.members, self.ranks, self.device, self.stop = list(members), ranks, device, stop
        self.config, self.settings = members[0].config, members[0].settings
        self.num_taken = members[0].num_taken

    def train(self) -> None:
        """Train all members to their ends, or to where they pause."""
        if self.ranks.size > 1:
            counts = [self.num_taken, *(member.num_steps for member in self.members)]
            check_agreed(counts, f"what is in {self.members[0].directory} and the other members'", self.device)
        for member in self.members:
            on_rank_0(self.ranks, self.device, member.make_directory)
        with ExitStack() as stack, plain_memory_errors(self.members[0].memory_remedy()):
            on_rank_0(self.ranks, self.device, lambda: self._open_trackers(stack))
            self.build()
            self._catch_up()
            self.take_steps()
            self._pause()

    def _catch_up(self) -> None:
        """Do what an earlier call left undone after its last step: a measurement, or the artifact of a member."""
        if not self.num_taken:
            return
        best = self._validate(self.active, "")
        if best:
            self._save(sorted(best), best, "")
        over = [n for n, member in enumerate(self.members) if member.is_over and not member.stage.artifact.is_file()]
        if over:
            states = self.engine.states()  # a collective
            for number in over:
                self.members[number].finish(states[number])

    def _open_trackers(self, stack: ExitStack) -> None:
        for member in self.members:
            member.open_trackers(stack)

    def build(self) -> None:
        """Load the language model, and put the members around it, each with its own initial values."""
        config = self.config
        if config.engine.num_threads:
            torch.set_num_threads(config.engine.num_threads)
        partition = make_partition(config.engine, self.settings)
        model, prompt = self.members[0].stage.build(self.device, partition)
        assert isinstance(model, Stage2Model)
        self.prompt = prompt
        soft_prompts = [model.soft_prompt]
        for member in self.members[1:]:
            torch.manual_seed(member.config.seed)
            other = member.stage.around(model.language, prompt, self.device, partition)
            soft_prompts.append(other.soft_prompt)
        held = [soft_prompt for soft_prompt in soft_prompts if soft_prompt is not None]
        for member, soft_prompt in zip(self.members, held, strict=True):
            if member.checkpoint:
                with torch.no_grad():
                    soft_prompt.weight.copy_(member.checkpoint.tensors[NAME])
        group = GroupModel(model.language, model.aspect_modules, held)
        stages = [member.stage.settings for member in self.members]
        self.engine = GroupEngine(group, config.engine, stages, self.ranks, self.device)
        if self.num_taken:
            states = [member.checkpoint.tensors for member in self.members if member.checkpoint]
            self.engine.load_states(states, [self.num_taken] * len(states))
        rank, size = self.ranks.rank, self.ranks.size
        opened = [member.stage for member in self.members]
        self.steps = GroupSteps(opened, prompt, rank, size)
        self.held_out = None
        if self.steps.schedule.held_out is not None:
            self.held_out = GroupSteps(opened, prompt, rank, size, self.steps.schedule.held_out)
            self._open_validation(prompt)

    def _open_validation(self, prompt: Prompt) -> None:
        for member in self.members:
            steps = HeldOutSteps(member.stage, prompt, self.ranks.rank, self.ranks.size)
            state = member.checkpoint.validation if member.checkpoint else None
            member.validation = Validation(
                member.directory, member.settings, self.config.engine, steps, state, trackers=member.trackers
            )

    @property
    def active(self) -> list[int]:
        """Numbers of the members that have steps to take."""
        return [n for n, m in enumerate(self.members) if not (m.failure or m.is_over or m.is_paused)]

    def take_steps(self) -> None:
        """Take the steps that are left."""
        total = max(min(member.num_steps, member.until or member.num_steps) for member in self.members)
        workers = self.config.engine.num_workers
        pin = self.device == "cuda"
        left = range(self.num_taken, total)
        with ExitStack() as stack:
            batches = stack.enter_context(ReadAhead(self.steps, left, workers, "engine.num_workers", pin_memory=pin))
            if self.ranks.is_rank_0:
                self._open_logs(stack)
            pause_s = 0.1 if sys.stderr.isatty() else 30.0
            bar = stack.enter_context(
                tqdm(
                    total=total, initial=self.num_taken, desc="stage2", unit="step", mininterval=pause_s,
                    disable=not self.ranks.is_rank_0,
                )
            )  # fmt: skip
            while self.active:
                started = time.monotonic()
                step = next(batches)
                self._take(step, time.monotonic() - started)
                bar.update()

    def _open_logs(self, stack: ExitStack) -> None:
        peak = self.ranks.size * device_peak(self.device, self.config.engine.precision)
        for member in self.members:
            first, every = member.num_taken, member.settings.log_every
            log = TrainingLog(
                member.directory,
                "stage2",
                member.num_steps,
                first,
                every,
                self.device,
                peak,
                member.trackers,
                has_bar=False,
            )
            member.log = stack.enter_context(log)

    def _take(self, step: GroupStep, wait_s: float) -> None:
        active = self.active
        sums = [*self.stop.raised(), *step.num_tokens, *step.flops]
        found, summed = self.engine.accumulate_members(step, active, sums)
        requests, counted = summed[:3], summed[3:]
        reason = self.stop.why([count > 0 for count in requests])
        for number in active:
            if not found[number].is_finite:
                self._diverged(self.members[number], step, found[number])
        going = [number for number in active if not self.members[number].failure]
        rates = {n: learning_rate(self.num_taken, self.members[n].num_steps, self.members[n].settings) for n in going}
        if going:
            self.engine.update_members(rates)
        self.num_taken += 1
        num_forms = len(step.num_tokens)
        for number in going:
            member, form = self.members[number], step.variant_of[number]
            per_epoch = member.stage.schedule.steps_per_epoch
            member.take(
                StepResult(
                    step=self.num_taken,
                    epoch=(self.num_taken - 1) // per_epoch,
                    epochs_done=self.num_taken / per_epoch,
                    loss=found[number].loss,
                    grad_norm=found[number].grad_norm,
                    learning_rate=rates[number],
                    num_images=step.num_images,
                    num_tokens=round(counted[form]),
                    flops=counted[num_forms + form],
                    keys=step.own_keys(),
                    wait_s=wait_s,
                    stop_reason=reason,
                )
            )
        best = self._validate(going, reason)
        self._save(going, best, reason)
        if reason and self.active:
            self.stop.done()
            raise StoppedEarly(
                f"stage2: stopped {reason} after step {self.num_taken}, {len(self.active)} of {len(self.members)} "
                "members not finished; the same command resumes"
            )

    def _validate(self, going: Sequence[int], reason: str) -> set[int]:
        """Measure the held-out loss of the members of whom that is due; returns those for whom it is the lowest."""
        due = [
            number
            for number in going
            if (validation := self.members[number].validation) is not None
            and validation.is_due(self.num_taken)
            and not (reason and self.num_taken < self.members[number].num_steps)
        ]
        if not due or self.held_out is None:
            return set()
        best = set()
        for number, loss in self._measure(self.held_out, due).items():
            validation = self.members[number].validation
            assert validation is not None
            if not math.isfinite(loss):
                self._fail(self.members[number], f"the held-out loss after step {self.num_taken} is {loss}")
            elif validation.note(loss, self.num_taken):
                best.add(number)
        return best

    def _measure(self, steps: GroupSteps, numbers: Sequence[int]) -> dict[int, float]:
        """Mean loss of some members on held-out images."""
        totals = dict.fromkeys(numbers, 0.0)
        with ReadAhead(steps, range(len(steps)), self.config.engine.num_workers, "engine.num_workers") as parts:
            for part in parts:
                for number, total in self.engine.measure_members(part, numbers).items():
                    totals[number] += total
        assert steps.held_out is not None
        weight = float(steps.held_out.weights.sum())
        losses = sum_floats([totals[number] for number in numbers], self.device)
        return {number: loss / weight for number, loss in zip(numbers, losses, strict=True)}

    def _pause(self) -> None:
        """Note the losses of members that are to be compared with others."""
        paused = [number for number, member in enumerate(self.members) if member.is_paused and not member.failure]
        if not paused:
            return
        opened = [member.stage for member in self.members]
        steps = GroupSteps(opened, self.prompt, self.ranks.rank, self.ranks.size, opened[0].compared_rows)
        for number, loss in self._measure(steps, paused).items():
            self.members[number].pause(loss)

    def _save(self, going: Sequence[int], best: set[int], reason: str) -> None:
        """Write checkpoints where they are due, and the artifacts of members that are over."""
        due = [
            number
            for number in going
            if (member := self.members[number]).num_taken % member.settings.checkpoint_every == 0
            or number in best
            or member.is_over
            or member.is_paused
            or reason
        ]
        if not due:
            return
        states = self.engine.states()  # a collective
        for number in due:
            member = self.members[number]
            if member.failure:
                continue
            member.save_state(states[number])
            if member.is_over:
                member.finish(states[number])

    def _diverged(self, member: Member, step: GroupStep, found: MemberStep) -> None:
        keys = [list(step.own_keys())]
        rate = member.settings.learning_rate

        def report() -> str:
            return str(report_not_finite(member.directory, "stage2", self.num_taken + 1, found.loss, keys, [[]], rate))

        self._fail(member, report() if self.ranks.is_rank_0 else "not finite")

    def _fail(self, member: Member, why: str) -> None:
        """Stop a member; the others go on."""
        member.failure = why
        if self.ranks.is_rank_0:
            write_status(member.directory, RunState.FAILED, InputError.exit_code, why, step=member.num_taken)
            LOG.warning("%s: %s; the other members go on", member.config.output_dir, why)
