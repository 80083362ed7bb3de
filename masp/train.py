"""Training: one loop for both stages. Reads the cache, never the encoder."""

from __future__ import annotations

import math
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from masp.checkpoint import Checkpoint, load_latest, save_checkpoint
from masp.config import Config, save_config
from masp.config.schema import StageConfig
from masp.devices import pick_device, plain_memory_errors
from masp.errors import InputError, StoppedEarly
from masp.status import noting_failure, write_status
from masp.stopping import StopFlag

if TYPE_CHECKING:
    from masp.distributed import Ranks
    from masp.steps import Steps

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


def train(config: Config, stage: str, stop: StopFlag | None = None) -> Path:
    """Train a stage, or go on from its newest checkpoint.

    Under a launcher every rank calls this.

    Args:
        config: of the run; the stage's folder is `<output_dir>/<stage>`.
        stage: `stage1` or `stage2`.
        stop: looked at after each step; None lets SIGTERM, SIGINT and SIGUSR2 stop the run.

    Returns:
        The trained artefact, `aspect.safetensors` or `soft_prompt_<dataset>.safetensors`.

    Raises:
        InputError, DataError: see `masp.errors`. StoppedEarly: a signal asked to stop; a checkpoint was written.
    """
    from masp.distributed import read_ranks

    ranks = read_ranks()
    with noting_failure(Path(config.output_dir) / stage):
        return _Run(config, stage, ranks).run(stop)


class _Run:
    """One call of `train`: what is set up before the loop, and the loop."""

    def __init__(self, config: Config, name: str, ranks: Ranks):
        from masp.stage import Stage

        self.config, self.ranks = config, ranks
        self.device = pick_device(config.engine.device, "engine.device")
        self.stage = Stage(config, name, self.device)
        self.name, self.settings, self.folder = name, self.stage.settings, self.stage.folder
        self.num_steps = self.stage.schedule.num_steps
        self.identity = self.stage.identity()

    def run(self, stop: StopFlag | None) -> Path:
        from masp.distributed import check_agreed, join, on_lead

        if self.ranks.size > 1:
            join(self.ranks, self.device)
        checkpoint = load_latest(self.folder / "checkpoints", self.identity)
        done, artefact = checkpoint.step if checkpoint else 0, self.stage.artefact
        finished = done == self.num_steps and artefact.is_file()
        if self.ranks.size > 1:
            check_agreed([done, int(finished)], f"what stands in {self.folder}", self.device)
        if finished:
            self._finished(f"finished already, {done} steps: {artefact}")
            return artefact
        join(self.ranks, self.device)
        on_lead(self.ranks, self.device, lambda: self._make_folder(done))
        with nullcontext(stop) if stop is not None else StopFlag() as flag, plain_memory_errors(self._less_memory()):
            engine, steps = self._build(checkpoint, done)
            self._loop(engine, steps, done, flag)
            state = engine.state()
        on_lead(self.ranks, self.device, lambda: self._export(state))
        return artefact

    def _export(self, state: dict) -> None:
        from safetensors import SafetensorError

        try:
            self.stage.export(state, self.identity)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save raises the last
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise InputError(
                f"output_dir: {self.stage.artefact} cannot be written: {reason}; the checkpoint is kept, the same "
                "command writes it again"
            ) from None
        self._finished(f"{self.num_steps} steps: {self.stage.artefact}")

    def _make_folder(self, done: int) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_config(self.config, self.folder / "config.yaml")
            write_status(self.folder, "running", step=done, num_steps=self.num_steps)
        except OSError as error:
            raise InputError(f"output_dir: {self.folder} cannot be written: {error.strerror}") from None

    def _finished(self, text: str) -> None:
        if self.ranks.is_lead:
            write_status(self.folder, "finished", 0, text, step=self.num_steps, num_steps=self.num_steps)
            print(f"{self.name}: {text}")

    def _less_memory(self) -> str:
        settings, name = self.settings, self.name
        return (
            f"lower {name}.micro_batch_size, which is {settings.micro_batch_size}, or {name}.micro_batch_tokens, which "
            f"is {settings.micro_batch_tokens}; neither changes the result, and the run goes on from its checkpoint"
        )

    def _build(self, checkpoint: Checkpoint | None, done: int):
        """Engine and steps, as they were after `done` steps."""
        import torch

        from masp.engine import Engine, load_trained

        if self.config.engine.num_threads:
            torch.set_num_threads(self.config.engine.num_threads)
        model, steps = self.stage.build(self.ranks.rank, self.ranks.size)
        if checkpoint:
            load_trained(model, checkpoint.tensors)
            if self.ranks.is_lead:
                print(f"{self.name}: resuming after step {done} of {self.num_steps}", file=sys.stderr)
        engine = Engine(model, self.config.engine, self.settings, self.ranks, self.device)
        if checkpoint:
            engine.load_state(checkpoint.tensors, done)
        return engine, steps

    def _loop(self, engine, steps: Steps, done: int, stop: StopFlag) -> None:
        from masp.distributed import any_rank
        from masp.training_log import TrainingLog
        from masp.workers import ReadAhead

        settings, num_steps = self.settings, self.num_steps
        lead = self.ranks.is_lead
        log = TrainingLog(self.folder, self.name, num_steps, done, settings.log_every) if lead else nullcontext()
        reader = ReadAhead(
            steps,
            range(done, num_steps),
            self.config.engine.num_workers,
            "engine.num_workers",
            pin_memory=self.device == "cuda",
        )
        with reader, log:
            for taken in range(done + 1, num_steps + 1):
                started = time.monotonic()
                step = next(reader)
                wait_s = time.monotonic() - started
                rate = learning_rate(taken - 1, num_steps, settings)
                result = engine.step(step.batches, step.total_weight, rate)
                if not math.isfinite(result.loss):
                    raise InputError(
                        f"{self.name}: the loss of step {taken} is {result.loss}; lower {self.name}.learning_rate, "
                        f"which is {settings.learning_rate}, or give another engine.precision"
                    )
                if lead:
                    log.step(
                        taken,
                        epoch=taken / self.stage.schedule.steps_per_epoch,
                        loss=result.loss,
                        learning_rate=rate,
                        grad_norm=result.grad_norm,
                        images=step.num_images,
                        tokens=step.num_tokens * self.ranks.size,
                        wait_s=wait_s,
                    )
                stopping = any_rank(bool(stop), self.device)  # all ranks agree, at a step boundary
                if stopping or taken % settings.checkpoint_every == 0 or taken == num_steps:
                    self._save(engine, taken)
                if stopping and taken < num_steps:
                    raise StoppedEarly(
                        f"{self.name}: stopped on request after step {taken} of {num_steps}; the same command resumes"
                    )

    def _save(self, engine, step: int) -> None:
        from masp.distributed import on_lead

        checkpoint = Checkpoint(step, self.identity, engine.state())  # a collective
        on_lead(
            self.ranks,
            self.device,
            lambda: save_checkpoint(self.folder / "checkpoints", checkpoint, self.settings.keep),
        )
