"""Checkpoints of a training run: files, not engines. A checkpoint appears whole or not at all.

checkpoints/step-00000050/state.safetensors   trained tensors and moments by name, fp32
checkpoints/step-00000050/state.json          counters and what the run is, sealed with a digest
checkpoints/latest                            the name of the newest; moved last
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from masp.errors import DataError, InputError
from masp.files.atomic import fsync_directory, replacing, write_bytes
from masp.files.sealed import digest_file, read_sealed_object, sealed
from masp.files.text import reason

LATEST = "latest"


@dataclass(frozen=True)
class Checkpoint:
    """A run at a step boundary."""

    step: int
    """Optimizer steps taken."""
    identity: dict
    """What decides the course of the run; a checkpoint of another run is not resumed."""
    tensors: dict[str, Tensor]
    engine: dict = field(default_factory=dict)
    """Counters of the engine, and the loss scale in fp16."""
    validation: dict = field(default_factory=dict)
    """What validation has found so far, and which checkpoint was the best: that one is kept too."""


def step_name(step: int | None) -> str:
    """Name of a checkpoint's folder; empty for None."""
    return "" if step is None else f"step-{step:08d}"


def _holds(path: Path, digest: str) -> bool:
    """Whether a checkpoint is there with tensors of this digest."""
    tensors = path / "state.safetensors"
    return tensors.is_file() and digest_file(tensors) == digest


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint, move `latest` to it, and remove all but the newest `keep` and the best.

    Args:
        folder: the stage's `checkpoints` folder.

    Raises:
        InputError: the disk is full or not writable; what was there before stays.
    """
    name = step_name(checkpoint.step)
    final, temporary = folder / name, folder / f".{name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".step-*.tmp"):  # by a kill while it was written or removed
            shutil.rmtree(left)
        temporary.mkdir()
        tensors = temporary / "state.safetensors"
        with replacing(tensors) as file:
            save_file({n: t.contiguous() for n, t in checkpoint.tensors.items()}, file)
        digest = digest_file(tensors)
        meta = {
            "step": checkpoint.step,
            "identity": checkpoint.identity,
            "tensors": digest,
            "engine": checkpoint.engine,
            "validation": checkpoint.validation,
        }
        if _holds(final, digest):  # only what was measured is new; a folder cannot be replaced in one step
            write_bytes(final / "state.json", sealed(meta))
            shutil.rmtree(temporary)
        else:
            write_bytes(temporary / "state.json", sealed(meta))
            if final.exists():  # `latest` is older: somebody went back, or this one was damaged
                _remove(final)
            os.replace(temporary, final)
        fsync_directory(folder)
        write_bytes(folder / LATEST, name.encode())
        # those of later steps are of a course that was given up by going back
        best = step_name(checkpoint.validation.get("best_step"))
        earlier = sorted(p for p in folder.glob("step-*") if p.name < name and p.name != best)
        later = [p for p in folder.glob("step-*") if p.name > name]
        for path in [*earlier[: max(0, len(earlier) - keep + 1)], *later]:
            _remove(path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(
            f"output_dir: the checkpoint {final} cannot be written: {reason(error)}; earlier ones are kept"
        ) from None
    return final


def _remove(path: Path) -> None:
    """Remove a checkpoint; a kill meanwhile leaves nothing that looks like one, and the next save sweeps it away."""
    hidden = path.with_name(f".{path.name}.old.tmp")
    os.replace(path, hidden)
    shutil.rmtree(hidden)


def load_latest(folder: Path, identity: dict) -> Checkpoint | None:
    """The newest checkpoint of this run; None if there is none.

    Raises:
        InputError: it belongs to a run with other settings; names the first that differs.
        DataError: it is damaged; names an older one to go back to.
    """
    pointer = folder / LATEST
    if not pointer.is_file():
        return None
    return _load(folder, folder / pointer.read_text().strip(), identity)


def load_step(folder: Path, step: int, identity: dict) -> Checkpoint:
    """The checkpoint after a step.

    Raises:
        InputError, DataError: as `load_latest`.
    """
    return _load(folder, folder / step_name(step), identity)


def _load(folder: Path, path: Path, identity: dict) -> Checkpoint:
    pointer = folder / LATEST
    others = sorted(p.name for p in folder.glob("step-*") if p != path)
    remedy = f"write {others[-1]!r} into {pointer} to go back to it" if others else f"delete {folder} to start afresh"
    meta = read_sealed_object(path / "state.json")
    if meta is None:
        raise DataError(f"{pointer} names {path.name}, which is not there or not whole; {remedy}")
    for name in {**identity, **meta["identity"]}:  # in the order of `identity`: settings before what follows from them
        old, new = meta["identity"].get(name), identity.get(name)
        if old != new:
            raise InputError(
                f"{path} is a checkpoint of a run with {name} = {old!r}, but here it is {new!r}; give the old value, "
                "or another output_dir for a new run"
            )
    tensors = path / "state.safetensors"
    try:
        if digest_file(tensors) != meta["tensors"]:
            raise DataError(f"{tensors} is damaged: its digest is not the one in state.json; {remedy}")
        more = meta.get("engine", {}), meta.get("validation", {})
        return Checkpoint(meta["step"], identity, load_file(tensors), *more)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{tensors} cannot be read: {error}; {remedy}") from None
