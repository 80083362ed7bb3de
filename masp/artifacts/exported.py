"""Exported models, from a directory or the hub: which settings they may set, and where their artifacts are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from masp.artifacts.export_format import (
    ASPECTS,
    CONFIG,
    DEFINITIONS,
    MAX_BYTES,
    NAMES,
    QUESTIONS,
    SCHEME,
    SOFT_PROMPT,
    ExportRecord,
    check_files,
    read_record,
)
from masp.artifacts.model_hub import fetch, parse_address
from masp.errors import InputError
from masp.files.json_text import parse_json
from masp.files.regular import is_directory, read_bytes
from masp.files.text import shown

NONE = "none"
"""Value of `checkpoint.aspect` and `checkpoint.soft_prompt` that does without."""
OWN_VLM = "masp/demo/tiny_vlm/weights"
"""The VLM that comes with MASP, so every machine has it."""

SETTINGS = (
    "questions", "aspect_definitions", "aspects",
    "vlm.path", "vlm.attention", "vlm.min_pixels", "vlm.max_pixels", "vlm.max_side", "vlm.transparency",
    "vlm.quantization",
    "dataset.name", "dataset.categories", "target.name", "target.categories",
    "cache.dir", "cache.dtype", "extract.batch_tokens", "extract.num_threads", "engine.precision",
    "stage1.layout", "stage2.vision_features", "annotate.max_new_tokens",
    "checkpoint.aspect", "checkpoint.soft_prompt", "checkpoint.layout",
)  # fmt: skip
"""All that a prediction or an explanation depends on; `config.json` may set these and nothing else."""

_FILES = {"aspect": ASPECTS, "soft_prompt": SOFT_PROMPT}
_WORDS = {"aspect": "aspect modules", "soft_prompt": "soft prompt"}


@dataclass(frozen=True)
class Exported:
    """An exported model whose files have been compared with its `lineage.json`."""

    where: str
    """As the user named it."""
    directory: Path
    record: ExportRecord

    def path(self, name: str) -> Path | None:
        """One of its files; None if it has no such file."""
        return self.directory / name if name in self.record.files else None


def open_exported(source: str, key: str, names: Sequence[str] = NAMES) -> Exported:
    """Open an exported model.

    Args:
        source: Its directory, or `hf://owner/name[@revision]`, which is fetched first.
        key: Setting or argument that names it, for errors.
        names: Files that are wanted, those that exist.

    Raises:
        InputError: There is none, it is not what `masp export` writes, or the hub refuses.
        DataError: A file is missing or damaged.
    """
    directory = fetch(source, key, names) if source.startswith(SCHEME) else Path(source).expanduser()
    where = f"{key}: {source}" if key else source
    record = read_record(directory, where)
    check_files(directory, record, names, where)
    return Exported(where, directory, record)


def artifact_file(path: str, kind: Literal["aspect", "soft_prompt"], key: str) -> str:
    """The file of an artifact that a setting names: itself, or in the exported model that it names.

    Raises:
        InputError, DataError: As of `open_exported`; or the exported model has no such artifact.
    """
    if not path.startswith(SCHEME) and not is_directory(Path(path), key=key):
        return path
    name = _FILES[kind]
    found = open_exported(path, key, [name]).path(name)
    if found is None:
        raise InputError(f"{key}: {path} has no {_WORDS[kind]}; name another one, or give {key}={NONE}")
    return str(found)


def exported_settings(exported: Exported) -> dict[str, Any]:
    """The settings of `config.json` by dotted name: those of inference, none of which names a file elsewhere.

    Their types and ranges are not checked; the configuration does that.

    Raises:
        InputError: It is not JSON, sets something else, or names a file that is not the exported model's own.
    """
    place = f"{exported.where}: {CONFIG}"
    data = read_bytes(exported.directory / CONFIG, max_bytes=MAX_BYTES[CONFIG]) or b""
    try:
        tree = parse_json(data)
    except ValueError as error:
        raise InputError(f"{place}: not valid JSON: {error}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{place}: must be an object of settings")
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    for name in found:
        if name not in SETTINGS or (name in tree and "." in name):
            raise InputError(f"{place}: {shown(name)} is not a setting of inference; it may set {', '.join(SETTINGS)}")
    own = {
        "questions": QUESTIONS,
        "aspect_definitions": exported.path(DEFINITIONS) and DEFINITIONS,
        "checkpoint.aspect": ASPECTS if exported.path(ASPECTS) else NONE,
        "checkpoint.soft_prompt": SOFT_PROMPT if exported.path(SOFT_PROMPT) else NONE,
        "cache.dir": None,
    }
    for name, value in own.items():
        if found.get(name) != value:
            raise InputError(
                f"{place}: {name} = {shown(found.get(name))}: must be {shown(value)}, as the files beside it are called"
            )
    if found.get("aspects") and not exported.path(DEFINITIONS):
        raise InputError(
            f"{place}: aspects = {shown(found['aspects'])}: {DEFINITIONS}, which would define them, is missing"
        )
    vlm = found.get("vlm.path")
    if isinstance(vlm, str) and vlm.startswith(SCHEME):
        parse_address(vlm, f"{place}: vlm.path")
    elif vlm not in (None, OWN_VLM):
        raise InputError(
            f"{place}: vlm.path = {shown(vlm)}: must be {SCHEME}owner/name of the hub or be left out, never a directory"
        )
    return found
