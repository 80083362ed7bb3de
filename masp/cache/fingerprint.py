"""What features depend on: the model part, compared on every read, and the machine part, when new meets old."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from PIL import features
from pydantic import AfterValidator

from masp.config import Config
from masp.config.schema import Precision, Transparency, VlmConfig
from masp.errors import InputError, MaspError
from masp.files.atomic import write_bytes
from masp.files.fields import Sha256, one_of
from masp.files.remembered import user_cache
from masp.files.sealed import canonical_json, digest_file, digest_of
from masp.files.text import reason, shown_apart
from masp.files.typed import plain, read
from masp.runtime.devices import encoder_dtype, pick_device
from masp.vlm.families import load_config, resolve_directory
from masp.vlm.files.directory import CONFIG, IMAGES, PROCESSOR, read_json
from masp.vlm.files.weights import check_weights

LOG = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Of the cache's files; features of another version are never read."""

VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "architectures")
"""Entries of a VLM's config.json that say nothing about its features."""

PIXEL_LIMITS = ("size", "min_pixels", "max_pixels")
"""Entries of the image processor's file that `min_pixels` and `max_pixels` of the fingerprint stand for."""

PLAIN_PROCESSORS = ("qwen2_vl", "qwen2_5_vl")
"""Families whose processor adds nothing to its image processor, so that its own settings do not matter."""

PARTS_OF_PROCESSOR = ("chat_template", "feature_extractor", "image_processor", "tokenizer", "video_processor")
"""Entries of processor_config.json that are no settings of the processor itself, or are fields already."""

SAY_SO_BYTES = 4 << 30
"""Digesting more than this takes long enough to tell the user."""

Fields = dict[str, Any]
"""Flat: the name of a field -> a JSON value."""

CacheDtype = Literal["bf16", "fp16", "fp32", "int8", "fp8"]
"""Number format of the features in a cache, `cache.dtype`."""

OWN_FIELDS = ("format_version", "weights", "min_pixels", "max_pixels", "max_side", "dtype", "quantisation", "attention")
"""Fields that every model part has, beside those of the VLM's own files (`config.…`, `processor.…`)."""

IF_ABSENT = {"transparency": "white"}
"""What it means that a model part lacks a field. These are written only with another value, so that whatever was made
before there was such a choice has the same fingerprint as what is made with this value now."""


def _checked_model(model: Fields) -> Fields:
    for name in (*OWN_FIELDS, "config.model_type"):
        if name not in model:
            raise ValueError(f"must have the field {name}")
    if model["dtype"] not in get_args(CacheDtype):
        raise ValueError(f"must have a dtype that is one of {', '.join(get_args(CacheDtype))}")
    if model.get("transparency", "white") not in get_args(Transparency):
        raise ValueError(f"must have a transparency that is one of {', '.join(get_args(Transparency))}")
    if not isinstance(model["weights"], str):
        raise ValueError("must have the digest of the weights as a string")
    canonical_json(model)  # raises ValueError where a number is not finite
    return model


ModelPart = Annotated[Fields, AfterValidator(_checked_model)]
"""The model part as files hold it: `OWN_FIELDS` and whatever fields the VLM's own files have."""


@dataclass(frozen=True)
class Machine:
    """The machine part of the fingerprint: what may change a feature's last bits."""

    batch_tokens: int
    """Vision tokens per batch of the encoder."""
    device: str
    """As `describe_device` gives it."""
    encoder_dtype: Annotated[str, one_of(get_args(Precision))]
    """Number format in which the encoder runs."""
    jpeg_library: str
    num_threads: int
    """Threads of the encoder on the CPU."""
    pillow: str
    processor_backend: str
    """Library that resizes and normalizes."""
    torch: str
    transformers: str
    webp_library: str

    @property
    def fields(self) -> Fields:
        """The fields by name, as `compare` and `differences` take them."""
        return asdict(self)


@dataclass(frozen=True)
class _KnownDigest:
    """A digest of a large file, in the user's memo of such digests."""

    identity: tuple[int, int, int, int]
    """Size, modification time (ns), inode and device of the file that was digested."""
    sha256: Sha256


def model_fields(directory: Path, vlm: VlmConfig, dtype: str) -> Fields:
    """The model part of the fingerprint.

    Tokenizer, chat template and questions have no part in it: no feature depends on them. The digest covers all
    weights, also the language model's, so that what is trained on a cache is bound to one VLM.

    Args:
        directory: Local directory of the VLM.
        vlm: Section `vlm` of the configuration (attention, min_pixels, max_pixels, max_side, transparency).
        dtype: `cache.dtype`.

    Raises:
        InputError: The directory lacks a file, or one is not valid.
    """
    processor = _processor_settings(directory)
    shortest, longest = _pixel_limits(processor)
    for name in PIXEL_LIMITS:
        processor.pop(name, None)
    content = read_json(directory, CONFIG)
    if content is None:
        raise InputError(f"vlm.path: {directory} has no {CONFIG}")
    config = _without(content, VOLATILE)
    quantization = config.pop("quantization_config", None)
    fields = {
        "format_version": FORMAT_VERSION,
        "weights": weights_digest(directory),
        **_flat("config", config),
        **_flat("processor", processor),
        "min_pixels": shortest if vlm.min_pixels is None else vlm.min_pixels,
        "max_pixels": longest if vlm.max_pixels is None else vlm.max_pixels,
        "max_side": vlm.max_side,
        "dtype": dtype,
        "quantisation": quantization.get("quant_method", "none") if isinstance(quantization, dict) else "none",
        "attention": vlm.attention,
    }
    if vlm.transparency != IF_ABSENT["transparency"]:
        fields["transparency"] = vlm.transparency
    if content.get("model_type") not in PLAIN_PROCESSORS:
        own = read_json(directory, PROCESSOR) or {}
        fields |= _flat("processing", {name: value for name, value in own.items() if name not in PARTS_OF_PROCESSOR})
    return fields


def this_machine(
    device: str, encoder_dtype: str, batch_tokens: int, num_threads: int, processor_backend: str = "pil"
) -> Machine:
    """The machine part of the fingerprint, on this machine.

    Args:
        device: Kind and model of the device, as `describe_device` gives it.
        encoder_dtype: Number format in which the encoder runs.
        batch_tokens: Vision tokens per batch of the encoder.
        num_threads: Threads of the encoder on the CPU.
        processor_backend: Library that resizes and normalizes.
    """
    turbo = features.version("libjpeg_turbo")
    return Machine(
        batch_tokens=batch_tokens,
        device=device,
        encoder_dtype=encoder_dtype,
        jpeg_library=f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}",
        num_threads=num_threads,
        pillow=version("pillow"),
        processor_backend=processor_backend,
        torch=version("torch"),
        transformers=version("transformers"),
        webp_library=str(features.version("webp")),
    )


def describe_device(device: str) -> str:
    """`cpu (AVX2)` or `cuda (NVIDIA H200)`: other instructions or another chip round differently."""
    if device == "cpu":
        return f"cpu ({torch.backends.cpu.get_cpu_capability()})"
    return f"cuda ({torch.cuda.get_device_name(device)})"


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Fields that differ, as `(name, expected, found)`; a missing field is what `IF_ABSENT` says, otherwise None.

    In `expected`'s order, then new ones.
    """
    names = [*expected, *(name for name in found if name not in expected)]
    values = ((n, expected.get(n, IF_ABSENT.get(n)), found.get(n, IF_ABSENT.get(n))) for n in names)
    return [(name, old, new) for name, old, new in values if old != new]


def transparency_of(model: Mapping[str, Any]) -> str:
    """What became of transparent pixels, by the model part of a fingerprint."""
    return model.get("transparency", IF_ABSENT["transparency"])


def layout_notes(layout: str, model: Mapping[str, Any]) -> list[str]:
    """How features differ from what a layout was published with; empty where they do not.

    Args:
        layout: Layout of the prompt.
        model: Model part of the fingerprint of the features.
    """
    if layout != "released" or transparency_of(model) == "drop":
        return []
    return [
        "layout 'released': features were made with vlm.transparency = 'white', but the published code drops "
        "transparency; where no image is transparent or of 16 bits, that makes no difference"
    ]


def compare(expected: Mapping[str, Any], found: Mapping[str, Any], what: str, remedy: str) -> None:
    """Refuse features that were made in another way.

    Args:
        expected: Fields of the cache.
        found: Fields of this run.
        what: Names the cache.
        remedy: What the user can do.

    Raises:
        InputError: Names the first field that differs, both its values and how many others differ.
    """
    differing = differences(expected, found)
    if differing:
        name, old, new = differing[0]
        others = ", ".join(n for n, _, _ in differing[1:4]) + (", …" if len(differing) > 4 else "")
        more = f" ({others} differ too)" if others else ""
        there, here = shown_apart(_text(old), _text(new), 60)
        raise InputError(f"{what} was made with {name} = {there}, but here it is {here}{more}; {remedy}")


def fingerprint_digest(model: Fields) -> str:
    """What checkpoints keep to name the model part in one string."""
    return digest_of(model)


def weights_digest(directory: Path) -> str:
    """SHA-256 over names and contents of a VLM's weight files.

    Raises:
        InputError: There are none, or one cannot be read.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise InputError(f"vlm.path: {directory} holds no *.safetensors weights")
    return digest_of({file.name: digest for file, digest in zip(files, _memoized_digests(files), strict=True)})


def _memoized_digests(files: Sequence[Path]) -> list[str]:
    """Digests of large files, remembered by path, size, mtime and inode in the user's cache directory."""
    memo_path = user_cache() / "digests.json"
    memo = _read_memo(memo_path)
    digests: list[str] = []
    fresh: dict[str, _KnownDigest] = {}
    try:
        found = [(real := file.resolve(), real.stat()) for file in files]  # a hub snapshot links to its blobs
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to each other
        raise InputError(f"vlm.path: a weight file in {files[0].parent} cannot be read: {reason(error)}") from None
    size_left = sum(status.st_size for _, status in found)
    for path, status in found:
        identity = (status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)
        known = memo.get(str(path))
        if known is not None and known.identity == identity:
            digests.append(known.sha256)
        else:
            if not fresh and size_left > SAY_SO_BYTES:
                LOG.info("reading the weights once for their digest (%.1f GB)", size_left / 1e9)
            try:
                digests.append(digest_file(path))
            except OSError as error:
                raise InputError(f"vlm.path: {path} cannot be read: {reason(error)}") from None
            # a file written within a clock tick of its digest could change again without a trace
            if time.time_ns() - status.st_mtime_ns > 2_000_000_000:
                fresh[str(path)] = _KnownDigest(identity, digests[-1])
        size_left -= status.st_size
    if fresh:
        value = {name: plain(digest) for name, digest in {**memo, **fresh}.items()}
        try:
            memo_path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(memo_path, json.dumps(value, sort_keys=True, indent=1).encode())
        except OSError as error:
            LOG.info("%s cannot be written (%s); digests are not kept", memo_path, reason(error))
    return digests


def _read_memo(path: Path) -> dict[str, _KnownDigest]:
    """What is remembered: path -> digest. A memo that is missing or damaged costs a digest, nothing else."""
    try:
        return read(dict[str, _KnownDigest], path, surrogates=True) or {}
    except MaspError:
        return {}


def _processor_settings(directory: Path) -> dict[str, Any]:
    """The image processor's settings: a file of their own, or part of the newer processor_config.json."""
    settings = read_json(directory, IMAGES)
    if settings is not None:
        return settings
    settings = (read_json(directory, PROCESSOR) or {}).get("image_processor")
    if not isinstance(settings, dict):
        raise InputError(f"vlm.path: {directory} has no preprocessor_config.json")
    return dict(settings)


def _pixel_limits(processor: dict[str, Any]) -> tuple[int | None, int | None]:
    """Smallest and largest number of pixels as the processor's file says them, in either of its two spellings."""
    size = processor.get("size")
    size = size if isinstance(size, dict) else {}
    shortest, longest = processor.get("min_pixels"), processor.get("max_pixels")
    return (
        size.get("shortest_edge") if shortest is None else shortest,
        size.get("longest_edge") if longest is None else longest,
    )


def _without(value: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Leave entries out, at every depth."""
    return {k: _without(v, names) if isinstance(v, dict) else v for k, v in value.items() if k not in names}


def _flat(prefix: str, value: Any) -> Fields:
    """Nested objects as dotted names, so that a difference can be named."""
    if isinstance(value, dict):
        return {name: v for key in sorted(value) for name, v in _flat(f"{prefix}.{key}", value[key]).items()}
    return {prefix: value}


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def model_part(config: Config) -> Fields:
    """Model part of the fingerprint of this configuration."""
    directory = resolve_directory(config.vlm.path)
    load_config(directory)  # an unsupported family is refused before its weights are digested
    check_weights(directory)
    return model_fields(directory, config.vlm, config.cache.dtype)


def machine_part(config: Config) -> Machine:
    """Machine part of the fingerprint of this configuration on this machine.

    Raises:
        InputError: `extract.device` is a GPU and there is none.
    """
    device, extract = pick_device(config.extract.device, "extract.device"), config.extract
    runs_in = encoder_dtype(config.cache.dtype, device)
    return this_machine(describe_device(device), runs_in, extract.batch_tokens, extract.num_threads)
