"""What a report needs to know of a run's `config.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from masp.config.schema import DatasetConfig, Transparency
from masp.config.yaml_text import MAX_FILE_BYTES, parse_yaml
from masp.errors import InputError
from masp.files.regular import is_file, read_bytes


@dataclass(frozen=True)
class RunConfig:
    """Some settings of a run; what the file does not say, or not validly, is None."""

    text: str | None = None
    """The whole file."""
    dataset_name: str | None = None
    dataset_root: Path | None = None
    dataset: DatasetConfig | None = None
    """The whole section; None if a part of it is not valid."""
    cache_dir: Path | None = None
    split: str | None = None
    scoring: str | None = None
    layout: str | None = None
    vlm: str | None = None
    max_side: int | None = None
    """Longer side to which images were brought first."""
    transparency: Transparency = "white"
    """What became of transparent pixels."""
    aspect: Path | None = None
    """File of the aspect modules."""
    soft_prompt: Path | None = None
    """File of the soft prompt."""


def find_config(*directories: Path) -> RunConfig:
    """The resolved configuration in the first directory that has one; an empty one without any."""
    path = next((d / "config.yaml" for d in directories if is_file(d / "config.yaml")), None)
    if path is None:
        return RunConfig()
    text = (read_bytes(path, max_bytes=MAX_FILE_BYTES) or b"").decode(errors="replace")
    try:
        tree, _ = parse_yaml(text, str(path))
    except InputError:  # shown as it is
        tree = None
    root, cache_dir = _text(tree, "dataset", "root"), _text(tree, "cache", "dir")
    aspect, soft_prompt = _text(tree, "checkpoint", "aspect"), _text(tree, "checkpoint", "soft_prompt")
    max_side, transparency = _at(tree, "vlm", "max_side"), _at(tree, "vlm", "transparency")
    return RunConfig(
        text=text,
        dataset_name=_text(tree, "dataset", "name"),
        dataset_root=None if root is None else Path(root),
        dataset=_dataset(tree),
        cache_dir=None if cache_dir is None else Path(cache_dir),
        split=_text(tree, "evaluate", "split"),
        scoring=_text(tree, "evaluate", "scoring"),
        layout=_text(tree, "stage2", "layout"),
        vlm=_text(tree, "vlm", "path"),
        max_side=max_side if type(max_side) is int and max_side > 0 else None,
        transparency="drop" if transparency == "drop" else "white",
        aspect=None if aspect is None else Path(aspect),
        soft_prompt=None if soft_prompt is None else Path(soft_prompt),
    )


def _dataset(tree: Any) -> DatasetConfig | None:
    try:
        return TypeAdapter(DatasetConfig).validate_python(_at(tree, "dataset"))
    except ValidationError:  # from another version of MASP; the file itself is shown
        return None


def _at(tree: Any, *key: str) -> Any:
    for part in key:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _text(tree: Any, *key: str) -> str | None:
    value = _at(tree, *key)
    return value if isinstance(value, str) and "\0" not in value else None
