"""Training: one loop for both stages. Reads the cache, never the encoder."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from masp.config import Config, save_config
from masp.config.schema import StageConfig
from masp.distributed.collectives import check_agreed, gather, on_rank_0
from masp.distributed.liveness import Peers
from masp.distributed.ranks import join, read_ranks
from masp.errors import InputError, StoppedEarly, one_line
from masp.files.text import reason
from masp.runtime.devices import pick_device, plain_memory_errors
from masp.runtime.prefetch import ReadAhead
from masp.runtime.run_lock import RunInUse, RunLock
from masp.runtime.status import RunState, noting_failure, write_status
from masp.runtime.stop import StopFlag, StopRequests
from masp.training.checkpoint import Checkpoint, load_latest, load_step, save_checkpoint
from masp.training.engine import Engine, load_trained, make_partition
from masp.training.logs import KeyLog, TrainingLog, cut_key_logs
from masp.training.not_finite import report_not_finite
from masp.training.profiling import Profile, device_peak
from masp.training.stage import Stage
from masp.training.validation import Validation

if TYPE_CHECKING:
    from masp.distributed.liveness import RankLost
    from masp.distributed.ranks import Ranks
    from masp.training.engine import Accumulated
    from masp.training.logs import TrainingLog
    from masp.training.steps import Step, Steps
    from masp.training.validation import Validation

STAGES = ("stage1", "stage2")


def learning_rate(step: int, num_steps: int, stage: StageConfig) -> float:
    """Linear warmup from zero, then linear decay to zero; the step `num_steps` would be at zero.

    Args:
        step: from 0.
    """
    warmup = min(num_steps - 1, round(stage.warmup_ratio * num_steps))
    if step < warmup:
        return stage.learning_rate * (step + 1) / (warmup + 1)
    return stage.learning_rate * (num_steps - step) / (num_steps - warmup)


def train(
    config: Config,
    stage: str,
    stop: StopFlag | None = None,
    profile: bool = False,
    on_loss: Callable[[RankLost], None] | None = None,
) -> Path:
    """Train a stage, or go on from its newest checkpoint.

    Under a launcher every rank calls this.

    Args:
        config: of the run; the stage's folder is `<output_dir>/<stage>`.
        stage: `stage1` or `stage2`.
        stop: looked at after each step; None lets SIGTERM, SIGINT and SIGUSR2 stop the run.
        profile: write a trace of a few steps of the lead rank into the stage's folder.
        on_loss: called, on a thread of its own, before a rank ends by force because another one is lost.

    Returns:
        The trained artefact, `aspect.safetensors` or `soft_prompt_<dataset>.safetensors`.

    Raises:
        InputError, DataError: see `masp.errors`. StoppedEarly: something asked to stop; a checkpoint was written.
        RankLost: another rank was killed.
    """
    ranks = read_ranks()
    folder = Path(config.output_dir) / stage
    with ExitStack() as stack:
        flag = stack.enter_context(nullcontext(stop) if stop is not None else StopFlag())
        requests = StopRequests(flag, Path(config.output_dir), config.engine.time_limit_min, ranks.is_rank_0)
        lock, in_use = RunLock(folder), False
        if ranks.is_rank_0:
            try:
                stack.enter_context(lock)
            except RunInUse:
                if ranks.size == 1:
                    raise
                in_use = True  # said once the others listen; until then this run's failures are not that one's
        stack.enter_context(nullcontext() if in_use else noting_failure(folder))
        return _in_company(config, stage, ranks, lock, lambda run: run.run(requests, profile), on_loss)


def _in_company(config: Config, stage: str, ranks: Ranks, lock: RunLock, work, on_loss) -> Path:
    """Do the work of a run once its ranks have met; each of them is told if another is lost."""
    if ranks.size == 1:
        return work(_Run(config, stage, ranks, lock))
    device = pick_device(config.engine.device, "engine.device")
    join(ranks, device)
    on_rank_0(ranks, device, lock.take)
    folder = Path(config.output_dir) / stage

    def note(error: RankLost) -> None:
        write_status(folder, RunState.FAILED, error.exit_code, one_line(str(error)))
        if on_loss:
            on_loss(error)

    kept = f"the others end too, and the same command goes on from the last checkpoint in {folder}"
    with Peers(ranks, device, kept, note):
        return work(_Run(config, stage, ranks, lock))


class _Run:
    """One call of `train`: what is set up before the loop, and the loop."""

    def __init__(self, config: Config, name: str, ranks: Ranks, lock: RunLock):
        self.config, self.ranks, self.lock = config, ranks, lock
        self.device = pick_device(config.engine.device, "engine.device")
        self.stage = Stage(config, name, self.device)
        self.name, self.settings, self.folder = name, self.stage.settings, self.stage.folder
        self.num_steps = self.stage.schedule.num_steps
        self.identity = self.stage.identity()
        self.checkpoints = self.folder / "checkpoints"

    def run(self, stop: StopRequests, profile: bool) -> Path:
        checkpoint = load_latest(self.checkpoints, self.identity)
        done, artefact = checkpoint.step if checkpoint else 0, self.stage.artefact
        ended = done == self.num_steps or bool(checkpoint and checkpoint.validation.get("ended"))
        finished = ended and artefact.is_file()
        if self.ranks.size > 1:
            check_agreed([done, int(finished)], f"what stands in {self.folder}", self.device)
        if finished:
            self._finished(done, f"finished already, {done} steps: {artefact}")
            return artefact
        join(self.ranks, self.device)
        on_rank_0(self.ranks, self.device, lambda: self._make_folder(done))
        with plain_memory_errors(self._less_memory()):
            engine, steps, validation = self._build(checkpoint, done)
            last = done if ended else self._loop(engine, steps, validation, done, stop, profile)
            state = engine.state()
        on_rank_0(self.ranks, self.device, lambda: self._export(last, state, validation))
        return artefact

    def _export(self, last: int, state: dict, validation: Validation | None) -> None:
        text = f"{last} steps"
        if validation and validation.best_step not in (None, last):
            state = load_step(self.checkpoints, validation.best_step, self.identity).tensors
            text += f", the best after {validation.best_step}"
        try:
            self.stage.export(state, self.identity)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save raises the last
            raise InputError(
                f"output_dir: {self.stage.artefact} cannot be written: {reason(error)}; the checkpoint is kept, the "
                "same command writes it again"
            ) from None
        self._finished(last, f"{text}: {self.stage.artefact}")

    def _make_folder(self, done: int) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock.take()
            save_config(self.config, self.folder / "config.yaml")
            write_status(self.folder, RunState.RUNNING, step=done, num_steps=self.num_steps)
            cut_key_logs(self.folder, done)
        except OSError as error:
            raise InputError(f"output_dir: {self.folder} cannot be written: {error.strerror}") from None

    def _finished(self, step: int, text: str) -> None:
        if self.ranks.is_rank_0:
            write_status(self.folder, RunState.FINISHED, 0, text, step=step, num_steps=self.num_steps)
            print(f"{self.name}: {text}")

    def _less_memory(self) -> str:
        settings, name = self.settings, self.name
        return (
            f"lower {name}.micro_batch_size, which is {settings.micro_batch_size}, or {name}.micro_batch_tokens, which "
            f"is {settings.micro_batch_tokens}; neither changes the result, and the run goes on from its checkpoint"
        )

    def _build(self, checkpoint: Checkpoint | None, done: int):
        """Engine, steps and validation, as they were after `done` steps."""
        if self.config.engine.num_threads:
            torch.set_num_threads(self.config.engine.num_threads)
        partition = make_partition(self.config.engine, self.settings)
        model, steps, held_out = self.stage.build(self.ranks.rank, self.ranks.size, partition)
        if checkpoint:
            load_trained(model, checkpoint.tensors)
            if self.ranks.is_rank_0:
                print(f"{self.name}: resuming after step {done} of {self.num_steps}", file=sys.stderr)
        engine = Engine(model, self.config.engine, self.settings, self.ranks, self.device)
        if checkpoint:
            engine.load_state(checkpoint.tensors, done, checkpoint.engine)
        if held_out is None:
            return engine, steps, None
        state = checkpoint.validation if checkpoint else {}
        return engine, steps, Validation(self.folder, self.settings, self.config.engine, held_out, state)

    def _loop(
        self, engine, steps: Steps, validation: Validation | None, done: int, stop: StopRequests, profile: bool
    ) -> int:
        """Take the steps after `done`; returns how many were taken in all."""
        settings, num_steps, ranks, lead = self.settings, self.num_steps, self.ranks, self.ranks.is_rank_0
        keys = KeyLog(self.folder, ranks.rank, ranks.size) if settings.log_keys else None
        workers = self.config.engine.num_workers
        pin = self.device == "cuda"
        if validation and validation.due(done):  # a run that was stopped there left it to this one
            validation.measure(engine, done)
            self._save(engine, done, validation)
            if validation.ended:
                return done
        with ExitStack() as stack:
            reader = stack.enter_context(
                ReadAhead(steps, range(done, num_steps), workers, "engine.num_workers", pin_memory=pin)
            )
            log = stack.enter_context(self._log(done)) if lead else None
            keys = stack.enter_context(keys or nullcontext())
            profiler = stack.enter_context(Profile(self.folder) if profile and lead else nullcontext())
            for taken in range(done + 1, num_steps + 1):
                started = time.monotonic()
                step = next(reader)
                wait_s = time.monotonic() - started
                rate = learning_rate(taken - 1, num_steps, settings)
                sums = [*stop.raised(), step.num_tokens, step.flops]
                total = engine.accumulate(step.batches, step.total_weight, sums)
                if not (math.isfinite(total.loss) and total.gradient_is_finite):
                    self._refuse(engine, taken, step, total)
                norm = engine.update(rate)
                *raised, num_tokens, flops = total.sums
                if keys:
                    keys.step(taken, step.epoch, step.own_keys())
                if log is not None:
                    log.step(
                        taken,
                        epoch=taken / self.stage.schedule.steps_per_epoch,
                        loss=total.loss,
                        learning_rate=rate,
                        grad_norm=norm,
                        images=step.num_images,
                        tokens=round(num_tokens),
                        flops=flops,
                        wait_s=wait_s,
                        skipped_steps=engine.skipped_steps,
                    )
                if profiler:
                    profiler.step()
                why = stop.why([count > 0 for count in raised])  # all ranks agree, at a step boundary
                last = taken == num_steps
                better = False
                if validation and validation.due(taken) and (last or not why):  # else the resumed run measures it
                    better = validation.measure(engine, taken)
                ended = last or bool(validation and validation.ended)
                if why or better or ended or taken % settings.checkpoint_every == 0:
                    if keys:
                        keys.flush()
                    self._save(engine, taken, validation)
                if why and not ended:
                    stop.done()
                    raise StoppedEarly(
                        f"{self.name}: stopped {why} after step {taken} of {num_steps}; the same command resumes"
                    )
                if ended:
                    return taken
        return done

    def _log(self, done: int) -> TrainingLog:
        peak = (device_peak(self.device, self.config.engine.precision) or 0.0) * self.ranks.size
        return TrainingLog(self.folder, self.name, self.num_steps, done, self.settings.log_every, self.device, peak)

    def _refuse(self, engine, number: int, step: Step, total: Accumulated) -> None:
        """End all ranks before a step whose loss or gradient is not finite; its samples are left in a file."""
        own = [
            (step.keys[micro][int(image)], bool(value.isfinite()))
            for micro, (batch, losses) in enumerate(zip(step.batches, engine.row_losses, strict=True))
            for image, value in zip(batch.row_image, losses, strict=True)
        ]
        ranks = gather([(key, good) for key, good in own if key is not None])
        keys = [sorted({key for key, _ in part}) for part in ranks]
        suspects = [sorted({key for key, good in part if not good}) for part in ranks]

        def report() -> None:
            raise report_not_finite(self.folder, self.name, number, total.loss, keys, suspects, self.settings)

        on_rank_0(self.ranks, self.device, report)

    def _save(self, engine, step: int, validation: Validation | None) -> None:
        tensors = engine.state()  # a collective
        checkpoint = Checkpoint(
            step, self.identity, tensors, engine.counters(), validation.state() if validation else {}
        )
        on_rank_0(
            self.ranks,
            self.device,
            lambda: save_checkpoint(self.checkpoints, checkpoint, self.settings.keep),
        )
