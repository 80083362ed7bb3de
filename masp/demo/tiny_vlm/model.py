"""The tiny VLM: a small model of Qwen2-VL's architecture, with the settings of its image processor."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_position_ids

from masp.demo.tiny_vlm.tokenizer import save_tokenizer

PATCH, MERGE = 14, 2
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
VOCAB_SIZE = 768


def build_model(tokenizer, hidden: int = 192, layers: int = 4, vision_width: int = 96, vision_depth: int = 4):
    """A fresh `Qwen2VLForConditionalGeneration` in fp32, initialized from torch's global generator.

    Word embeddings are not tied to the output; `geometry.py` sets them and the first layer.
    """
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("im_start", "im_end", "endoftext")}
    special = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in {
            "image": "<|image_pad|>",
            "video": "<|video_pad|>",
            "vision_start": "<|vision_start|>",
            "vision_end": "<|vision_end|>",
        }.items()
    }
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": VOCAB_SIZE,
            "hidden_size": hidden,
            "intermediate_size": hidden * 5 // 3,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden // 32,
            "num_key_value_heads": hidden // 64,
            "max_position_embeddings": 4096,
            "use_sliding_window": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": ids["endoftext"],
            "eos_token_id": ids["im_end"],
            "pad_token_id": ids["endoftext"],
        },
        vision_config={
            "depth": vision_depth,
            "embed_dim": vision_width,
            "hidden_size": hidden,
            "num_heads": 4,
            "mlp_ratio": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "in_channels": 3,
        },
        tie_word_embeddings=False,
        **special,
    )
    model = Qwen2VLForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                depth = vision_depth if "visual" in name else layers
                residual = name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "mlp.fc2.weight"))
                fan_in = parameter[0].numel()
                nn.init.normal_(parameter, std=fan_in**-0.5 / (math.sqrt(2 * depth) if residual else 1))
    model.generation_config.eos_token_id = [ids["im_end"], ids["endoftext"]]
    model.generation_config.pad_token_id = ids["endoftext"]
    return model


def patches(pixels: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """The output of Qwen2-VL's image processor for images whose sides are multiples of 28.

    Args:
        pixels: `[B, h, w, 3]` uint8.

    Returns:
        `[B * h/14 * w/14, 1176]` fp32, and the grid of one image.
    """
    batch, height, width, _ = pixels.shape
    rows, columns = height // PATCH, width // PATCH
    x = (pixels.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    x = x.view(batch, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3)
    x = x.permute(0, 1, 4, 2, 5, 7, 3, 6)  # batch, row, column, row and column within the merge, channel, patch
    x = x.reshape(-1, 3, 1, PATCH, PATCH).expand(-1, -1, 2, -1, -1)  # one image is repeated as two frames
    return x.reshape(-1, 3 * 2 * PATCH * PATCH), (1, rows, columns)


def encode(model, pixels: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Merged features `[B, T, D]` of images `[B, h, w, 3]` of one size, and their grid.

    This is the same arithmetic as the model's own vision forward, which attends to one image at a time and is slower.
    """
    visual, batch = model.model.visual, len(pixels)
    flat, grid = patches(pixels)
    x = flat @ visual.patch_embed.proj.weight.flatten(1).T
    cos, sin = visual.rotary_pos_emb(x, get_vision_position_ids(torch.tensor([grid] * batch), MERGE))
    for block in visual.blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(x)).view(len(x), 3, attention.num_heads, -1)
        query, key = apply_rotary_pos_emb_vision(qkv[:, 0], qkv[:, 1], cos, sin)
        query, key, value = (
            part.reshape(batch, -1, *part.shape[1:]).transpose(1, 2) for part in (query, key, qkv[:, 2])
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + attention.proj(mixed.transpose(1, 2).reshape(x.shape))
        x = x + block.mlp(block.norm2(x))
    merged = visual.merger(x)
    return merged.view(batch, -1, merged.shape[-1]), grid


def save_model(model, tokenizer, directory: Path) -> None:
    """Write a directory that transformers can load: bf16 weights, tokenizer, template, image processor settings."""
    directory.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(str(directory))
    save_tokenizer(tokenizer, directory)
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "min_pixels": 56 * 56,
        "max_pixels": 280 * 280,
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
