"""Small VLMs of the real architectures, with random weights and a small tokenizer, created on the fly."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from masp.vlm.features import ImageLayout

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILIES = ("qwen2_vl", "qwen2_5_vl")


def layout_of(grid: tuple[int, int, int]) -> ImageLayout:
    """How an image with this grid lies in a prompt of these VLMs."""
    t, h, w = grid
    return ImageLayout(t * h * w // 4, grid)


def make_tokenizer(directory: Path):
    """A byte-level tokenizer with the Qwen family's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    words = "You are a helpful assistant. Which emotion does this picture evoke? system user sadness anger awe fear"
    tokenizer.train_from_iterator([words] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL),
        chat_template=CHAT_TEMPLATE,
    )
    fast.save_pretrained(directory)
    return fast


def make_vlm(directory: Path, family: str = "qwen2_vl", seed: int = 0, hidden: int = 32, layers: int = 2) -> Path:
    """Write a VLM of `family` with random weights that a seed decides; returns its directory."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
    )

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(directory)
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("vision_start", "vision_end", "image_pad", "video_pad", "im_end", "endoftext")
    }
    part = hidden // 32  # of the rotary dimensions of a head, half its width
    text = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 2 * hidden,
        "vocab_size": len(tokenizer) + 40,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "mrope_section": [part, part, 2 * part], "rope_theta": 10000.0},
        "initializer_range": 0.3,
        "bos_token_id": ids["endoftext"],
        "eos_token_id": ids["im_end"],
    }
    vision = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    shared = {
        "image_token_id": ids["image_pad"],
        "video_token_id": ids["video_pad"],
        "text_config": text,
        "vision_start_token_id": ids["vision_start"],
        "vision_end_token_id": ids["vision_end"],
    }
    if family == "qwen2_vl":
        vision |= {"embed_dim": 24, "hidden_size": hidden, "mlp_ratio": 2, "in_channels": 3}
        config, cls = Qwen2VLConfig(vision_config=vision, **shared), Qwen2VLForConditionalGeneration
    else:
        vision |= {
            "hidden_size": 24,
            "out_hidden_size": hidden,
            "intermediate_size": 48,
            "in_channels": 3,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        }
        config, cls = Qwen2_5_VLConfig(vision_config=vision, **shared), Qwen2_5_VLForConditionalGeneration
    torch.manual_seed(seed)
    model = cls(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "do_convert_rgb": True,
                "do_normalize": True,
                "do_rescale": True,
                "do_resize": True,
                "resample": 3,
                "image_mean": [0.48, 0.45, 0.4],
                "image_std": [0.27, 0.26, 0.28],
                "rescale_factor": 1 / 255,
                "image_processor_type": "Qwen2VLImageProcessor",
                "min_pixels": 3136,
                "max_pixels": 100352,
                "patch_size": 14,
                "merge_size": 2,
                "temporal_patch_size": 2,
            }
        )
    )
    return directory
