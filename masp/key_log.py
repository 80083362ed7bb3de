"""Which samples each rank trained on, step by step: the proof that every epoch saw each of them exactly once.

keys/rank-0.jsonl   {"step", "epoch", "num_ranks", "keys": [sample keys of this rank's part of the step]}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from masp.files.jsonl import cut_lines

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
