"""What single families need beside features, against their stock model; small ones are made here."""

import dataclasses

import pytest
import torch
from transformers import (
    Ernie4_5_VLMoeConfig,
    Ernie4_5_VLMoeForConditionalGeneration,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from masp.vlm.language import Tokens, load_language_half

TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 80, "max_position_embeddings": 256, "pad_token_id": 0,
    "initializer_range": 0.3,
}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
IMAGE, INDICATORS = 70, (71, 72, 73, 74, 75)
DIFFERS, EQUAL = 1e-2, 2e-6


def saved(directory, cls, config):
    """A stock model of random weights, written to a directory."""
    torch.manual_seed(0)
    model = cls(config).float().eval()
    model.save_pretrained(directory)
    return model


def tokens(ids, is_feature, **types):
    return Tokens(ids, ~is_feature, is_feature, types)


@torch.inference_mode()
def logits(half, embeds, found):
    mask, count = torch.ones_like(found.ids, dtype=torch.bool), found.ids.shape[1]
    return half.logits(half(embeds, mask, torch.arange(count).expand(3, 1, -1), None, found))


def test_separators_are_constants_of_the_vision_half(tmp_path):
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14, "vocab_size": 50,
    }  # fmt: skip
    config = Ovis2Config(
        vision_config=vision, text_config={**TEXT, "model_type": "qwen2"}, image_token_id=IMAGE,
        visual_indicator_token_ids=INDICATORS, vocab_size=80, hidden_size=32,
    )  # fmt: skip
    stock = saved(tmp_path, Ovis2ForConditionalGeneration, config)
    for parameter in stock.parameters():
        parameter.data.mul_(2)
    stock.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 28, 28)
    ids = torch.tensor([[5, 71, *[IMAGE] * 4, 72, 6, 75, 7]])
    with torch.inference_mode():
        features = stock.model.get_image_features(pixels, return_dict=True).pooler_output[0]
        expected = stock(input_ids=ids, pixel_values=pixels).logits
    half = load_language_half(str(tmp_path))
    found = tokens(ids, ids == IMAGE)

    def ours():
        embeds = half.embed(found)
        embeds[found.is_feature] = features
        return logits(half, embeds, found)

    with torch.inference_mode():
        assert (ours() - expected).abs().max() <= EQUAL
        half._constants = {}
        assert (ours() - expected).abs().max() > DIFFERS


def test_experts_are_chosen_by_the_type_of_a_token(tmp_path):
    text = {
        **TEXT, "rope_parameters": MROPE, "moe_intermediate_size": [24, 16], "moe_num_experts": 4, "moe_k": 2,
        "mlp_layer_types": ["sparse", "sparse"],
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 14}
    ids_of = dict.fromkeys(
        ("image_start_token_id", "image_end_token_id", "video_start_token_id", "video_end_token_id"), 76
    )
    config = Ernie4_5_VLMoeConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=77, **ids_of
    )
    stock = saved(tmp_path, Ernie4_5_VLMoeForConditionalGeneration, config)
    half = load_language_half(str(tmp_path))
    ids = torch.tensor([[5, *[IMAGE] * 4, 6, 7]])
    kinds, embeds = (ids == IMAGE).long(), torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(1))
    found = tokens(ids, ids == IMAGE, moe_mm_token_type_ids=kinds)
    with torch.inference_mode():
        hidden = stock.model.language_model(
            inputs_embeds=embeds, moe_mm_token_type_ids=kinds, position_ids=torch.arange(7).expand(3, 1, -1)
        ).last_hidden_state
        expected = stock.lm_head(hidden)
    assert (logits(half, embeds, found) - expected).abs().max() <= EQUAL
    without = dataclasses.replace(found, types={"moe_mm_token_type_ids": 0 * kinds})
    assert (logits(half, embeds, without) - expected).abs().max() > DIFFERS


@pytest.mark.parametrize("with_cap", [True, False])
def test_a_soft_cap_of_the_vlm_itself(tmp_path, with_cap, monkeypatch):
    plain = Qwen2VLForConditionalGeneration.forward

    def capped(*args, **kwargs):
        out = plain(*args, **kwargs)
        out.logits = torch.tanh(out.logits / 2.0) * 2.0
        return out

    if with_cap:
        monkeypatch.setattr(Qwen2VLForConditionalGeneration, "forward", capped)
    vision = {"depth": 1, "embed_dim": 24, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": MROPE, "final_logit_softcapping": 2.0}, vision_config=vision,
        image_token_id=IMAGE, video_token_id=77, vision_start_token_id=76, vision_end_token_id=76,
    )  # fmt: skip
    stock = saved(tmp_path, Qwen2VLForConditionalGeneration, config)
    half = load_language_half(str(tmp_path))
    ids = torch.tensor([[5, 9, 6, 7]])
    found = tokens(ids, torch.zeros_like(ids, dtype=torch.bool))
    with torch.inference_mode():
        expected, embeds = stock(input_ids=ids).logits, half.embed(found)
    assert (logits(half, embeds, found) - expected).abs().max() <= EQUAL
    if with_cap:
        half._cap = None
        assert (logits(half, embeds, found) - expected).abs().max() > DIFFERS
