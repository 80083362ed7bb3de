"""Images and a VLM to measure extraction: an encoder of a given size, and a minimal language model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


def make_images(root: Path, count: int, side: int) -> Path:
    """Write a dataset of noisy JPEG files of about `side` x `side` pixels."""
    random = np.random.default_rng(0)
    directory = root / "train" / "joy"
    directory.mkdir(parents=True)
    for number in range(count):
        width, height = (int(n) for n in random.integers(side * 4 // 5, side * 6 // 5, 2))
        pixels = random.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(directory / f"{number:05d}.jpg")
    return root


def make_model(directory: Path, width: int, depth: int) -> Path:
    """Write a Qwen2-VL with random weights whose encoder has this width and depth."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = {
        "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "intermediate_size": 64, "vocab_size": 160,
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e6},
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "embed_dim": width, "depth": depth, "num_heads": max(1, width // 64), "hidden_size": 64, "mlp_ratio": 4,
        "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
    }  # fmt: skip
    ids = {"image_token_id": 150, "video_token_id": 151, "vision_start_token_id": 152, "vision_end_token_id": 153}
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **ids)).save_pretrained(
        directory
    )
    (directory / "preprocessor_config.json").write_text(json.dumps({
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3,
        "image_mean": [0.48, 0.45, 0.4], "image_std": [0.27, 0.26, 0.28], "rescale_factor": 1 / 255,
        "image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 1003520,
        "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2,
    }))  # fmt: skip
    return directory
