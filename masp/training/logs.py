"""What training records: `metrics.jsonl`, TensorBoard, a progress bar with loss, rate and time left, and the key log.

The key log says which samples each rank trained on, step by step: the proof that every epoch saw each of them exactly
once.

keys/rank-0.jsonl   {"step", "epoch", "num_ranks", "keys": [sample keys of this rank's part of the step]}
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from masp.files.jsonl import cut_lines
from masp.runtime.devices import peak_memory_bytes

CURVES = "loss learning_rate grad_norm samples_per_second tokens_per_second model_flops_utilisation".split()
"""What TensorBoard shows."""


class TrainingLog:
    """Logs of the lead rank. Use as a context manager.

    Args:
        folder: of the stage.
        stage: `stage1` or `stage2`, for the bar.
        num_steps: of the whole run.
        first_step: steps already taken by an earlier run.
        every: steps between two lines.
        device: `cpu` or `cuda`, for the peak of memory.
        peak_flops: of all ranks together, FLOP/s; 0 where it is not known, and no utilisation is logged.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        num_steps: int,
        first_step: int,
        every: int,
        device: str = "cpu",
        peak_flops: float = 0.0,
    ):
        from torch.utils.tensorboard import SummaryWriter

        self.every, self.num_steps, self.device, self.peak_flops = every, num_steps, device, peak_flops
        path = folder / "metrics.jsonl"
        cut_lines(path, first_step)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        self._board = SummaryWriter(folder / "tensorboard", purge_step=first_step + 1)
        pause_s = 0.1 if sys.stderr.isatty() else 30.0  # a log file is no screen
        self._bar = tqdm(total=num_steps, initial=first_step, desc=stage, unit="step", mininterval=pause_s)
        self._reset()

    def _reset(self) -> None:
        self._start, self._steps, self._loss = time.monotonic(), 0, 0.0
        self._images, self._tokens, self._flops, self._wait_s = 0, 0, 0.0, 0.0

    def step(
        self,
        step: int,
        *,
        epoch: float,
        loss: float,
        learning_rate: float,
        grad_norm: float,
        images: int,
        tokens: int,
        wait_s: float,
        flops: float = 0.0,
        skipped_steps: int = 0,
    ) -> None:
        """Note one step; every so many steps, write a line with means over them.

        Args:
            step: steps taken so far, this one included.
            epoch: fraction of epochs done.
            images: of the global batch.
            tokens: run through the language model by all ranks.
            wait_s: seconds that the step waited for data.
            flops: that the step cost all ranks together.
            skipped_steps: lost to fp16's loss scale since the run began.
        """
        self._steps += 1
        self._loss += loss
        self._images += images
        self._tokens += tokens
        self._flops += flops
        self._wait_s += wait_s
        self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        self._bar.update()
        if step % self.every and step != self.num_steps:
            return
        elapsed_s = time.monotonic() - self._start
        entry = {
            "step": step,
            "epoch": round(epoch, 6),
            "loss": self._loss / self._steps,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "samples_per_second": self._images / elapsed_s,
            "tokens_per_second": self._tokens / elapsed_s,
            "data_wait_fraction": self._wait_s / elapsed_s,
            "tflops_per_second": self._flops / elapsed_s / 1e12,
            "model_flops_utilisation": self._flops / elapsed_s / self.peak_flops if self.peak_flops else None,
            "peak_memory_gb": peak_memory_bytes(self.device) / 1e9,
            "time": time.time(),
        }
        if skipped_steps:
            entry["skipped_steps"] = skipped_steps
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        for name in CURVES:
            if entry[name] is not None:
                self._board.add_scalar(name, entry[name], step)
        self._reset()

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._file.close()
        self._board.close()


FOLDER = "keys"


def cut_key_logs(folder: Path, step: int) -> None:
    """Drop what all ranks of an earlier run, of any number, noted after `step`; the lead does so at the start."""
    for path in (folder / FOLDER).glob("rank-*.jsonl"):
        cut_lines(path, step)


class KeyLog:
    """One rank's lines. Use as a context manager.

    Args:
        folder: of the stage.
        rank: this process.
        num_ranks: world size.
    """

    def __init__(self, folder: Path, rank: int, num_ranks: int):
        self.num_ranks = num_ranks
        path = folder / FOLDER / f"rank-{rank}.jsonl"
        path.parent.mkdir(exist_ok=True)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed in __exit__

    def step(self, step: int, epoch: int, keys: Sequence[str]) -> None:
        """Note an optimizer step that was taken.

        Args:
            step: from 1.
            epoch: from 0.
            keys: of this rank's samples, padding left out; empty where all of it was padding.
        """
        line = {"step": step, "epoch": epoch, "num_ranks": self.num_ranks, "keys": list(keys)}
        self._file.write(json.dumps(line) + "\n")

    def flush(self) -> None:
        """Hand lines to the system: before a checkpoint, so that none up to it is lost when the process is killed."""
        self._file.flush()

    def __enter__(self) -> KeyLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_key_logs(folder: Path) -> list[dict]:
    """The lines of all ranks, by step, then rank."""
    lines = []
    for path in sorted((folder / FOLDER).glob("rank-*.jsonl")):
        rank = int(path.stem.removeprefix("rank-"))
        lines += [{"rank": rank, **json.loads(line)} for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(lines, key=lambda line: (line["step"], line["rank"]))
