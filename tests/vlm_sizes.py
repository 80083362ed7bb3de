"""Configurations of VLMs of real sizes, and of the same families at smaller ones, without weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TextSizes:
    """Sizes of a decoder."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    mlp: int
    vocabulary: int


@dataclass(frozen=True)
class VisionSizes:
    """Sizes of an encoder."""

    depth: int
    width: int
    heads: int
    mlp: int
    tile: int = 0
    """Pixels per side of what is encoded at once; 0 for encoders that take images of any size."""


@dataclass(frozen=True)
class VlmSizes:
    """Sizes of a VLM."""

    model_type: str
    text: TextSizes
    vision: VisionSizes
    tied: bool = False
    """Whether the embedding table is also the vocabulary projection."""


_QWEN2_7B = TextSizes(3584, 28, 28, 4, 128, 18944, 152064)
SIZES = {
    "Qwen2-VL-2B": VlmSizes(
        "qwen2_vl", TextSizes(1536, 28, 12, 2, 128, 8960, 151936), VisionSizes(32, 1280, 16, 5120), tied=True
    ),
    "Qwen2-VL-7B": VlmSizes("qwen2_vl", _QWEN2_7B, VisionSizes(32, 1280, 16, 5120)),
    "Qwen2.5-VL-7B": VlmSizes("qwen2_5_vl", _QWEN2_7B, VisionSizes(32, 1280, 16, 3420)),
    "Qwen3-VL-8B": VlmSizes(
        "qwen3_vl", TextSizes(4096, 36, 32, 8, 128, 12288, 151936), VisionSizes(27, 1152, 16, 4304)
    ),
    "InternVL3-8B": VlmSizes("internvl", replace(_QWEN2_7B, vocabulary=151674), VisionSizes(24, 1024, 16, 4096, 448)),
    "Gemma3-4B": VlmSizes(
        "gemma3", TextSizes(2560, 34, 8, 4, 256, 10240, 262208), VisionSizes(27, 1152, 16, 4304, 896), tied=True
    ),
}
"""Published models by name."""


def at_scale(sizes: VlmSizes, scale: str) -> VlmSizes:
    """The sizes of the same family at another scale.

    Args:
        sizes: Sizes of a published model.
        scale: `real` leaves them; `small` is what a CPU can train, with the whole vocabulary; `tiny` is for tests.
    """
    if scale == "real":
        return sizes
    hidden, layers, tile = {"small": (256, 4, 112), "tiny": (64, 2, 56)}[scale]
    vocabulary = {"small": sizes.text.vocabulary, "tiny": 1000}[scale]
    text = TextSizes(hidden, layers, 4, 2, hidden // 4, 4 * hidden, vocabulary)
    return replace(
        sizes, text=text, vision=VisionSizes(layers, hidden, 4, 4 * hidden, tile if sizes.vision.tile else 0)
    )


def config_of(sizes: VlmSizes) -> Any:
    """The transformers configuration of a VLM of these sizes; ids of its tokens are those of the published ones."""
    text = {
        "hidden_size": sizes.text.hidden, "num_hidden_layers": sizes.text.layers,
        "num_attention_heads": sizes.text.heads, "num_key_value_heads": sizes.text.kv_heads,
        "intermediate_size": sizes.text.mlp, "vocab_size": sizes.text.vocabulary,
        "tie_word_embeddings": sizes.tied, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    config = _CONFIGS[sizes.model_type](sizes, text)
    config.tie_word_embeddings = sizes.tied
    return config


def real_config(name: str) -> Any:
    """The transformers configuration of one of SIZES."""
    return config_of(SIZES[name])


_QWEN_IDS = {
    "vision_start_token_id": 151652, "vision_end_token_id": 151653, "image_token_id": 151655, "video_token_id": 151656,
}  # fmt: skip


def _sections(sizes: VlmSizes, height: float) -> list[int]:
    """Rotary dimensions of time, height and width, of which height and width each have this part."""
    half = sizes.text.head_width // 2
    side = int(half * height)
    return [half - 2 * side, side, side]


def _qwen2_vl(sizes: VlmSizes, text: dict[str, Any]) -> Any:
    from transformers import Qwen2VLConfig

    sections = _sections(sizes, 3 / 8)
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": sections, "rope_theta": 1e6}
    vision = {
        "depth": sizes.vision.depth, "num_heads": sizes.vision.heads, "embed_dim": sizes.vision.width,
        "hidden_size": sizes.text.hidden, "mlp_ratio": sizes.vision.mlp // sizes.vision.width, "in_channels": 3,
        "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    return Qwen2VLConfig(text_config=text, vision_config=vision, **_QWEN_IDS)


def _qwen2_5_vl(sizes: VlmSizes, text: dict[str, Any]) -> Any:
    from transformers import Qwen2_5_VLConfig

    sections = _sections(sizes, 3 / 8)
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": sections, "rope_theta": 1e6}
    depth = sizes.vision.depth
    vision = {
        "depth": depth, "num_heads": sizes.vision.heads, "hidden_size": sizes.vision.width,
        "out_hidden_size": sizes.text.hidden, "intermediate_size": sizes.vision.mlp, "in_channels": 3,
        "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
        "fullatt_block_indexes": list(range(7, depth, 8)) or [depth - 1],
    }  # fmt: skip
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_QWEN_IDS)


def _qwen3_vl(sizes: VlmSizes, text: dict[str, Any]) -> Any:
    from transformers import Qwen3VLConfig

    text["head_dim"], sections = sizes.text.head_width, _sections(sizes, 5 / 16)
    text["rope_parameters"] = {
        "rope_type": "default", "mrope_section": sections, "mrope_interleaved": True, "rope_theta": 5e6,
    }  # fmt: skip
    depth = sizes.vision.depth
    vision = {
        "depth": depth, "num_heads": sizes.vision.heads, "hidden_size": sizes.vision.width,
        "out_hidden_size": sizes.text.hidden, "intermediate_size": sizes.vision.mlp, "in_channels": 3,
        "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 48**2,
        "deepstack_visual_indexes": list(range(8, depth, 8)) or list(range(depth - 1)),
    }  # fmt: skip
    return Qwen3VLConfig(text_config=text, vision_config=vision, **_QWEN_IDS)


def _internvl(sizes: VlmSizes, text: dict[str, Any]) -> Any:
    from transformers import InternVLConfig

    text |= {"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    vision = {
        "num_hidden_layers": sizes.vision.depth, "num_attention_heads": sizes.vision.heads,
        "hidden_size": sizes.vision.width, "intermediate_size": sizes.vision.mlp, "attention_bias": True,
        "image_size": [sizes.vision.tile] * 2, "patch_size": [14, 14],
    }  # fmt: skip
    tokens = (sizes.vision.tile // 14 // 2) ** 2
    return InternVLConfig(text_config=text, vision_config=vision, image_seq_length=tokens, image_token_id=151667)


def _gemma3(sizes: VlmSizes, text: dict[str, Any]) -> Any:
    from transformers import Gemma3Config

    every = min(6, sizes.text.layers)  # of the layers, one in so many sees more than a window
    text |= {
        "head_dim": sizes.text.head_width, "query_pre_attn_scalar": sizes.text.head_width, "sliding_window": 1024,
        "layer_types": [
            "sliding_attention" if number % every else "full_attention" for number in range(1, sizes.text.layers + 1)
        ],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    }  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model", "num_hidden_layers": sizes.vision.depth,
        "num_attention_heads": sizes.vision.heads, "hidden_size": sizes.vision.width,
        "intermediate_size": sizes.vision.mlp, "image_size": sizes.vision.tile, "patch_size": 14,
        "vision_use_head": False,
    }  # fmt: skip
    tokens = min(256, (sizes.vision.tile // 14 // 2) ** 2)
    return Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=tokens, image_token_index=262144,
        boi_token_index=255999, eoi_token_index=256000,
    )  # fmt: skip


_CONFIGS: dict[str, Callable[[VlmSizes, dict[str, Any]], Any]] = {
    "qwen2_vl": _qwen2_vl, "qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl, "internvl": _internvl, "gemma3": _gemma3,
}  # fmt: skip


def save_config_only(directory: Path, config) -> Path:
    """Write a VLM directory that contains only config.json and preprocessor_config.json.

    Args:
        directory: Directory to create.
        config: Configuration of transformers, or a name that `real_config` knows, of the Qwen2 families.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (real_config(config) if isinstance(config, str) else config).save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps({
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3,
        "image_mean": [0.48, 0.45, 0.4], "image_std": [0.27, 0.26, 0.28], "rescale_factor": 1 / 255,
        "image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12845056,
        "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2,
    }))  # fmt: skip
    return directory
