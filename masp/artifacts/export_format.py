"""The files that `masp export` writes and whoever gets them reads; they may come from anyone.

config.json                 the settings that inference needs, and no others; JSON is YAML
questions.yaml              the questions; beside it aspects.yaml, the definitions of the aspects, if there are any
aspect.safetensors          the aspect modules, if there are any
soft_prompt.safetensors     the soft prompt, if there is one
metrics.json                its evaluation, if there was one
lineage.json                from what it was made; size and digest of each file above
README.md                   the model card, for people: nothing of it is read

No other file is looked at. None is a pickle, and each has a size limit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from masp.errors import DataError, InputError
from masp.files.fields import Sha256, Size
from masp.files.regular import exists, is_directory, is_file, open_binary, read_bytes
from masp.files.sealed import CHUNK, unseal
from masp.files.text import reason
from masp.files.typed import Json

SCHEME = "hf://"
"""Before the name of a model repository of the hub."""
CONFIG, QUESTIONS, DEFINITIONS, METRICS = "config.json", "questions.yaml", "aspects.yaml", "metrics.json"
ASPECTS, SOFT_PROMPT = "aspect.safetensors", "soft_prompt.safetensors"
RECORD, CARD = "lineage.json", "README.md"

MAX_BYTES = {
    RECORD: 4 << 20,
    CONFIG: 1 << 20,
    QUESTIONS: 1 << 20,
    DEFINITIONS: 1 << 20,
    METRICS: 16 << 20,
    ASPECTS: 64 << 30,
    SOFT_PROMPT: 1 << 30,
}
"""Size limit of each file that is read."""
NAMES = tuple(name for name in MAX_BYTES if name != RECORD)
"""The files that `lineage.json` lists, those that exist."""
REQUIRED = (CONFIG, QUESTIONS)
MAX_CARD_BYTES = 1 << 20
"""Size limit of the model card, where it is sent."""


@dataclass(frozen=True)
class ExportedFile:
    """A file as it was written."""

    bytes: Size
    sha256: Sha256


@dataclass(frozen=True)
class ExportedVlm:
    """The VLM around which it was trained."""

    model_type: str
    weights: str
    """Digest of its weights, as in fingerprints."""
    name: str | None = None
    """On the hub; None if it was a directory of the machine that trained."""
    revision: str | None = None
    """Commit of the hub; None if it is not known."""


@dataclass(frozen=True)
class ExportRecord:
    """`lineage.json`."""

    files: dict[str, ExportedFile]
    vlm: ExportedVlm
    masp: str
    """Version of MASP that wrote it."""
    aspect: dict[str, Json] | None = None
    """Lineage of the aspect modules."""
    soft_prompt: dict[str, Json] | None = None
    """Lineage of the soft prompt."""
    format: Literal[1] = field(default=1)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.files) - set(NAMES)):
            raise ValueError(f"must list files of an exported model only, not {unknown[0]!r}")
        if missing := sorted(set(REQUIRED) - set(self.files)):
            raise ValueError(f"must list {missing[0]}")


def is_exported(directory: Path) -> bool:
    """Whether a path is a directory that `masp export` wrote, damaged or not; a run has neither of these files."""
    return is_directory(directory) and any(is_file(directory / name) for name in (RECORD, CONFIG))


def read_record(directory: Path, where: str) -> ExportRecord:
    """Read `lineage.json`.

    Args:
        directory: Exported directory.
        where: What the user named it by, with the setting, for errors.

    Raises:
        InputError: There is none, or it may not be read.
        DataError: It is damaged.
    """
    if not is_directory(directory):
        raise InputError(f"{where}: no such directory")
    _check_link(directory, RECORD, where)
    data = read_bytes(directory / RECORD, max_bytes=MAX_BYTES[RECORD], key=where)
    if data is None:
        raise InputError(f"{where}: it has no {RECORD}, so `masp export` did not write it")
    return unseal(ExportRecord, data, f"{where}: {RECORD}")


def check_files(directory: Path, record: ExportRecord, names: Iterable[str], where: str) -> None:
    """Compare files with what `lineage.json` says of them.

    Args:
        directory: Exported directory.
        record: Its `lineage.json`.
        names: Files to compare, of those that are listed.
        where: As in `read_record`.

    Raises:
        InputError: A file is there that is not listed, one is a link to elsewhere, or it may not be read.
        DataError: A file is missing or damaged.
    """
    for name in names:
        if name in record.files:
            _check_file(directory, name, record.files[name], where)
        elif exists(directory / name):
            raise InputError(f"{where}: {name} is not listed in {RECORD}: somebody added it; export the run again")


def _check_file(directory: Path, name: str, said: ExportedFile, where: str) -> None:
    _check_link(directory, name, where)
    check_size(name, said.bytes, where)
    digest, size = hashlib.sha256(), 0
    try:
        with open_binary(directory / name, max_bytes=MAX_BYTES[name]) as file:
            while chunk := file.read(CHUNK):
                size += len(chunk)
                digest.update(chunk)
    except FileNotFoundError:
        raise DataError(f"{where}: {name} is missing, which {RECORD} lists") from None
    except OSError as error:
        raise InputError(f"{where}: {name} cannot be read: {reason(error)}") from None
    if size != said.bytes:
        raise DataError(f"{where}: {name} has {size:,} bytes, but {RECORD} says {said.bytes:,}: cut short or damaged")
    if digest.hexdigest() != said.sha256:
        raise DataError(f"{where}: {name} does not match its digest in {RECORD}: it is damaged or was changed")


def check_size(name: str, num_bytes: int, where: str) -> None:
    """Raises InputError if a file is too large to be read."""
    if num_bytes > MAX_BYTES[name]:
        raise InputError(f"{where}: {name} has {num_bytes:,} bytes; must be at most {MAX_BYTES[name]:,}")


def _check_link(directory: Path, name: str, where: str) -> None:
    """Refuse a link to elsewhere; a snapshot in the hub's cache consists of links to its blobs."""
    try:
        if not os.path.islink(directory / name):
            return
        blobs = Path(os.path.realpath(directory)).parent.parent / "blobs"
        target = Path(os.path.realpath(directory / name))
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: {name} cannot be examined: {reason(error)}") from None
    if target.parent != blobs or Path(os.path.realpath(directory)).parent.name != "snapshots":
        raise InputError(f"{where}: {name} is a link to another place, which is not followed; must be a file")
