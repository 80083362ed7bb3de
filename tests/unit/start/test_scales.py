"""What the learning rates are relative to: read from the VLM if it is here, else usual values, and no download."""

import pytest

from masp.demo.tiny_vlm import VLM_DIR
from masp.errors import InputError
from masp.start.scales import USUAL_HIDDEN_SIZE, USUAL_RMS, read_scales
from masp.start.sizing import attention_rms
from masp.vlm.cost.counting import embedding_scale_of
from masp.vlm.families import load_config
from masp.vlm.language import load_language_half


def test_the_demos_vlm_has_loud_embeddings():
    scales = read_scales(str(VLM_DIR))
    assert scales.stage2 == pytest.approx(26.9, rel=0.02) and scales.stage1 == attention_rms(192)
    assert "read from" in scales.source and scales.num_bytes == (VLM_DIR / "model.safetensors").stat().st_size


def test_a_vlm_that_is_not_here_is_not_downloaded(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    scales = read_scales("nobody/has-this-vlm")
    assert (scales.stage1, scales.stage2) == (attention_rms(USUAL_HIDDEN_SIZE), USUAL_RMS)
    assert "not on this machine" in scales.source and scales.num_bytes is None


@pytest.mark.parametrize("path", ["./nothing", "nothing", "/nothing/at/all"])
def test_what_can_be_neither_is_refused(path):
    with pytest.raises(InputError, match=r"vlm\.path: .*not a directory"):
        read_scales(path)


def test_a_directory_without_a_vlm_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no config.json"):
        read_scales(str(tmp_path))


@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl"])
def test_a_factor_of_the_embeddings_is_that_of_the_loaded_half(family_vlm, family):
    import torch

    directory = family_vlm(family)
    half = load_language_half(str(directory), torch.float32, "cpu", "sdpa")
    factor = half.embedding_scale
    assert embedding_scale_of(load_config(directory)) == pytest.approx(factor)
    assert (factor > 1) == (family == "gemma3")
    whole = float((half.table.float() * factor).square().mean().sqrt())
    assert read_scales(str(directory)).stage2 == pytest.approx(whole, rel=0.1)
