"""Writes the tables of `docs/families.md`: which families of VLMs work, what an image costs, and why some are refused.

    python benchmarks/families.py

The settings are those of a well-known checkpoint of each family. Tokens were counted with the stock processor over an
image of 1024 x 768 pixels; the bytes follow from them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """A well-known checkpoint of a family."""

    model_types: str
    checkpoint: str
    num_tokens: int
    hidden_size: int
    num_deep_maps: int = 0
    restrictions: str = ""

    @property
    def megabytes(self) -> float:
        """Size of an image's features in a cache in bf16."""
        return self.num_tokens * self.hidden_size * 2 * (1 + self.num_deep_maps) / 1e6


EXAMPLES = (
    Example("qwen2_vl, qwen2_5_vl", "Qwen2-VL 7B", 999, 3584),
    Example("qwen3_vl, qwen3_vl_moe", "Qwen3-VL 8B", 768, 4096, 3),
    Example("qwen3_5, qwen3_5_moe", "Qwen3.5", 768, 4096, restrictions="candidates are scored one by one"),
    Example("internvl", "InternVL3 8B", 3328, 3584, restrictions="no maps of attention"),
    Example("llava", "LLaVA 1.5 7B", 576, 4096, restrictions="sees the center crop, so no maps of attention"),
    Example("llava_next", "LLaVA 1.6 7B", 2340, 4096, restrictions="no maps of attention"),
    Example("llava_onevision", "LLaVA-OneVision 7B", 4725, 3584, restrictions="no maps of attention"),
    Example("gemma3", "Gemma 3 4B", 256, 2560, restrictions="without pan and scan"),
    Example("gemma4", "Gemma 4", 266, 2560, restrictions="no maps of attention"),
    Example("paligemma", "PaliGemma 3B 448", 1024, 2048, restrictions="no frozen prefix; needs a chat template"),
    Example("smolvlm", "SmolVLM2 2.2B", 832, 2048, restrictions="needs num2words; no maps of attention"),
    Example("idefics3", "Idefics3 8B", 2197, 4096, restrictions="no maps of attention"),
    Example("glm4v, glm46v, glm4v_moe", "GLM-4.1V 9B", 999, 4096),
    Example("mistral3", "Mistral Small 3.1", 1036, 5120, restrictions="needs torchvision; no maps of attention"),
    Example("aya_vision", "Aya Vision 8B", 2197, 4096, restrictions="no maps of attention"),
    Example("ovis2", "Ovis2 8B", 1792, 3584, restrictions="no maps of attention"),
    Example("minicpmv4_6", "MiniCPM-V 4.6", 315, 4096, restrictions="candidates one by one; no maps of attention"),
    Example("deepseek_vl, deepseek_vl_hybrid", "DeepSeek-VL 1.3B", 576, 2048, restrictions="no maps of attention"),
    Example("janus", "Janus-Pro 7B", 576, 4096, restrictions="no maps of attention"),
    Example("granite4_vision", "Granite 4 Vision", 936, 2560, 7, restrictions="no maps of attention"),
    Example("ernie4_5_vl_moe", "ERNIE 4.5 VL", 999, 2560),
    Example("video_llama_3", "VideoLLaMA3 7B", 4015, 3584),
)


def table_of_examples() -> list[str]:
    """What an image of each family takes, as a Markdown table."""
    lines = [
        "| `model_type` | for example | tokens | MB in bf16 | cached beside the features | restrictions |",
        "|---|---|---|---|---|---|",
    ]
    for each in EXAMPLES:
        types = ", ".join(f"`{name}`" for name in each.model_types.split(", "))
        beside = f"{each.num_deep_maps} DeepStack maps" if each.num_deep_maps else ""
        cells = (types, each.checkpoint, each.num_tokens, f"{each.megabytes:.1f}", beside, each.restrictions)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def table_of_refusals() -> list[str]:
    """Why types of transformers' image-text-to-text models are refused, by their own classes and default settings."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    from masp.vlm.families import refusal

    found: dict[str, list[str]] = {}
    for name in sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES):
        try:
            why = refusal(CONFIG_MAPPING[name]())
        except Exception:  # types whose default settings do not make a model: nothing is known of them here
            continue
        if why is not None and "image_token_id" not in why:  # which a checkpoint's own settings may state
            found.setdefault(re.sub(r"its class \w+", "its class", why), []).append(name)
    lines = ["| reason | `model_type` |", "|---|---|"]
    return lines + [f"| {why} | {', '.join(f'`{name}`' for name in names)} |" for why, names in sorted(found.items())]


if __name__ == "__main__":
    print("\n".join([*table_of_examples(), "", *table_of_refusals()]))
