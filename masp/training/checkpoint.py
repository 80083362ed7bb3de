"""Checkpoints of a training run: files, not engines. A checkpoint appears whole or not at all.

checkpoints/step-00000050/state.safetensors   trained tensors and moments by name, fp32
checkpoints/step-00000050/state.json          counters and the identity of the run, sealed with a digest
checkpoints/latest                            the name of the newest; moved last
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from masp.artifacts.store import check_header
from masp.errors import DataError, InputError
from masp.files.atomic import fsync_directory, replacing, write_bytes
from masp.files.fields import one_of
from masp.files.regular import is_file, read_bytes
from masp.files.sealed import digest_file, read_sealed, sealed
from masp.files.text import reason, shown_apart
from masp.files.typed import Json

LATEST = "latest"
TENSORS, META = "state.safetensors", "state.json"
_NAME = re.compile(r"step-[0-9]{8,}")


ScalerState = Annotated[str, one_of(("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis"))]
"""What is kept of DeepSpeed's dynamic loss scaler; resuming sets these attributes of it, and no others."""


@dataclass(frozen=True)
class EngineCounters:
    """What the engine counts, beside tensors."""

    skipped_steps: int = 0
    """Steps lost to fp16's loss scale since the run began."""
    loss_scale: dict[ScalerState, int | float] | None = None
    """State of the loss scaler by the names that DeepSpeed gives it; None but in fp16."""
    taken: dict[str, int] | None = None
    """Steps that each part has taken; None in checkpoints from before a part could be left out: each has taken all."""
    dropped: dict[str, int] | None = None
    """Restart of stage 1 -> the step that it could not take; None if there is none."""


@dataclass(frozen=True)
class ValidationState:
    """What validation has found so far, and which checkpoint was the best: that one is kept too."""

    best_loss: float | None = None
    best_step: int | None = None
    num_worse: int = 0
    """Measurements since the best."""
    measured: int = 0
    """Step of the last measurement; 0 before the first."""
    ended: bool = False
    """Whether the loss has not fallen for so long that training ends."""


@dataclass(frozen=True)
class RestartState:
    """What validation has found so far of a restart of stage 1."""

    total: ValidationState = field(default_factory=ValidationState)
    """Of its loss over all aspects, as in a run of its own."""
    by_aspect: dict[str, float] = field(default_factory=dict)
    """Held-out loss of each aspect after its best step; aspects without a held-out answer are left out."""


@dataclass(frozen=True)
class Checkpoint:
    """A run at a step boundary."""

    step: int
    """Number of optimizer steps taken."""
    identity: dict[str, Any]
    """What decides the course of the run; a checkpoint of another run is not resumed."""
    tensors: dict[str, Tensor]
    """Trained tensors and their moments by name, fp32."""
    engine: EngineCounters = field(default_factory=EngineCounters)
    validation: ValidationState | None = None
    """None without validation, and with restarts."""
    restarts: tuple[RestartState, ...] = ()
    """What validation has found of each restart of stage 1; empty where there is one."""

    @property
    def best_steps(self) -> frozenset[int]:
        """The step with the lowest held-out loss so far, of each restart."""
        states = [state.total for state in self.restarts] or ([self.validation] if self.validation else [])
        return frozenset(state.best_step for state in states if state.best_step is not None)

    @property
    def ended(self) -> bool:
        """Whether validation has ended the run."""
        if self.restarts:
            dropped = self.engine.dropped or {}
            return all(state.total.ended for n, state in enumerate(self.restarts) if str(n) not in dropped)
        return self.validation is not None and self.validation.ended


_OF_INPUTS = {
    "cache": "that is the digest of the cache's index, which other images or features change (`masp cache extend`); it "
    "is None with cache.dir=null: restore the old cache",
    "dataset": "that is the digest of the images and their labels: restore the old ones",
    "vlm": "that is the digest of the VLM and of how it makes features: restore the old one",
    "categories": "they come from the cache: restore the old one",
    "questions": "that is the digest of the questions file: restore the old file",
    "dataset.subset": "those are the images that training takes, which other labels of the target change: give the old "
    "labels",
    "checkpoint.aspect": "that is the digest of the aspect modules: name the old file",
}
"""What to do about keys of an identity that are not settings, but follow from what a run builds on."""


@dataclass(frozen=True)
class _Meta:
    """The content of `state.json`."""

    step: int
    identity: dict[str, Json]
    tensors: str
    """Digest of `state.safetensors`."""
    engine: EngineCounters = field(default_factory=EngineCounters)
    validation: ValidationState = field(default_factory=ValidationState)
    """An empty object without validation."""
    restarts: tuple[RestartState, ...] = ()


def step_name(step: int) -> str:
    """Name of a checkpoint's directory."""
    return f"step-{step:08d}"


def save_checkpoint(directory: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint, move `latest` to it, and remove all but the newest `keep` and the best.

    Args:
        directory: The stage's `checkpoints` directory.
        checkpoint: Checkpoint to write.
        keep: Number of the newest that stay.

    Raises:
        InputError: The disk is full or not writable; what was there before stays.
    """
    name = step_name(checkpoint.step)
    final, temporary = directory / name, directory / f".{name}.tmp"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for left in directory.glob(".step-*.tmp"):  # by a kill while it was written or removed
            shutil.rmtree(left)
        temporary.mkdir()
        with replacing(temporary / TENSORS) as file:
            save_file({n: t.contiguous() for n, t in checkpoint.tensors.items()}, file)
        digest = digest_file(temporary / TENSORS)
        meta = sealed(_to_json(checkpoint, digest))
        if _holds(final, digest):  # only what was measured is new; a directory cannot be replaced in one step
            write_bytes(final / META, meta)
            shutil.rmtree(temporary)
        else:
            write_bytes(temporary / META, meta)
            if final.exists():  # `latest` is older: somebody went back, or this one was damaged
                _remove(final)
            os.replace(temporary, final)
        fsync_directory(directory)
        write_bytes(directory / LATEST, name.encode())
        # those of later steps are of a course that was given up by going back
        best = {step_name(step) for step in checkpoint.best_steps}
        earlier = sorted(p for p in directory.glob("step-*") if p.name < name and p.name not in best)
        later = [p for p in directory.glob("step-*") if p.name > name]
        for path in [*earlier[: max(0, len(earlier) - keep + 1)], *later]:
            _remove(path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(
            f"output_dir: the checkpoint {final} cannot be written: {reason(error)}; earlier ones are kept"
        ) from None
    return final


def _to_json(checkpoint: Checkpoint, digest: str) -> dict[str, Any]:
    """The content of `state.json`."""
    engine, validation = checkpoint.engine, checkpoint.validation
    scale = {} if engine.loss_scale is None else {"loss_scale": dict(engine.loss_scale)}
    taken = {} if engine.taken is None else {"taken": dict(engine.taken)}
    dropped = {} if engine.dropped is None else {"dropped": dict(engine.dropped)}
    restarts = {"restarts": [asdict(state) for state in checkpoint.restarts]} if checkpoint.restarts else {}
    return {
        "step": checkpoint.step,
        "identity": checkpoint.identity,
        "tensors": digest,
        "engine": {"skipped_steps": engine.skipped_steps, **scale, **taken, **dropped},
        "validation": {} if validation is None else asdict(validation),
        **restarts,
    }


def _holds(path: Path, digest: str) -> bool:
    """Whether a checkpoint is there with tensors of this digest."""
    return is_file(path / TENSORS) and digest_file(path / TENSORS) == digest


def _remove(path: Path) -> None:
    """Remove a checkpoint; a kill meanwhile leaves nothing that looks like one, and the next save sweeps it away."""
    hidden = path.with_name(f".{path.name}.old.tmp")
    os.replace(path, hidden)
    shutil.rmtree(hidden)


def latest_name(directory: Path) -> str | None:
    """Name of the newest checkpoint; None if there is none.

    Args:
        directory: The stage's `checkpoints` directory.

    Raises:
        InputError: `latest` may not be read.
        DataError: It does not hold the name of a checkpoint; names one to go back to.
    """
    pointer = directory / LATEST
    data = read_bytes(pointer, key="output_dir")
    if data is None:
        return None
    name = data.decode(errors="replace").strip()
    if not _NAME.fullmatch(name):
        raise DataError(f"{pointer} is damaged: it does not hold the name of a checkpoint; {_remedy(directory)}")
    return name


def load_latest(directory: Path, identity: dict[str, Any]) -> Checkpoint | None:
    """Load the newest checkpoint of this run; None if there is none.

    Args:
        directory: The stage's `checkpoints` directory.
        identity: What decides the course of the run.

    Raises:
        InputError: It belongs to a run with other settings; names the first that differs.
        DataError: It is damaged; names an older one to go back to.
    """
    name = latest_name(directory)
    return None if name is None else _load(directory, name, identity)


def check_latest(directory: Path, identity: dict[str, Any]) -> None:
    """Check that the newest checkpoint, if there is one, is of this run; its tensors are not read.

    Raises:
        InputError, DataError: As `load_latest`.
    """
    name = latest_name(directory)
    if name is not None:
        _read_meta(directory, name, identity)


def load_step(directory: Path, step: int, identity: dict[str, Any]) -> Checkpoint:
    """Load the checkpoint after a step.

    Raises:
        InputError, DataError: As `load_latest`.
    """
    return _load(directory, step_name(step), identity)


def _load(directory: Path, name: str, identity: dict[str, Any]) -> Checkpoint:
    path = directory / name
    remedy = _remedy(directory, name)
    meta = _read_meta(directory, name, identity)
    tensors = path / TENSORS
    try:
        if digest_file(tensors) != meta.tensors:
            raise DataError(f"{tensors} is damaged: its digest is not the one in {META}; {remedy}")
        check_header(tensors)
        validation = None if meta.validation == ValidationState() else meta.validation
        return Checkpoint(meta.step, identity, load_file(tensors), meta.engine, validation, meta.restarts)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{tensors} cannot be read: {reason(error)}; {remedy}") from None


def _read_meta(directory: Path, name: str, identity: dict[str, Any]) -> _Meta:
    """The counters of a checkpoint, which must be of this run."""
    path = directory / name
    remedy = _remedy(directory, name)
    meta = read_sealed(_Meta, path / META)
    if meta is None:
        raise DataError(f"{directory / LATEST} names {name}, which is not there or not whole; {remedy}")
    # in the order of `identity`: settings before what follows from them
    for key in sorted({**identity, **meta.identity}, key=lambda key: key == "num_steps"):
        old, new = meta.identity.get(key), identity.get(key)
        if old != new:
            there, here = shown_apart(repr(old), repr(new), 200)
            raise InputError(
                f"{path} is a checkpoint of a run with {key} = {there}, but here it is {here}; "
                f"{_OF_INPUTS.get(key, 'give the old value')}, or another output_dir for a new run"
            )
    return meta


def _remedy(directory: Path, damaged: str = "") -> str:
    """What to do where a checkpoint cannot be used."""
    others = sorted(path.name for path in directory.glob("step-*") if path.name != damaged)
    if others:
        return f"write {others[-1]!r} into {directory / LATEST} to go back to it"
    return f"delete {directory} to start afresh"
