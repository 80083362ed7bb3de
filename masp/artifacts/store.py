"""Artifacts as files: aspect modules and soft prompts, each with the digests of what it was made from.

Our own format is safetensors with the lineage in its header. The released formats (`aspect.pth`, `soft_prompt_….pt`)
are read and written too; they carry no digests and may come from anyone, so they are loaded without unpickling objects,
checked for shape, and marked `origin: imported`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from masp.artifacts.exported import artifact_file
from masp.artifacts.released_format import (
    MAX_BYTES,
    MAX_QUERIES,
    MAX_SOFT_TOKENS,
    TOKEN,
    checked_tensor,
    read_released_aspects,
    read_released_soft_prompt,
    require_file,
)
from masp.config.schema import Layout
from masp.data.questions import EMOTION
from masp.errors import DataError, InputError
from masp.files.atomic import replacing
from masp.files.regular import open_binary
from masp.files.text import first_line, listed_apart, shortened
from masp.files.typed import Json, decode
from masp.models.trainable import AspectModules, SoftPrompt, to_released

HEADER = "masp"
MAX_HEADER_BYTES = 16 << 20
"""Size limit of a file's header: names and shapes of its tensors, and the lineage."""
VERSION: Literal[1] = 1
ATTENTION = {
    "in_proj_weight": (3, 1),
    "in_proj_bias": (3,),
    "out_proj_weight": (1, 1),
    "out_proj_bias": (1,),
}
"""Shapes of an aspect module's attention tensors, in multiples of the hidden size."""

Kind = Literal["aspect", "soft_prompt"]
Origin = Literal["trained", "imported"]
"""Trained here, or imported from a file that says nothing about itself."""


@dataclass(frozen=True)
class TargetLineage:
    """What a soft prompt was trained to recognize."""

    name: str
    """`target.name`."""
    questions: str
    """Digest of the templates of its question."""
    labels: str | None = None
    """Digest of which image has which label; None for the labels of the dataset."""
    source: str = "dataset"
    """Where they come from, in words: `dataset`, `aspect scene`, `table seasons.csv`."""


@dataclass(frozen=True)
class Lineage:
    """What an artifact was made from, by digest."""

    kind: Kind
    origin: Origin
    digest: str = ""
    """SHA-256 of the tensors: names, shapes and fp32 values, whatever the file's format."""
    aspects: tuple[str, ...] = ()
    """Aspects of the modules; of a soft prompt those that stood in its prompt, in order."""
    aspect_digest: str | None = None
    """Digest of the aspect modules that a soft prompt was trained on."""
    model: dict[str, Json] | None = None
    """Model part of the fingerprint of the features that it was trained on; None if imported."""
    machine: dict[str, Json] | None = None
    """Machine part of that fingerprint."""
    cache: str | None = None
    """Digest of the index of the cache; None where features were computed live."""
    dataset_digest: str | None = None
    """Where features were computed live: the digest of the dataset, as the manifest of a cache has it."""
    dataset: str | None = None
    categories: tuple[str, ...] = ()
    layout: Layout | None = None
    settings: dict[str, Json] = field(default_factory=dict)
    """Seed, steps and hyperparameters, for the record."""
    answers: dict[str, Json] = field(default_factory=dict)
    """Of aspect modules: aspect -> how many of its answers in the cache people, the VLM and pixels gave, and the digest
    of the stored ones; only of aspects with stored answers."""
    target: TargetLineage | None = None
    """Of a soft prompt; None: the emotion, by the labels of the dataset and the questions file."""

    @property
    def target_name(self) -> str:
        """Name of the target."""
        return EMOTION if self.target is None else self.target.name

    def to_json(self) -> dict[str, Any]:
        """As headers and metrics spell it; without keys of what was not there before there was a choice."""
        found = asdict(self)
        if not self.answers:
            del found["answers"]
        if self.target is None:
            del found["target"]
        return found

    @property
    def vision_features(self) -> bool:
        """Whether features were in the prompt that a soft prompt was trained in."""
        return self.settings.get("stage2.vision_features", True) is not False

    @property
    def quantization(self) -> str:
        """`vlm.quantization` that it was trained with."""
        return shortened(str(self.settings.get("vlm.quantization", "none")))  # a file may say anything


@dataclass(frozen=True, kw_only=True)
class _Header(Lineage):
    """The lineage as a file's header holds it."""

    version: Literal[1] = VERSION


def digest_tensors(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes and fp32 values in the order of the names."""
    digest = sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().float().cpu().contiguous()
        digest.update(f"{name}{list(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def aspect_tensors(modules: AspectModules) -> dict[str, Tensor]:
    return {
        name.removeprefix("by_aspect."): p.detach().float().cpu().contiguous() for name, p in modules.named_parameters()
    }


def aspect_digest(modules: AspectModules) -> str:
    """The digest by which a soft prompt knows its aspect modules."""
    return digest_tensors(aspect_tensors(modules))


def safe_name(text: str) -> str:
    """A dataset's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text)


def soft_prompt_file(dataset: str, target: str) -> str:
    """Name of a soft prompt's file: `soft_prompt_<dataset>.safetensors` for the emotion, or else
    `soft_prompt_<dataset>_<target>.safetensors`."""
    return f"soft_prompt_{dataset}{'' if target == EMOTION else f'_{target}'}.safetensors"


def save_aspects(modules: AspectModules, directory: Path, lineage: Lineage) -> Path:
    """Write `aspect.safetensors`, and `aspect.pth` in the released format; returns the first."""
    path = directory / "aspect.safetensors"
    _save(path, aspect_tensors(modules), lineage)
    _save_released(directory / "aspect.pth", to_released(modules))
    return path


def save_soft_prompt(soft_prompt: SoftPrompt, directory: Path, lineage: Lineage) -> Path:
    """Write the file that `soft_prompt_file` names, and `.pt` in the released format; returns the first."""
    path = directory / soft_prompt_file(str(lineage.dataset), lineage.target_name)
    weight = soft_prompt.weight.detach().float().cpu().contiguous()
    _save(path, {"weight": weight}, lineage)
    _save_released(path.with_suffix(".pt"), {TOKEN.format(i): row.clone() for i, row in enumerate(weight)})
    return path


def _save_released(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)  # given a path, torch would write that name, a process number in it, into the file


def export_aspects(path: str, to: Path, hidden_size: int) -> None:
    """Copy aspect modules, all that are in the file; of the released format they become `aspect.safetensors`.

    Args:
        path: File, see `load_aspects`, which has accepted it.
        to: The copy, a safetensors file.
        hidden_size: D of the VLM.

    Raises:
        InputError, DataError: As of `load_aspects`.
        OSError: The copy cannot be written.
    """
    key = "checkpoint.aspect"
    path = artifact_file(path, "aspect", key)
    if path.endswith(".safetensors"):
        _copy(path, to)
    else:
        tensors = read_released_aspects(path)
        names = _aspects_in(tensors)
        checked = _all_checked(tensors, names, hidden_size, f"{key}: {path}")
        _save(to, checked, Lineage("aspect", "imported", aspects=tuple(names)))


def export_soft_prompt(path: str, to: Path, hidden_size: int, layout: str) -> None:
    """Copy a soft prompt; of the released format it becomes a safetensors file that says its layout.

    Args, Raises: As of `export_aspects`.
    """
    key = "checkpoint.soft_prompt"
    path = artifact_file(path, "soft_prompt", key)
    if path.endswith(".safetensors"):
        _copy(path, to)
    else:
        weight = read_released_soft_prompt(path, hidden_size)
        _save(to, {"weight": weight}, Lineage("soft_prompt", "imported", layout=cast(Layout, layout)))


def _copy(path: str, to: Path) -> None:
    with open_binary(path, max_bytes=MAX_BYTES) as source, replacing(to) as temporary, open(temporary, "wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)


def _save(path: Path, tensors: dict[str, Tensor], lineage: Lineage) -> None:
    """Write tensors with their lineage."""
    header = lineage.to_json() | {"digest": digest_tensors(tensors), "version": VERSION}
    if lineage.dataset_digest is None:  # files of training from a cache are what they were before there was another
        del header["dataset_digest"]
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={HEADER: json.dumps(header, sort_keys=True)})


def load_aspects(path: str, aspects: Sequence[str], hidden_size: int) -> tuple[AspectModules, Lineage]:
    """Load aspect modules from either format.

    Args:
        path: File, `aspect.safetensors` or a released `aspect.pth`, or an exported model, see `artifact_file`.
        aspects: Aspects to take, in this order; the file may hold more.
        hidden_size: D of the VLM.

    Raises:
        InputError: No such file, not aspect modules, an aspect is missing, or shapes that do not fit the VLM.
        DataError: The file is damaged.
    """
    key = "checkpoint.aspect"
    path = artifact_file(path, "aspect", key)
    if path.endswith(".safetensors"):
        tensors, lineage = _load(path, key, "aspect")
    else:
        tensors, lineage = read_released_aspects(path), None
    names = _aspects_in(tensors)
    missing = [a for a in aspects if a not in names]
    if missing:
        aspect, has = listed_apart(missing[:1], names)
        raise InputError(f"{key}: {path} holds no aspect '{aspect}'; it has {has}, so give aspects=[…] of these alone")
    what = f"{key}: {path}"
    tensors = _all_checked(tensors, names, hidden_size, what)
    if lineage is None:
        lineage = Lineage("aspect", "imported", digest_tensors(tensors), tuple(names))
    num_queries = len(tensors[f"{aspects[0]}.query"])
    modules = AspectModules(aspects, hidden_size, num_queries)
    for aspect in aspects:
        if len(tensors[f"{aspect}.query"]) != num_queries:
            raise InputError(f"{what}: {aspect!r} has another number of queries than {aspects[0]!r}")
    modules.by_aspect.load_state_dict({n: t for n, t in tensors.items() if n.rpartition(".")[0] in set(aspects)})
    return modules, lineage


def _aspects_in(tensors: dict[str, Any]) -> list[str]:
    """Names of the aspects of a file, sorted."""
    return sorted({name.rpartition(".")[0] for name in tensors})


def _all_checked(tensors: dict[str, Any], aspects: Sequence[str], hidden_size: int, what: str) -> dict[str, Tensor]:
    """The tensors of aspect modules, each with the shape that the VLM asks for."""
    return {name: value for each in aspects for name, value in _checked(tensors, each, hidden_size, what).items()}


def _checked(tensors: dict[str, Any], aspect: str, hidden_size: int, what: str) -> dict[str, Tensor]:
    """The tensors of one aspect module, each with the shape that the VLM asks for."""
    query = tensors.get(f"{aspect}.query")
    if not isinstance(query, Tensor) or query.dim() != 2 or not 1 <= len(query) <= MAX_QUERIES:
        raise InputError(f"{what}: {aspect!r} has no queries [N, {hidden_size}] with N from 1 to {MAX_QUERIES}")
    if query.shape[1] != hidden_size:
        raise InputError(f"{what} has vectors of {query.shape[1]} numbers, but the VLM's hidden size is {hidden_size}")
    found = {f"{aspect}.query": checked_tensor(query, tuple(query.shape), f"{what}: {aspect}.query")}
    for name, multiples in ATTENTION.items():
        name = f"{aspect}.{name}"
        found[name] = checked_tensor(tensors.get(name), tuple(m * hidden_size for m in multiples), f"{what}: {name}")
    return found


def load_soft_prompt(path: str, hidden_size: int) -> tuple[SoftPrompt, Lineage]:
    """Load a soft prompt from either format, or of an exported model, see `artifact_file`.

    Raises:
        InputError: No such file, not a soft prompt, or vectors that do not fit the VLM. DataError: The file is damaged.
    """
    key = "checkpoint.soft_prompt"
    path = artifact_file(path, "soft_prompt", key)
    if path.endswith(".safetensors"):
        tensors, lineage = _load(path, key, "soft_prompt")
        weight = tensors.get("weight")
        if weight is None or weight.dim() != 2 or not 1 <= len(weight) <= MAX_SOFT_TOKENS:
            raise InputError(f"{key}: {path} does not hold a soft prompt")
        if weight.shape[1] != hidden_size:
            raise InputError(
                f"{key}: {path} has vectors of {weight.shape[1]} numbers, but the VLM's hidden size is {hidden_size}"
            )
        return SoftPrompt(checked_tensor(weight, tuple(weight.shape), f"{key}: {path}: weight")), lineage
    weight = read_released_soft_prompt(path, hidden_size)
    return SoftPrompt(weight), Lineage("soft_prompt", "imported", digest_tensors({"weight": weight}))


def check_header(path: str | Path) -> None:
    """Check what a safetensors file claims of its header, which is parsed before anything else is known of it.

    Raises:
        SafetensorError: More than the file holds, or more than `MAX_HEADER_BYTES`.
        OSError: It cannot be read.
    """
    with open_binary(path, max_bytes=MAX_BYTES) as file:
        claimed = int.from_bytes(file.read(8), "little")
        held = file.seek(0, 2) - 8
    if claimed > max(0, min(held, MAX_HEADER_BYTES)):
        raise SafetensorError(
            f"its header claims {claimed:,} bytes; must be at most {MAX_HEADER_BYTES:,}, and the file holds {held:,}"
        )


def _load(path: str, key: str, kind: str) -> tuple[dict[str, Tensor], Lineage]:
    require_file(path, key)
    try:
        check_header(path)
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise DataError(f"{key}: {path} is damaged: {first_line(error)}") from None
    if header is None:
        raise InputError(f"{key}: {path} was not written by MASP: its header holds no lineage")
    lineage = _read_lineage(header, f"{key}: {path}")
    if lineage.kind != kind:
        raise InputError(f"{key}: {path} holds {lineage.kind!r}, not {kind!r}")
    if lineage.digest != digest_tensors(tensors):
        raise DataError(f"{key}: {path} is damaged: its tensors do not match its digest")
    return tensors, lineage


def _read_lineage(header: str, what: str) -> Lineage:
    """The lineage in a file's header, which anyone may have written.

    Raises:
        InputError: It is not one; names the key and the value.
    """
    found = decode(_Header, header.encode(errors="replace"), f"{what}: lineage", error=InputError, surrogates=True)
    return Lineage(**{field.name: getattr(found, field.name) for field in fields(Lineage)})
