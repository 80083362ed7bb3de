"""Weight files of which a part would not be read: one line that names the file or the tensor."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from masp.errors import InputError
from masp.vlm.files.weights import INDEX, ONE, check_weights, unread
from masp.vlm.language import load_language_half
from masp.vlm.vision import load_vision_half


def refused(vlm, call=check_weights) -> str:
    with pytest.raises(InputError) as error:
        call(vlm)
    assert str(vlm) in str(error.value) and "\n" not in str(error.value) and error.value.exit_code == 2
    return str(error.value)


def shard(vlm, **tensors) -> None:
    """Weights as two files with a list, and more tensors in the second."""
    weights = load_file(vlm / ONE)
    (vlm / ONE).unlink()
    names = sorted(weights)
    parts = {
        "a.safetensors": {n: weights[n] for n in names[::2]},
        "b.safetensors": {n: weights[n] for n in names[1::2]},
    }
    place = {name: file for file, part in parts.items() for name in part}
    parts["b.safetensors"] |= tensors
    for file, part in parts.items():
        save_file(part, vlm / file, {"format": "pt"})
    (vlm / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": place}))


def test_shards(vlm):
    shard(vlm)
    assert [path.name for path in check_weights(vlm)] == ["a.safetensors", "b.safetensors"]
    (vlm / "b.safetensors").rename(vlm / "c.safetensors")
    assert f"{INDEX} names 'b.safetensors', which is not a file there" in refused(vlm)
    (vlm / "c.safetensors").rename(vlm / "b.safetensors")
    save_file({"x": torch.ones(1)}, vlm / "adapter_model.safetensors")
    assert "'adapter_model.safetensors' is not part of the weights" in refused(vlm)
    (vlm / "adapter_model.safetensors").rename(vlm / ONE)
    assert f"holds both {ONE} and {INDEX}" in refused(vlm)


def test_a_list_that_differs_from_the_files(vlm):
    shard(vlm, extra=torch.ones(1))
    assert f"tensor 'extra' is in b.safetensors, but {INDEX} puts it in no file" in refused(vlm)


@pytest.mark.parametrize("cut", [0, 4, 8, 100, -1])
def test_a_file_cut_short(vlm, cut):
    data = (vlm / ONE).read_bytes()
    (vlm / ONE).write_bytes(data[:cut])
    assert "is not a complete safetensors file: " in refused(vlm)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2**31], "data_offsets": [0, 2**33]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
    ],
)
def test_sizes_that_the_file_does_not_have(vlm, entry):
    header = json.dumps({"x": entry}).encode()
    (vlm / ONE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert "is not a complete safetensors file: " in refused(vlm)
    (vlm / ONE).write_bytes((2**40).to_bytes(8, "little") + header)
    assert "is not a complete safetensors file: " in refused(vlm)


def test_quantized_tensors(vlm):
    weights = load_file(vlm / ONE)
    save_file(weights | {"lm_head.weight": weights["lm_head.weight"].to(torch.float8_e4m3fn)}, vlm / ONE)
    assert "tensor 'lm_head.weight' has dtype F8_E4M3; must be one of F32, F16, BF16" in refused(vlm)


@pytest.mark.parametrize(
    "name",
    [
        "visual.blocks.0.attn.qkv.weight_scale",
        "model.layers.0.self_attn.q_proj.weight_scale",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
    ],
)
def test_tensors_without_a_place(vlm, name):
    save_file({**load_file(vlm / ONE), name: torch.ones(1)}, vlm / ONE, {"format": "pt"})
    for call in (lambda path: load_language_half(str(path)), load_vision_half):
        assert name.rpartition(".")[2] in refused(vlm, call)


def test_buffers_that_every_model_computes(vlm):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file({**load_file(vlm / ONE), name: torch.ones(4)}, vlm / ONE, {"format": "pt"})
    load_language_half(str(vlm)), load_vision_half(vlm)


def test_integers_are_taken(vlm):
    save_file({**load_file(vlm / ONE), "visual.embeddings.position_ids": torch.arange(4)}, vlm / ONE, {"format": "pt"})
    assert check_weights(vlm) == [vlm / ONE]


def test_experts_that_are_one_tensor_in_memory_belong_to_the_half_that_has_them():
    other_half = ["model.layers.0.mlp.experts.gate_up_proj", "model.norm.weight"]
    stored = ["model.layers.0.mlp.experts.7.up_proj.weight", "model.norm.weight"]
    assert unread(stored, other_half) == []
    lacking = "model.layers.1.mlp.experts.7.up_proj.weight"  # a layer that no half has
    assert unread([*stored, lacking, "model.extra.weight"], other_half) == ["model.extra.weight", lacking]
