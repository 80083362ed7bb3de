"""Configurations of VLMs of real sizes, without weights."""

from __future__ import annotations

import json
from pathlib import Path

_LANGUAGE = {
    "2B": (1536, 28, 12, 2, 8960, 151936),
    "7B": (3584, 28, 28, 4, 18944, 152064),
}
"""Hidden size, layers, heads, key/value heads, MLP, vocabulary."""


def real_config(name: str):
    """The transformers configuration of `Qwen2-VL-2B`, `Qwen2-VL-7B` or `Qwen2.5-VL-7B`."""
    from transformers import Qwen2_5_VLConfig, Qwen2VLConfig

    family, _, size = name.rpartition("-")
    hidden, layers, heads, kv_heads, mlp, vocabulary = _LANGUAGE[size]
    text = {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": mlp, "vocab_size": vocabulary,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
    }  # fmt: skip
    vision = {"depth": 32, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    ids = {
        "vision_start_token_id": 151652, "vision_end_token_id": 151653, "image_token_id": 151655,
        "video_token_id": 151656,
    }  # fmt: skip
    if family == "Qwen2-VL":
        vision |= {"embed_dim": 1280, "hidden_size": hidden, "mlp_ratio": 4, "in_channels": 3}
        return Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    vision |= {
        "hidden_size": 1280, "out_hidden_size": hidden, "intermediate_size": 3420, "in_channels": 3,
        "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)


def save_config_only(directory: Path, config) -> Path:
    """Write a VLM directory that contains only config.json and preprocessor_config.json.

    Args:
        directory: Directory to create.
        config: Configuration of transformers, or a name that `real_config` knows.
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
