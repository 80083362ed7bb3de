"""Lineage: what an artifact was made from, by digest, and whether two artifacts belong together."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from torch import Tensor

from masp.cache.fingerprint import differences
from masp.errors import InputError
from masp.models.aspect_modules import AspectModules


@dataclass(frozen=True)
class Lineage:
    """Where an artefact comes from."""

    kind: str
    """`aspect` or `soft_prompt`."""
    origin: str
    """`trained` here, or `imported` from a file that says nothing about itself."""
    digest: str = ""
    """SHA-256 of the tensors: names, shapes and fp32 values, whatever the file's format."""
    aspects: tuple[str, ...] = ()
    """Aspects of the modules; for a soft prompt those that stood in its prompt, in order."""
    aspect_digest: str | None = None
    """The aspect modules that a soft prompt was trained on."""
    model: dict[str, Any] | None = None
    """Model part of the fingerprint of the cache that it was trained on; None if imported."""
    machine: dict[str, Any] | None = None
    """Machine part of that fingerprint."""
    cache: str | None = None
    """Digest of that cache's index."""
    dataset: str | None = None
    categories: tuple[str, ...] = ()
    layout: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """Seed, steps and hyperparameters, for the record."""


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


def check_lineage(lineage: Lineage, key: str, path: str, model: dict[str, Any], modules: Lineage | None = None) -> None:
    """Refuse an artefact that was trained around another VLM, or with other aspect modules.

    Args:
        lineage: of the artefact.
        key: configuration key that named it.
        path: its file.
        model: model part of the fingerprint in use.
        modules: lineage of the aspect modules in use, for a soft prompt; None: there are none.

    Raises:
        InputError: names the field and both values.
    """
    if lineage.origin == "imported":
        return
    differing = differences(lineage.model or {}, model)
    if differing:
        name, old, new = differing[0]
        raise InputError(f"{key}: {path} was trained with {name} = {old!r}, but here it is {new!r}")
    if lineage.kind == "soft_prompt":
        have = modules.digest if modules else None
        if lineage.aspect_digest != have:
            raise InputError(
                f"{key}: {path} was trained with aspect modules {_short(lineage.aspect_digest)} "
                f"({', '.join(lineage.aspects) or 'none'}), but here they are {_short(have)}; "
                "give the ones it was trained with as checkpoint.aspect"
            )


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]


def safe_name(text: str) -> str:
    """A dataset's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text)
