"""What loading leaves behind, and whose failure it is."""

import os
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLTextModel

from masp.errors import InputError
from masp.vlm.language import load_language_half
from masp.vlm.loading import ENVIRONMENT, AttentionError
from tests.tiny import make_vlm


class Counting:
    """Divides nothing; fails at the parameter of that number."""

    def __init__(self, fails_at: int = 0):
        self.fails_at, self.seen, self.environment = fails_at, [], set()

    def cut(self, parameter):
        self.seen.append(parameter)
        self.environment.add(os.environ.get(ENVIRONMENT))
        if len(self.seen) == self.fails_at:
            raise RuntimeError("connection closed by peer")

    def whole(self, parameters):
        return nullcontext()


@pytest.mark.parametrize("before", [None, "0"])
def test_each_parameter_is_handed_over_once_and_nothing_stays_behind(tmp_path, monkeypatch, before):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    if before:
        monkeypatch.setenv(ENVIRONMENT, before)
    vlm, partition = str(make_vlm(tmp_path / "vlm")), Counting()
    half = load_language_half(vlm, partition=partition)
    assert sorted(map(id, partition.seen)) == sorted(map(id, half.parameters()))
    assert not any(parameter.requires_grad for parameter in partition.seen)
    assert partition.environment == {"1"} and os.environ.get(ENVIRONMENT) == before
    count = len(partition.seen)
    plain = load_language_half(vlm)
    nn.Linear(2, 2)
    assert len(partition.seen) == count
    expected = dict(plain.named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in half.named_parameters())


def test_a_rank_that_is_gone_is_not_called_damaged_weights(tmp_path):
    """The watch over the ranks says which one it was, where an error is not the user's."""
    partition = Counting(fails_at=3)
    with pytest.raises(RuntimeError, match="connection closed by peer"):
        load_language_half(str(make_vlm(tmp_path / "vlm")), partition=partition)
    assert len(partition.seen) == 3 and ENVIRONMENT not in os.environ
    nn.Linear(2, 2)
    assert len(partition.seen) == 3


@pytest.mark.parametrize("data", [b"", b"no pickle", b"\x80\x02K\x01."])
def test_weights_in_another_format(vlm, data):
    (vlm / "model.safetensors").unlink()
    (vlm / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(InputError, match=f"vlm.path: {vlm} holds no .*; pytorch_model.bin is a pickle") as error:
        load_language_half(str(vlm))
    assert "\n" not in str(error.value) and error.value.exit_code == 2


@pytest.mark.parametrize("content", ["{}", "[]", '{"weight_map": {"a": "model.safetensors"}}', "{"])
def test_an_odd_list_of_weight_files(vlm, content):
    (vlm / "model.safetensors").rename(vlm / "a.safetensors")
    (vlm / "model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError, match=f"vlm.path: {vlm}.*index.json"):
        load_language_half(str(vlm))


def test_attention_that_a_part_of_the_vlm_does_not_have(vlm, monkeypatch):
    monkeypatch.setattr(Qwen2VLTextModel, "_supports_sdpa", False)
    with pytest.raises(AttentionError, match="'sdpa': not supported by 'qwen2_vl' models; must be eager$"):
        load_language_half(str(vlm))
    load_language_half(str(vlm), attention="eager")


def test_weights_are_not_taken_for_a_matter_of_attention(vlm):
    (vlm / "model.safetensors").write_bytes(b"attention implementation")
    with pytest.raises(InputError) as error:
        load_language_half(str(vlm))
    assert not isinstance(error.value, AttentionError)
