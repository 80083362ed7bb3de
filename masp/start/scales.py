"""How large the numbers are that the stages train, as far as the VLM is here to be asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from masp.start.sizing import attention_rms
from masp.vlm.cost.counting import embedding_scale_of
from masp.vlm.families import describe, load_config, resolve_directory
from masp.vlm.files.embeddings import embedding_rms

USUAL_RMS = 0.02
"""Standard deviation with which word embeddings are usually drawn before a language model is pretrained
(`initializer_range`), and about what they have afterwards."""
USUAL_HIDDEN_SIZE = 3584
"""D of Qwen2-VL-7B, the VLM of the published work."""


@dataclass(frozen=True)
class Scales:
    """RMS of what each stage trains."""

    stage1: float
    """Of the cross-attention's initial weights."""
    stage2: float
    """Of the word embeddings, as they enter the language model."""
    source: str
    """Where they come from, in words that follow a colon."""
    num_bytes: int | None
    """Bytes of the VLM's weights; None while they are not here."""


def read_scales(path: str) -> Scales:
    """Read the scales of a VLM, without downloading anything.

    Args:
        path: `vlm.path`, a directory or a hub name.

    Raises:
        InputError: It is a directory that does not hold a usable VLM, or neither a directory nor a hub name.
    """
    directory = _present(path)
    if directory is None:
        source = f"{path} is not on this machine yet; usual values are taken, those of a VLM like Qwen2-VL-7B"
        return Scales(attention_rms(USUAL_HIDDEN_SIZE), USUAL_RMS, source, None)
    config = load_config(directory)
    hidden_size = describe(config).hidden_size
    if not any(directory.glob("*.safetensors")) and directory != Path(path).expanduser():
        source = f"the weights of {path} are not on this machine yet; a usual value is taken for its word embeddings"
        return Scales(attention_rms(hidden_size), USUAL_RMS, source, None)
    rms = embedding_rms(directory, hidden_size)
    num_bytes = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    if rms is None:
        source = f"no table of word embeddings is found in {path}; a usual value is taken"
        return Scales(attention_rms(hidden_size), USUAL_RMS, source, num_bytes)
    return Scales(attention_rms(hidden_size), rms * embedding_scale_of(config), f"read from {path}", num_bytes)


def _present(path: str) -> Path | None:
    """The directory of a VLM if it is on this machine; None of a hub name that was not downloaded.

    Raises:
        InputError: See `read_scales`.
    """
    try:
        found = Path(snapshot_download(path, local_files_only=True)) if _is_hub_name(path) else None
    except LocalEntryNotFoundError:
        return None
    return resolve_directory(path) if found is None else found


def _is_hub_name(path: str) -> bool:
    """Whether a path can only be a hub name: no such directory, and of the form `owner/name`."""
    return not Path(path).expanduser().is_dir() and path.count("/") == 1 and not path.startswith((".", "/", "~"))
