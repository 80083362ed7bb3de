"""What a report needs to know of a run's `config.yaml`."""

from __future__ import annotations

import functools
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from masp.config.aspects import SHIPPED
from masp.config.fields import describe_settings, sections
from masp.config.schema import Config, DatasetConfig, Layout, Scoring, Transparency
from masp.config.yaml_text import MAX_FILE_BYTES, parse_yaml
from masp.errors import InputError
from masp.files.regular import is_file, read_bytes
from masp.files.text import shown
from masp.taxonomy import Split


@dataclass(frozen=True)
class RunConfig:
    """Some settings of a run; what the file does not say, or not validly, is None."""

    text: str | None = None
    """The whole file."""
    dataset_name: str | None = None
    dataset_root: Path | None = None
    dataset: DatasetConfig | None = None
    """The whole section; None if a part of it is not valid."""
    aspect_definitions: str = SHIPPED
    """File that defines the aspects."""
    cache_dir: Path | None = None
    split: Split | None = None
    scoring: Scoring | None = None
    layout: Layout | None = None
    vlm: str | None = None
    max_side: int | None = None
    """Longer side to which images were brought first."""
    transparency: Transparency = "white"
    """What became of transparent pixels."""
    has_cache: bool = True
    """Whether features come from a cache, rather than from the encoder wherever they are needed."""
    aspect: Path | None = None
    """File of the aspect modules."""
    soft_prompt: Path | None = None
    """File of the soft prompt."""
    problems: tuple[str, ...] = ()
    """What of these settings is not valid, a line each."""


def find_config(*directories: Path) -> RunConfig:
    """The resolved configuration in the first directory that has one; an empty one without any."""
    path = next((d / "config.yaml" for d in directories if is_file(d / "config.yaml")), None)
    if path is None:
        return RunConfig()
    text = (read_bytes(path, max_bytes=MAX_FILE_BYTES) or b"").decode(errors="replace")
    problems: list[str] = []
    try:
        tree, _ = parse_yaml(text, str(path))
    except InputError as error:  # shown as it is
        tree, problems = None, [str(error)]

    def setting(name: str) -> Any:
        return _setting(tree, name, str(path), problems)

    root, cache_dir = setting("dataset.root"), setting("cache.dir")
    aspect, soft_prompt = setting("checkpoint.aspect"), setting("checkpoint.soft_prompt")
    cache = tree.get("cache") if isinstance(tree, dict) else None
    return RunConfig(
        text=text,
        dataset_name=setting("dataset.name"),
        dataset_root=None if root is None else Path(root),
        dataset=_dataset(tree),
        aspect_definitions=setting("aspect_definitions") or SHIPPED,
        cache_dir=None if cache_dir is None else Path(cache_dir),
        split=setting("evaluate.split"),
        scoring=setting("evaluate.scoring"),
        layout=setting("stage2.layout"),
        vlm=setting("vlm.path"),
        max_side=setting("vlm.max_side"),
        transparency=setting("vlm.transparency") or "white",
        has_cache=not (isinstance(cache, dict) and "dir" in cache and cache["dir"] is None),
        aspect=None if aspect is None else Path(aspect),
        soft_prompt=None if soft_prompt is None else Path(soft_prompt),
        problems=tuple(dict.fromkeys(problems)),
    )


def _dataset(tree: Any) -> DatasetConfig | None:
    try:
        return TypeAdapter(DatasetConfig).validate_python(tree.get("dataset") if isinstance(tree, dict) else None)
    except ValidationError:  # what of it is shown is checked, and named, by itself
        return None


def _setting(tree: Any, name: str, where: str, problems: list[str]) -> Any:
    """A setting of a file, checked as the configuration itself checks it; None if it is not there, or not valid.

    Args:
        tree: Content of the file.
        name: Dotted name.
        where: Name of the file in problems.
        problems: Gets a line if the setting is not valid.
    """
    section, _, key = name.rpartition(".")
    inside = tree.get(section) if section and isinstance(tree, dict) else None
    for part, held in (("the file", tree), (section, inside)):
        if held is not None and not isinstance(held, dict):
            problems.append(f"{where}: {part} = {shown(held)}: must hold 'key: value' lines")
            return None
    value = ((inside if section else tree) or {}).get(key)
    if value is None:
        return None
    try:
        return _adapter(name).validate_python(value)
    except ValidationError:
        problems.append(f"{where}: {name} = {shown(value)}: must be {describe_settings(Config)[name].valid}")
        return None


@functools.cache
def _adapter(name: str) -> TypeAdapter[Any]:
    section, _, key = name.rpartition(".")
    hints = typing.get_type_hints(sections(Config)[section] if section else Config, include_extras=True)
    return TypeAdapter(hints[key], config=ConfigDict(allow_inf_nan=False))
