"""What features depend on: the model part, compared on every read, and the machine part, when new meets old."""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import features

from masp.errors import InputError
from masp.files.atomic import write_bytes
from masp.files.sealed import digest_file, digest_of

FORMAT_VERSION = 1
"""Of the cache's files; features of another version are never read."""

VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "architectures")
"""Entries of a VLM's config.json that say nothing about its features."""

PIXEL_LIMITS = ("size", "min_pixels", "max_pixels")
"""Entries of the image processor's file that `min_pixels` and `max_pixels` of the fingerprint stand for."""

SAY_SO_BYTES = 4 << 30
"""Digesting more than this takes long enough to tell the user."""

Fields = dict[str, Any]
"""Flat: the name of a field -> a JSON value."""


def model_fields(folder: Path, vlm, dtype: str) -> Fields:
    """The model part of the fingerprint.

    Tokenizer, chat template and questions have no part in it: no feature depends on them. The digest covers all
    weights, also the language model's, so that what is trained on a cache is bound to one VLM.

    Args:
        folder: the VLM's local folder.
        vlm: the configuration's `vlm` (attention, min_pixels, max_pixels, max_side).
        dtype: `cache.dtype`.

    Raises:
        InputError: the folder lacks a file.
    """
    processor = _processor_settings(folder)
    shortest, longest = _pixel_limits(processor)
    for name in PIXEL_LIMITS:
        processor.pop(name, None)
    config = _without(_read(folder / "config.json"), VOLATILE)
    quantisation = config.pop("quantization_config", None) or {}
    return {
        "format_version": FORMAT_VERSION,
        "weights": weights_digest(folder),
        **_flat("config", config),
        **_flat("processor", processor),
        "min_pixels": shortest if vlm.min_pixels is None else vlm.min_pixels,
        "max_pixels": longest if vlm.max_pixels is None else vlm.max_pixels,
        "max_side": vlm.max_side,
        "dtype": dtype,
        "quantisation": quantisation.get("quant_method", "none"),
        "attention": vlm.attention,
    }


def machine_fields(
    device: str, encoder_dtype: str, batch_tokens: int, num_threads: int, processor_backend: str = "pil"
) -> Fields:
    """The machine part of the fingerprint: what may move a feature's last bits.

    Args:
        device: kind of device with its model, as `describe_device` says it.
        encoder_dtype: in which the encoder runs.
        batch_tokens: vision tokens per batch of the encoder.
        num_threads: threads of the encoder on the CPU.
        processor_backend: library that resizes and normalises.
    """
    turbo = features.version("libjpeg_turbo")
    return {
        "pillow": version("pillow"),
        "jpeg_library": f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}",
        "webp_library": str(features.version("webp")),
        "processor_backend": processor_backend,
        "transformers": version("transformers"),
        "torch": version("torch"),
        "device": device,
        "encoder_dtype": encoder_dtype,
        "batch_tokens": batch_tokens,
        "num_threads": num_threads,
    }


def describe_device(device: str) -> str:
    """`cpu (AVX2)` or `cuda (NVIDIA H200)`: other instructions or another chip round differently."""
    if device == "cpu":
        return f"cpu ({torch.backends.cpu.get_cpu_capability()})"
    return f"cuda ({torch.cuda.get_device_name(device)})"


def differences(expected: Fields, found: Fields) -> list[tuple[str, Any, Any]]:
    """Fields that differ, as `(name, expected, found)`; a missing field is None. `expected`'s order, then new ones."""
    names = [*expected, *(name for name in found if name not in expected)]
    return [(n, expected.get(n), found.get(n)) for n in names if expected.get(n) != found.get(n)]


def compare(expected: Fields, found: Fields, what: str, remedy: str) -> None:
    """Refuse features of another making.

    Args:
        expected: fields of the cache.
        found: fields of this run.
        what: names the cache.
        remedy: what the user can do.

    Raises:
        InputError: names the first field that differs, both its values and how many others differ.
    """
    differing = differences(expected, found)
    if differing:
        name, old, new = differing[0]
        others = ", ".join(n for n, _, _ in differing[1:4]) + (", …" if len(differing) > 4 else "")
        more = f" ({others} differ too)" if others else ""
        raise InputError(f"{what} was made with {name} = {_short(old)}, but here it is {_short(new)}{more}; {remedy}")


def fingerprint_digest(model: Fields) -> str:
    """What checkpoints keep to name the model part in one string."""
    return digest_of(model)


def weights_digest(folder: Path) -> str:
    """SHA-256 over names and contents of a VLM's weight files.

    Raises:
        InputError: there are none.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise InputError(f"vlm.path: {folder} holds no *.safetensors or *.bin weights")
    return digest_of({file.name: digest for file, digest in zip(files, _memoised_digests(files), strict=True)})


def _memoised_digests(files: list[Path]) -> list[str]:
    """Digests of large files, remembered by path, size, mtime and inode in the user's cache folder."""
    memo_path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "masp" / "digests.json"
    try:
        memo = json.loads(memo_path.read_bytes())
        memo = memo if isinstance(memo, dict) else {}
    except (OSError, ValueError):  # a missing or damaged memo costs a digest, nothing else
        memo = {}
    digests: list[str] = []
    fresh: dict[str, dict[str, Any]] = {}
    size_left = sum(f.stat().st_size for f in files)
    for file in files:
        real = file.resolve()  # a hub snapshot links to its blobs
        status = real.stat()
        identity = [status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev]
        entry = memo.get(str(real))
        if isinstance(entry, dict) and entry.get("identity") == identity and isinstance(entry.get("sha256"), str):
            digests.append(entry["sha256"])
        else:
            if not fresh and size_left > SAY_SO_BYTES:
                print(f"reading the weights once for their digest ({size_left / 1e9:.1f} GB)", file=sys.stderr)
            try:
                digests.append(digest_file(real))
            except OSError as error:
                raise InputError(f"vlm.path: {real} cannot be read: {error.strerror}") from None
            # a file written within a clock tick of its digest could change again without a trace
            if time.time_ns() - status.st_mtime_ns > 2_000_000_000:
                fresh[str(real)] = {"identity": identity, "sha256": digests[-1]}
        size_left -= status.st_size
    if fresh:
        try:
            memo_path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(memo_path, json.dumps({**memo, **fresh}, sort_keys=True, indent=1).encode())
        except OSError as error:
            print(f"note: {memo_path} cannot be written ({error.strerror}); digests are not kept", file=sys.stderr)
    return digests


def _read(path: Path) -> dict:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"vlm.path: {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise InputError(f"vlm.path: {path} is no JSON") from None
    if not isinstance(value, dict):
        raise InputError(f"vlm.path: {path} holds no JSON object")
    return value


def _processor_settings(folder: Path) -> dict:
    """The image processor's settings: a file of their own, or part of the newer processor_config.json."""
    if (folder / "preprocessor_config.json").is_file():
        return _read(folder / "preprocessor_config.json")
    settings = _read(folder / "processor_config.json").get("image_processor")
    if not isinstance(settings, dict):
        raise InputError(f"vlm.path: {folder} has no preprocessor_config.json")
    return dict(settings)


def _pixel_limits(processor: dict) -> tuple[int | None, int | None]:
    """Smallest and largest number of pixels as the processor's file says them, in either of its two spellings."""
    size = processor.get("size")
    size = size if isinstance(size, dict) else {}
    shortest, longest = processor.get("min_pixels"), processor.get("max_pixels")
    return (
        size.get("shortest_edge") if shortest is None else shortest,
        size.get("longest_edge") if longest is None else longest,
    )


def _without(value: dict, names: tuple[str, ...]) -> dict:
    """Leave entries out, at every depth."""
    return {k: _without(v, names) if isinstance(v, dict) else v for k, v in value.items() if k not in names}


def _flat(prefix: str, value) -> Fields:
    """Nested objects as dotted names, so that a difference can be named."""
    if isinstance(value, dict):
        return {name: v for key in sorted(value) for name, v in _flat(f"{prefix}.{key}", value[key]).items()}
    return {prefix: value}


def _short(value) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
