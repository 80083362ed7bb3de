"""What the files of a VLM's directory say, checked before transformers sees them.

The directory may come from anyone. Nothing in it is run, and a fact that two of its files state must be the same in
both: transformers believes one of them and does not look at the other.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from masp.errors import InputError
from masp.files.regular import is_directory, read_bytes
from masp.files.text import reason, shown
from masp.files.typed import Json, decode

MAX_TEXT_BYTES = 64 << 20
"""Size limit of a file of text; the largest one of a real VLM is a tokenizer of 33 MB."""

KEY = "vlm.path"
CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
IMAGES, PROCESSOR = "preprocessor_config.json", "processor_config.json"
VIDEOS = "video_preprocessor_config.json"

REFUSED_FILES = {
    "adapter_config.json": "an adapter (PEFT); merge it into its VLM and give the directory of the result",
    "hf_quant_config.json": "a quantized VLM (ModelOpt); give the directory of the VLM in bf16, fp16 or fp32",
}
"""A file of this name means that the weights are not those of a whole VLM, which transformers would not say."""

REFUSED_KEYS = {
    "auto_map": "names code that comes with the VLM; MASP never runs it",
    "custom_generate": "names code that comes with the VLM; MASP never runs it",
    "use_kernels": "asks for code from the hub; MASP never runs it",
    "kernel_config": "asks for code from the hub; MASP never runs it",
    "quantization_config": "quantized weights are not supported; give the directory of the VLM in bf16, fp16 or fp32",
    "compression_config": "quantized weights are not supported; give the directory of the VLM in bf16, fp16 or fp32",
}
"""Keys that are refused at any depth of any file, unless they are empty."""

KERNEL_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation")
"""Keys that name a kernel; a value with a slash names a repository on the hub, from which code would be loaded."""

CLASS_KEYS = ("image_processor_type", "tokenizer_class", "processor_class")
"""Keys that name a class; it must be one of transformers."""

SAME_TWICE = (
    ("hidden_size", "text_config.hidden_size"),
    ("num_hidden_layers", "text_config.num_hidden_layers"),
    ("num_attention_heads", "text_config.num_attention_heads"),
    ("num_key_value_heads", "text_config.num_key_value_heads"),
    ("intermediate_size", "text_config.intermediate_size"),
    ("vocab_size", "text_config.vocab_size"),
    ("rms_norm_eps", "text_config.rms_norm_eps"),
    ("rope_theta", "text_config.rope_theta"),
    ("image_token_id", "text_config.image_token_id"),
    ("vision_start_token_id", "text_config.vision_start_token_id"),
    ("vision_end_token_id", "text_config.vision_end_token_id"),
    ("vision_config.patch_size", "vision_config.spatial_patch_size"),
    ("vision_config.in_channels", "vision_config.in_chans"),
    ("text_config.rope_theta", "text_config.rope_parameters.rope_theta"),
    ("text_config.rope_scaling.mrope_section", "text_config.rope_parameters.mrope_section"),
    ("rope_scaling.mrope_section", "text_config.rope_parameters.mrope_section"),
    ("rope_scaling.mrope_section", "text_config.rope_scaling.mrope_section"),
)
"""Pairs of keys of config.json that state one fact in the Qwen2 families, which older versions wrote both ways."""
SAYS_TWICE = ("qwen2_vl", "qwen2_5_vl")


def read_json(directory: Path, name: str) -> dict[str, Any] | None:
    """The JSON object in a file of the directory; None if the file does not exist.

    Raises:
        InputError: The file cannot be read, is too large, or is not a JSON object.
    """
    path = directory / name
    data = read_bytes(path, max_bytes=MAX_TEXT_BYTES, key=KEY)
    if data is None:
        return None
    # one key twice is allowed as transformers allows it
    return decode(dict[str, Json], data, f"{KEY}: {path}", error=InputError, unique_keys=False, surrogates=True)


def check_directory(directory: Path) -> dict[str, Any]:
    """Refuse a directory that would make transformers run code, load something else, or read one of two answers.

    Returns:
        The JSON object in config.json.

    Raises:
        InputError: Names file, key and value.
    """
    _check_entries(directory)
    for name, what in REFUSED_FILES.items():
        if (directory / name).exists():
            raise InputError(f"{KEY}: {directory} holds {name}: {what}")
    names = (CONFIG, GENERATION, TOKENIZER, IMAGES, PROCESSOR, VIDEOS)
    found = {name: content for name in names if (content := read_json(directory, name)) is not None}
    if CONFIG not in found:
        raise InputError(f"{KEY}: {directory} has no {CONFIG}; give the directory of a VLM or its hub name")
    for name, content in found.items():
        for key, value in _entries(content):
            _check_entry(f"{KEY}: {directory / name}: {key} = {shown(value)}", key.rpartition(".")[2], value)
    _check_agreement(directory, found)
    return found[CONFIG]


def _check_entries(directory: Path) -> None:
    """Every file that transformers might open is a regular one of bounded size."""
    try:
        folders = [directory, *(directory / name for name in ("chat_templates", "additional_chat_templates"))]
        paths = [Path(entry) for folder in folders if is_directory(folder, key=KEY) for entry in os.scandir(folder)]
        for path in paths:
            if path.suffix not in (".json", ".jinja", ".txt", ".model", ".safetensors", ".index"):
                continue
            status = path.stat()  # a hub snapshot links to its blobs
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{KEY}: {path} cannot be read: not a regular file")
            if path.suffix != ".safetensors" and status.st_size > MAX_TEXT_BYTES:
                raise InputError(
                    f"{KEY}: {path} cannot be read: {status.st_size:,} bytes; must be at most {MAX_TEXT_BYTES:,}"
                )
    except OSError as error:
        raise InputError(f"{KEY}: {error.filename or directory} cannot be read: {reason(error)}") from None


def _entries(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All keys of nested objects with their values; keys are dotted."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{prefix}{key}", inner
            yield from _entries(inner, f"{prefix}{key}.")
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner, prefix)


def _check_entry(what: str, key: str, value: Any) -> None:
    if key in REFUSED_KEYS and value not in (None, False, {}, []):
        raise InputError(f"{what}: {REFUSED_KEYS[key]}")
    if key in KERNEL_KEYS and any(
        "/" in str(name) for name in (value.values() if isinstance(value, dict) else [value])
    ):
        raise InputError(f"{what}: asks for code from the hub; MASP never runs it")
    if key in CLASS_KEYS and value is not None and not (isinstance(value, str) and value in _classes(key)):
        kind = key.removesuffix("_type").removesuffix("_class").replace("_", " ")
        raise InputError(f"{what}: must be the class of {'an' if kind[0] in 'aeiou' else 'a'} {kind} in transformers")


@functools.cache
def _classes(key: str) -> frozenset[str]:
    """Names of the classes of transformers that a file may name under this key."""
    if key == "tokenizer_class":
        names: set[str] = {
            "PreTrainedTokenizerFast",
            "TokenizersBackend",
            *filter(None, TOKENIZER_MAPPING_NAMES.values()),
        }
        return frozenset(names | {f"{name}Fast" for name in names})
    if key == "processor_class":
        return frozenset(filter(None, PROCESSOR_MAPPING_NAMES.values()))
    found = {"Qwen2_5_VLImageProcessor"}  # which older versions wrote
    found |= {name for backends in IMAGE_PROCESSOR_MAPPING_NAMES.values() for name in backends.values() if name}
    bare = {name.removesuffix("Pil").removesuffix("Fast") for name in found}
    return frozenset(found | bare | {f"{name}Fast" for name in bare})


def _check_agreement(directory: Path, found: Mapping[str, dict[str, Any]]) -> None:
    """Facts that the files state twice are the same."""
    config = found[CONFIG]
    pairs = []
    if config.get("model_type") in SAYS_TWICE:
        pairs += [((CONFIG, first), (CONFIG, second)) for first, second in SAME_TWICE]
        vision = config.get("vision_config")
        out = "out_hidden_size" if isinstance(vision, dict) and "out_hidden_size" in vision else "hidden_size"
        text = "text_config.hidden_size" if isinstance(config.get("text_config"), dict) else "hidden_size"
        pairs.append(((CONFIG, f"vision_config.{out}"), (CONFIG, text)))
        _check_sections(directory, config)
    nested = found.get(PROCESSOR, {}).get("image_processor")
    for name in found.get(IMAGES, {}):
        if isinstance(nested, dict) and name in nested and name not in ("processor_class", "image_processor_type"):
            pairs.append(((IMAGES, name), (PROCESSOR, f"image_processor.{name}")))
    for file, prefix in ((IMAGES, ""), (PROCESSOR, "image_processor.")):
        for key, other in (
            ("patch_size", "patch_size"),
            ("temporal_patch_size", "temporal_patch_size"),
            ("merge_size", "spatial_merge_size"),
        ):
            pairs.append(((file, prefix + key), (CONFIG, f"vision_config.{other}")))
    for first, second in pairs:
        values = [_value(found.get(file), key) for file, key in (first, second)]
        if None in values or isinstance(values[0], dict) != isinstance(values[1], dict):
            continue  # some processors state a size as height and width
        if values[0] != values[1]:
            where = [
                f"{key} = {shown(value)} in {file}" for (file, key), value in zip((first, second), values, strict=True)
            ]
            raise InputError(f"{KEY}: {directory}: {where[0]}, but {where[1]}; both must say the same")


def _check_sections(directory: Path, config: dict[str, Any]) -> None:
    """Time, height and width of a position share the pairs of channels that a head has, none left over."""
    keys = [
        f"{text}{rope}.mrope_section" for text in ("text_config.", "") for rope in ("rope_parameters", "rope_scaling")
    ]
    key = next((key for key in keys if _value(config, key) is not None), None)
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    width, num_heads = text.get("hidden_size"), text.get("num_attention_heads")
    if key is None or not isinstance(width, int) or not isinstance(num_heads, int) or num_heads < 1:
        return
    sections, num_pairs = _value(config, key), width // num_heads // 2
    if not isinstance(sections, list) or not all(isinstance(n, int) for n in sections) or sum(sections) != num_pairs:
        raise InputError(
            f"{KEY}: {directory / CONFIG}: {key} = {shown(sections)}: must be integers whose sum is {num_pairs}, half "
            f"of hidden_size = {width} divided by num_attention_heads = {num_heads}"
        )


def _value(content: Any, key: str) -> Any:
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content
