"""Training: one loop for both stages. It reads the feature cache, and runs the encoder only where there is none."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch

from masp.config import Config, save_config
from masp.config.schema import StageName
from masp.data.findings import log_findings, save_findings
from masp.distributed.collectives import check_agreed, gather, on_rank_0
from masp.distributed.liveness import Peers, RankLost
from masp.distributed.ranks import Ranks, join, note_idle_tasks, read_ranks
from masp.errors import InputError, MaspError, StoppedEarly, TrainingFailed, one_line
from masp.extraction.encoder import Encoder
from masp.files.atomic import write_bytes
from masp.files.text import reason
from masp.models.restarts import RestartModel
from masp.runtime.devices import pick_device, plain_memory_errors
from masp.runtime.log import say
from masp.runtime.prefetch import ReadAhead
from masp.runtime.run_directory import (
    STATUS_FILE,
    RunInUse,
    RunLock,
    RunState,
    noting_failure,
    read_status,
    write_status,
)
from masp.runtime.stop import StopFlag, StopRequests
from masp.tracking.tensorboard_files import TensorBoardFiles
from masp.tracking.trackers import Trackers, open_trackers, require_trackers
from masp.training.checkpoint import Checkpoint, load_latest, load_step, save_checkpoint
from masp.training.engine import Accumulated, Engine, load_trained, make_partition
from masp.training.live_features import batches_of
from masp.training.logs import (
    KeyLog,
    StepResult,
    TrainingLog,
    cut_key_logs,
    device_peak,
    hardly_moved,
    report_not_finite,
)
from masp.training.profiling import Profile
from masp.training.restarts.engine import RestartEngine
from masp.training.restarts.validation import RestartValidation, chosen_state, to_json
from masp.training.schedule import learning_rate, too_little
from masp.training.stage import Stage
from masp.training.stages import AspectStage, open_stage
from masp.training.steps import HeldOutSteps, PausedSteps, Step, Steps
from masp.training.validation import Validation, held_out_loss, note_paused, paused_loss

LOG = logging.getLogger(__name__)

_DIGESTS = ("vlm", "cache", "dataset", "questions", "checkpoint.aspect")
"""Keys of a stage's identity that are digests of what it is made from."""
RESTARTS_FILE = "restarts.json"
CHOICE = "kept_restarts"
"""Key in the lineage's settings of what the file says."""


def train(
    config: Config,
    stage: StageName,
    stop: StopFlag | None = None,
    profile: bool = False,
    on_loss: Callable[[RankLost], None] | None = None,
    until: int | None = None,
) -> Path:
    """Train a stage, or go on from its newest checkpoint.

    Under a launcher every rank calls this.

    Args:
        config: Run configuration; the stage's directory is `<output_dir>/<stage>`.
        stage: Name of the stage.
        stop: Flag that is checked after each step; None lets SIGTERM, SIGINT and SIGUSR2 stop the run.
        profile: Whether rank 0 writes a trace of a few steps into the stage's directory.
        on_loss: Called, on a thread of its own, before a rank ends by force because another one is lost.
        until: Pause after this step, with a checkpoint and the loss that `masp.training.validation.paused_loss` reads;
            None trains to the end.

    Returns:
        The trained artifact, `aspect.safetensors` or `soft_prompt_<dataset>.safetensors`; after a pause it is not there
        yet.

    Raises:
        InputError, DataError: See `masp.errors`.
        StoppedEarly: Something asked to stop; a checkpoint was written.
        RankLost: Another rank was killed.
    """
    ranks = read_ranks()
    note_idle_tasks(ranks)
    directory = Path(config.output_dir) / stage
    with ExitStack() as stack:
        flag = stack.enter_context(nullcontext(stop) if stop is not None else StopFlag())
        requests = StopRequests(flag, Path(config.output_dir), config.engine.time_limit_min, ranks.is_rank_0)
        lock, in_use = RunLock(directory), False
        if ranks.is_rank_0:
            try:
                stack.enter_context(lock)
            except RunInUse:
                if ranks.size == 1:
                    raise
                in_use = True  # said once the ranks have met; until then this run's failures are not that one's
        stack.enter_context(nullcontext() if in_use else noting_failure(directory))
        if ranks.size > 1:
            device = pick_device(config.engine.device, "engine.device")
            stack.enter_context(watched(device, [directory], ranks, [lock], on_loss))
        return Trainer(config, stage, ranks, lock, requests, until=until).train(profile)


@contextmanager
def watched(
    device: str,
    directories: Sequence[Path],
    ranks: Ranks,
    locks: Sequence[RunLock],
    on_loss: Callable[[RankLost], None] | None,
) -> Iterator[None]:
    """Meet the other ranks; while entered, each of them is told if another is lost.

    Args:
        device: `cpu` or `cuda`.
        directories: Of the stages that are trained together, often one.
        ranks: This process among the others.
        locks: The rights to write there.
        on_loss: See `train`.
    """
    join(ranks, device)

    def take_all() -> None:
        for lock in locks:
            lock.take()

    on_rank_0(ranks, device, take_all)

    def note(error: RankLost) -> None:
        for directory in directories:
            try:
                status = read_status(directory)
                # one of a group may be finished, or have failed for itself
                if status and status.state != RunState.FINISHED and status.exit_code != InputError.exit_code:
                    write_status(directory, RunState.FAILED, error.exit_code, one_line(str(error)))
            except (OSError, MaspError) as problem:  # a full disk; the job is to be queued again all the same
                LOG.warning("%s cannot be written: %s", directory / STATUS_FILE, reason(problem))
        if on_loss:
            on_loss(error)

    kept = f"the others end too, and the same command goes on from the last checkpoint in {directories[0]}"
    with Peers(ranks, device, kept, note):
        yield


class Trainer:
    """One call of `train`, on one rank.

    Args:
        config: Run configuration.
        name: Name of the stage.
        ranks: This process among the others.
        lock: The right to write into the stage's directory.
        stop: What may ask the run to stop.
        stage: The stage, if it has been opened; None opens it.
        until: See `train`.
    """

    engine: Engine | RestartEngine
    encoder: Encoder | None
    steps: Steps
    validation: Validation | RestartValidation | None

    def __init__(
        self,
        config: Config,
        name: StageName,
        ranks: Ranks,
        lock: RunLock,
        stop: StopRequests,
        stage: Stage | None = None,
        until: int | None = None,
    ):
        self.config, self.ranks, self.lock, self.stop, self.until = config, ranks, lock, stop, until
        self.trackers = Trackers()
        """Those of rank 0; of no other rank."""
        require_trackers(config)
        self.device = pick_device(config.engine.device, "engine.device")
        self.stage = open_stage(name, config, self.device, stop.flag) if stage is None else stage
        self.settings, self.directory = self.stage.settings, self.stage.directory
        self.identity = self.stage.identity()
        self.num_steps = self.stage.schedule.num_steps
        if ranks.is_rank_0:
            if self.stage.live:
                self.stage.live.log()
            if self.stage.record:
                log_findings(self.stage.record.findings, LOG, again=True)
            if labels := self.stage.cache.labels:
                log_findings(labels.findings, LOG)
            if (subset := self.stage.cache.subset) and not self.stage.record:
                log_findings(subset.findings, LOG)
            if note := too_little(name, self.num_steps, self.settings):
                LOG.warning("%s", note)
        self.num_taken = 0
        """Steps taken, by this call or an earlier one."""

    def train(self, profile: bool = False) -> Path:
        """Train the stage; returns its artifact."""
        checkpoint = load_latest(self.directory / "checkpoints", self.identity)
        self.num_taken = checkpoint.step if checkpoint else 0
        if self.is_finished(checkpoint):
            self.note_finished(f"finished already, {self.num_taken} steps")
            return self.stage.artifact
        if self.is_compared():
            return self.stage.artifact
        join(self.ranks, self.device)
        on_rank_0(self.ranks, self.device, self.make_directory)
        with ExitStack() as stack:
            on_rank_0(self.ranks, self.device, lambda: self.open_trackers(stack))
            with plain_memory_errors(self.memory_remedy()):
                self.build(checkpoint)
                if not self.is_over:
                    self.validate_late()
                if not self.is_over:
                    self.take_steps(profile)
                if self.is_paused:
                    steps = PausedSteps(self.stage, self.prompt, self.ranks.rank, self.ranks.size)
                    self.pause(held_out_loss(self.engine, steps, self.config.engine, self.encoder))
                    return self.stage.artifact
                state = self.engine.state()
            on_rank_0(self.ranks, self.device, lambda: self.export(state))
        return self.stage.artifact

    def take_steps(self, profile: bool) -> None:
        """Take the steps that are left."""
        with ExitStack() as stack:
            batches = stack.enter_context(self.read_ahead())
            recorders = []
            for recorder in self.recorders(profile):
                stack.enter_context(recorder)
                recorders.append(recorder)
            while not (self.is_over or self.is_paused):
                started = time.monotonic()
                step = next(batches)
                result = self.train_step(step, wait_s=time.monotonic() - started)
                for recorder in recorders:
                    recorder.step(result)
                is_best = self.validate(result)
                is_due = self.num_taken % self.settings.checkpoint_every == 0
                if is_due or is_best or self.is_over or self.is_paused or result.stop_reason:
                    self.save()
                if result.stop_reason and not self.is_over:
                    self.stop_early(result)

    def train_step(self, step: Step, wait_s: float) -> StepResult:
        """Take one optimizer step over a global batch; all ranks come to the same result."""
        rate = learning_rate(self.num_taken, self.num_steps, self.settings)
        sums = [*self.stop.raised(), step.num_tokens, step.flops]
        total = self.engine.accumulate(batches_of(step, self.encoder), step.total_weight, sums)
        if not (math.isfinite(total.loss) and total.gradient_is_finite):
            self.refuse(step, total)
        self.engine.leave_out(step.absent)
        grad_norm = self.engine.update(rate)
        self.num_taken += 1
        *requests, num_tokens, flops = total.sums
        return StepResult(
            step=self.num_taken,
            epoch=(self.num_taken - 1) // self.stage.schedule.steps_per_epoch,
            epochs_done=self.num_taken / self.stage.schedule.steps_per_epoch,
            loss=total.loss,
            grad_norm=grad_norm,
            learning_rate=rate,
            num_images=step.num_images,
            num_tokens=round(num_tokens),
            flops=flops,
            keys=step.own_keys(),
            wait_s=wait_s,
            skipped_steps=self.engine.skipped_steps,
            restart_losses=tuple(self.engine.losses) if isinstance(self.engine, RestartEngine) else (),
            stop_reason=self.stop.why([count > 0 for count in requests]),
        )

    @property
    def is_over(self) -> bool:
        """Whether no step is left to take."""
        if self.num_taken == self.num_steps:
            return True
        if isinstance(self.validation, RestartValidation):
            assert isinstance(self.engine, RestartEngine)
            return not self.engine.active
        return self.validation is not None and self.validation.ended

    @property
    def is_paused(self) -> bool:
        """Whether it has come to where it is to pause."""
        return self.until is not None and self.num_taken >= self.until and not self.is_over

    def is_compared(self) -> bool:
        """Whether an earlier call paused there already.

        Raises:
            InputError: An earlier call went beyond.
        """
        if self.until is None or self.num_taken < self.until:
            return False
        if paused_loss(self.directory, self.until) is not None:
            return True
        if self.num_taken > self.until and self.num_taken < self.num_steps:
            raise InputError(
                f"output_dir: {self.directory} is at step {self.num_taken} already, and was not compared with others "
                f"at step {self.until}: go on without halving, or remove {self.directory}"
            )
        return False

    def pause(self, loss: float) -> None:
        """Note the loss with which a run pauses; its checkpoint is written."""
        assert self.until is not None
        text = f"paused after step {self.until} of {self.num_steps} to be compared with others: loss {loss:.5f}"

        def note() -> None:
            note_paused(self.directory, self.num_taken, loss)
            write_status(
                self.directory, RunState.STOPPED, StoppedEarly.exit_code, text,
                step=self.num_taken, num_steps=self.num_steps,
            )  # fmt: skip
            LOG.info("%s: %s", self.directory, text)

        on_rank_0(self.ranks, self.device, note)

    def is_finished(self, checkpoint: Checkpoint | None) -> bool:
        """Whether an earlier call took the last step and wrote the artifact; all ranks must see the same."""
        ended = self.num_taken == self.num_steps or (checkpoint is not None and checkpoint.ended)
        finished = ended and self.stage.artifact.is_file()
        if self.ranks.size > 1:
            check_agreed([self.num_taken, int(finished)], f"what is in {self.directory}", self.device)
        return finished

    def make_directory(self) -> None:
        """Make the stage's directory, or take up that of an earlier call."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.lock.take()
            save_config(self.config, self.directory / "config.yaml")
            self.note_status(RunState.RUNNING, step=self.num_taken)
            cut_key_logs(self.directory, self.num_taken)
            if self.stage.live:
                self.stage.live.save_quarantine(self.directory)
        except OSError as error:
            raise InputError(f"output_dir: {self.directory} cannot be written: {reason(error)}") from None

    def open_trackers(self, stack: ExitStack) -> None:
        """Begin, or go on with, what tracks the stage; rank 0 does."""
        is_wanted = TensorBoardFiles.name in self.config.logging.trackers
        local = [TensorBoardFiles(self.directory, self.num_taken)] if is_wanted else []
        digests = {name: self.identity[name] for name in _DIGESTS if isinstance(self.identity.get(name), str)}
        self.trackers = stack.enter_context(open_trackers(self.config, self.stage.name, digests, local))

    def build(self, checkpoint: Checkpoint | None) -> None:
        """Load the model, and bring engine and validation to where a checkpoint was."""
        config, settings, ranks = self.config, self.settings, self.ranks
        if config.engine.num_threads:
            torch.set_num_threads(config.engine.num_threads)
        if ranks.is_rank_0:
            for note in self.stage.notes():
                LOG.info("%s", note)
        model, prompt = self.stage.build(self.device, make_partition(config.engine, settings))
        self.prompt = prompt
        if checkpoint:
            load_trained(model, checkpoint.tensors)
            if ranks.is_rank_0:
                LOG.info("%s: resuming after step %d of %d", self.stage.name, checkpoint.step, self.num_steps)
        self.encoder = self.stage.load_encoder()
        if isinstance(model, RestartModel):
            self.engine = RestartEngine(model, config.engine, settings, ranks, self.device)
        else:
            self.engine = Engine(model, config.engine, settings, ranks, self.device)
        if checkpoint:
            self.engine.load_state(checkpoint.tensors, checkpoint.step, checkpoint.engine)
        self.steps = Steps(self.stage, prompt, ranks.rank, ranks.size)
        self.validation = None
        if self.stage.schedule.held_out is not None:
            self._open_validation(HeldOutSteps(self.stage, prompt, ranks.rank, ranks.size), checkpoint)

    def _open_validation(self, steps: HeldOutSteps, checkpoint: Checkpoint | None) -> None:
        given = self.directory, self.settings, self.config.engine, steps
        if isinstance(self.engine, RestartEngine):
            states, count = checkpoint.restarts if checkpoint else (), self.stage.num_restarts
            self.validation = RestartValidation(*given, states, count, self.encoder, self.trackers)
            self.engine.ended = self.validation.ended
        else:
            state = checkpoint.validation if checkpoint else None
            self.validation = Validation(*given, state, self.encoder, self.trackers)

    def read_ahead(self) -> ReadAhead:
        """This rank's part of the steps that are left, prepared by workers."""
        end = self.num_steps if self.until is None else min(self.until, self.num_steps)
        left, workers = range(self.num_taken, end), self.config.engine.num_workers
        return ReadAhead(self.steps, left, workers, "engine.num_workers", pin_memory=self.device == "cuda")

    def recorders(self, profile: bool) -> Iterator[TrainingLog | KeyLog | Profile]:
        """What notes the steps on this rank."""
        if self.settings.log_keys:
            yield KeyLog(self.directory, self.ranks.rank, self.ranks.size)
        if self.ranks.is_rank_0:
            peak = self.ranks.size * device_peak(self.device, self.config.engine.precision)
            first, every = self.num_taken, self.settings.log_every
            name, trackers = self.stage.name, self.trackers
            yield TrainingLog(self.directory, name, self.num_steps, first, every, self.device, peak, trackers)
            if profile:
                yield Profile(self.directory)

    def validate_late(self) -> None:
        """Measure what an earlier call left to this one because it was stopped at that step."""
        if self.validation and self.validation.is_due(self.num_taken):
            self._measure(self.validation)
            self.save()

    def validate(self, result: StepResult) -> bool:
        """Measure the held-out loss if that is due; returns whether it is the lowest so far."""
        if self.validation is None or not self.validation.is_due(self.num_taken):
            return False
        if result.stop_reason and self.num_taken < self.num_steps:
            return False  # the call that resumes measures
        return self._measure(self.validation)

    def _measure(self, validation: Validation | RestartValidation) -> bool:
        if isinstance(validation, RestartValidation):
            assert isinstance(self.engine, RestartEngine)
            return validation.measure(self.engine, self.num_taken)
        return validation.measure(self.engine, self.num_taken)

    def save(self) -> None:
        """Write a checkpoint; every rank calls it."""
        checkpoint = Checkpoint(
            self.num_taken,
            self.identity,
            self.engine.state(),  # a collective
            self.engine.counters(),
            self.validation.state if isinstance(self.validation, Validation) else None,
            self.validation.restarts if isinstance(self.validation, RestartValidation) else (),
        )
        on_rank_0(
            self.ranks,
            self.device,
            lambda: save_checkpoint(self.directory / "checkpoints", checkpoint, self.settings.keep),
        )

    def stop_early(self, result: StepResult) -> NoReturn:
        """End a run that something asked to stop; its checkpoint is written."""
        self.stop.done()
        raise StoppedEarly(
            f"{self.stage.name}: stopped {result.stop_reason} after step {result.step} of {self.num_steps}; the same "
            "command resumes"
        )

    def refuse(self, step: Step, total: Accumulated) -> None:
        """End all ranks before a step whose loss or gradient is not finite; a file names its samples."""
        ranks = gather(step.finite_keys(self.engine.row_losses))
        keys = [sorted({key for key, _ in part}) for part in ranks]
        suspects = [sorted({key for key, is_finite in part if not is_finite}) for part in ranks]
        number, rate = self.num_taken + 1, self.settings.learning_rate

        def report() -> None:
            raise report_not_finite(self.directory, self.stage.name, number, total.loss, keys, suspects, rate)

        on_rank_0(self.ranks, self.device, report)

    def export(self, state: dict[str, torch.Tensor]) -> None:
        """Write the artifact from the last step, or from the best that validation has found."""
        text, settings = f"{self.num_taken} steps", self.identity
        if isinstance(self.engine, RestartEngine):
            state, note, choice = self._chosen(state)
            text, settings = f"{text}, {note}", {**settings, CHOICE: choice}
            self.refuse_untrained(state)
        else:
            self.refuse_untrained(state)
            best_step = self.validation.state.best_step if isinstance(self.validation, Validation) else None
            if best_step is not None and best_step != self.num_taken:
                state = load_step(self.directory / "checkpoints", best_step, self.identity).tensors
                text += f", the best after {best_step}"
        self.stage.export(state, settings)
        self.keep_findings()
        self.note_finished(text)

    def _chosen(self, state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str, dict]:
        """Of every aspect the restart with the lowest held-out loss: its tensors, a note, and what to record of it."""
        engine, stage, validation = self.engine, self.stage, self.validation
        assert isinstance(engine, RestartEngine) and isinstance(stage, AspectStage)
        assert isinstance(validation, RestartValidation)
        choices = validation.choose(engine.dropped, stage.restart_seeds)
        states = {self.num_taken: state}
        for step in {choice.step for choice in choices.values()} - {self.num_taken}:
            states[step] = load_step(self.directory / "checkpoints", step, self.identity).tensors
        record = to_json(choices, stage.restart_seeds, engine.dropped)
        try:
            write_bytes(self.directory / RESTARTS_FILE, json.dumps(record, indent=1).encode() + b"\n")
        except OSError as error:
            raise InputError(f"output_dir: {self.directory} cannot be written: {reason(error)}") from None
        kept = ", ".join(f"{aspect} {choice.chosen}" for aspect, choice in choices.items())
        gone = f" ({len(engine.dropped)} dropped)" if engine.dropped else ""
        return chosen_state(choices, states), f"restarts kept of {stage.num_restarts}{gone}: {kept}", record

    def refuse_untrained(self, state: dict[str, torch.Tensor]) -> None:
        """Refuse to save as trained what no step has changed."""
        if untrained := self.stage.untrained(state):
            skipped = self.engine.skipped_steps
            why = f": fp16 skipped {skipped} of {self.num_taken} steps; train in bf16 or fp32" if skipped else ""
            raise TrainingFailed(
                f"{self.stage.name}: {' and '.join(untrained)} received no gradient in {self.num_taken} steps and is "
                f"not saved as trained{why}; the checkpoint is kept"
            )

    def keep_findings(self) -> None:
        """Keep what is known of the dataset beside what was trained on it."""
        if self.stage.record:
            try:
                save_findings(self.directory, self.stage.record)
            except OSError as error:
                raise InputError(f"output_dir: {self.directory} cannot be written: {reason(error)}") from None

    def note_finished(self, text: str) -> None:
        """Say, in the status and on the screen, that the stage is done, and whether the loss fell at all."""
        if self.ranks.is_rank_0:
            text = f"{text}: {self.stage.artifact}"
            name, taken, settings = self.stage.name, self.num_taken, self.settings
            can_move = too_little(name, taken, settings) is None
            warning = hardly_moved(self.directory, name, taken, settings.learning_rate, can_move)
            self.note_status(RunState.FINISHED, 0, text, step=taken, warning=warning)
            say(f"{self.stage.name}: {text}")
            if warning:
                LOG.warning("%s", warning)

    def note_status(self, state: RunState, exit_code: int | None = None, message: str = "", **more: Any) -> None:
        """Replace the status; arguments and errors as of `write_status`."""
        subset = self.stage.cache.subset
        text = None if subset is None else subset.text
        write_status(self.directory, state, exit_code, message, num_steps=self.num_steps, subset=text, **more)

    def memory_remedy(self) -> str:
        """What to change where memory runs out."""
        settings, name, config = self.settings, self.stage.name, self.config
        encoder = ""
        if self.stage.live:
            encoder = (
                f"; the encoder takes less with a lower extract.batch_tokens, which is {config.extract.batch_tokens}"
            )
        smaller = "" if config.vlm.quantization == "int4" else "; if the VLM does not fit, give vlm.quantization=int4"
        if config.vlm.quantization == "none" and config.engine.zero_stage < 3:
            smaller += " or engine.zero_stage=3 on several ranks"
        return (
            f"lower {name}.micro_batch_size, which is {settings.micro_batch_size}, or {name}.micro_batch_tokens, which "
            f"is {settings.micro_batch_tokens}; neither changes the result, and the run goes on from its checkpoint"
            f"{encoder}{smaller}"
        )
