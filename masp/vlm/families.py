"""Which VLM families MASP can split, and why others are refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoConfig

from masp.errors import InputError, MaspError
from masp.files.regular import is_directory, is_file
from masp.files.text import all_lines, first_line, shown
from masp.vlm.directory import check_directory

SUPPORTED = ("qwen2_vl", "qwen2_5_vl")
"""`model_type` values whose merged vision features enter the language model only as input embeddings."""

DEEPSTACK = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen3_omni_moe")
"""`model_type` values whose vision features also feed inner layers: replacing them at the input is not the method."""


@contextmanager
def plain_vlm_errors(what: str) -> Iterator[None]:
    """Turn whatever a library raises over the files of a VLM into one line for the user.

    A directory that somebody downloaded may hold anything, and nothing lists what transformers, tokenizers,
    safetensors and a chat template raise then.

    Args:
        what: What cannot be done, naming the directory; the first line of the cause follows it.

    Raises:
        InputError: Instead of what was raised.
    """
    try:
        yield
    except MaspError:
        raise
    except Exception as error:
        reason = f"no {error}" if isinstance(error, KeyError) else first_line(error)  # whose text is the key alone
        if reason.endswith(":"):
            reason = all_lines(error)
        raise InputError(f"vlm.path: {what}: {reason}") from None


def resolve_directory(path: str, weights: bool = True) -> Path:
    """The local directory of a VLM.

    Args:
        path: A directory, or a hub name such as `Qwen/Qwen2-VL-7B-Instruct` (downloaded once by huggingface_hub).
        weights: Download those of a hub name too; without them it is a few megabytes.

    Raises:
        InputError: Neither a directory nor a hub name that can be downloaded.
    """
    directory = Path(path).expanduser()
    if is_directory(directory, key="vlm.path"):
        if not is_file(directory / "config.json", key="vlm.path"):
            raise InputError(f"vlm.path: {directory} has no config.json; give the directory of a VLM or its hub name")
        return directory
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise InputError(f"vlm.path: {path!r} is not a directory; give that of a VLM, or a hub name (owner/name)")
    with plain_vlm_errors(f"{path!r} is not a directory here and cannot be downloaded from the hub"):
        patterns = ["*.json", "*.txt", "*.jinja", *(["*.safetensors"] if weights else [])]  # no code, no pickles
        return Path(snapshot_download(path, allow_patterns=patterns))


def load_config(directory: Path) -> Any:
    """Read a VLM's configuration and refuse a family that MASP cannot split.

    Args:
        directory: Directory of the VLM.

    Returns:
        The transformers configuration of the whole VLM; transformers does not type its fields.

    Raises:
        InputError: The configuration cannot be read, or the family is not supported; names it.
    """
    family = check_directory(directory).get("model_type")
    if family in DEEPSTACK:
        raise InputError(
            f"vlm.path: {directory} is a {family!r} model, whose vision features also feed inner layers; "
            f"supported families: {', '.join(SUPPORTED)}"
        )
    if family not in SUPPORTED:
        raise InputError(
            f"vlm.path: {directory}/config.json: model_type = {shown(family)}; supported families: "
            f"{', '.join(SUPPORTED)}"
        )
    with plain_vlm_errors(f"{directory}/config.json cannot be read as a VLM"):
        return AutoConfig.from_pretrained(directory, trust_remote_code=False)
