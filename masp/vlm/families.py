"""Which VLM families MASP can split, and why others are refused."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, StrictDataclassError
from transformers import AutoConfig

from masp.errors import InputError
from masp.files.text import all_lines, first_line

SUPPORTED = ("qwen2_vl", "qwen2_5_vl")
"""`model_type` values whose merged vision features enter the language model only as input embeddings."""

DEEPSTACK = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen3_omni_moe")
"""`model_type` values whose vision features also feed inner layers: replacing them at the input is not the method."""


def resolve_folder(path: str, weights: bool = True) -> Path:
    """Return the local folder of a VLM.

    Args:
        path: a folder, or a hub name such as `Qwen/Qwen2-VL-7B-Instruct` (downloaded once by huggingface_hub).
        weights: have those of a hub name too; without them it is a few megabytes.

    Raises:
        InputError: neither a folder nor a hub name that can be had.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"vlm.path: {folder} has no config.json; give the folder of a VLM or its hub name")
        return folder
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise InputError(f"vlm.path: {path!r} is no folder; give the folder of a VLM or a hub name (owner/name)")
    try:
        patterns = ["*.json", "*.txt", "*.jinja", *(["*.safetensors"] if weights else [])]
        return Path(snapshot_download(path, allow_patterns=patterns))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise InputError(
            f"vlm.path: {path!r} is no folder here and could not be had from the hub: {first_line(error)}"
        ) from None


def load_config(folder: Path):
    """Read a VLM's configuration and refuse a family that MASP cannot split.

    Returns:
        The transformers configuration of the whole VLM.

    Raises:
        InputError: unreadable configuration, or a family that is not supported, named.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, OSError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise InputError(f"vlm.path: {folder}/config.json cannot be read as a VLM: {all_lines(error)}") from None
    family = config.model_type
    if family in DEEPSTACK:
        raise InputError(
            f"vlm.path: {folder} is a {family!r} model, whose vision features also feed inner layers; "
            f"supported families: {', '.join(SUPPORTED)}"
        )
    if family not in SUPPORTED:
        raise InputError(f"vlm.path: {folder} is a {family!r} model; supported families: {', '.join(SUPPORTED)}")
    return config
