"""The size of word embeddings, from a sample of the table's rows."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from masp.errors import InputError
from masp.vlm.files.embeddings import embedding_rms
from tests.tiny import make_vlm

NAME = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return make_vlm(tmp_path_factory.mktemp("vlm") / "vlm")


def table_of(directory):
    tensors = load_file(directory / "model.safetensors")
    (name,) = (name for name in tensors if name.endswith("embed_tokens.weight"))
    return tensors, name


def with_table(vlm, directory, table):
    """The VLM with another table, of which only `embedding_rms` knows what to make."""
    shutil.copytree(vlm, directory)
    tensors, name = table_of(directory)
    save_file({**tensors, name: table}, directory / "model.safetensors")
    return directory


def test_it_is_that_of_the_whole_table_or_near(vlm, tmp_path):
    tensors, name = table_of(vlm)
    hidden = tensors[name].shape[1]
    assert embedding_rms(vlm, hidden) == pytest.approx(float(tensors[name].float().square().mean().sqrt()), rel=0.1)
    large = torch.randn(50_000, hidden, dtype=torch.bfloat16) * 3
    assert embedding_rms(with_table(vlm, tmp_path / "large", large), hidden) == pytest.approx(3, rel=0.03)


def test_rows_of_the_whole_table_are_drawn(vlm, tmp_path):
    hidden = table_of(vlm)[0][table_of(vlm)[1]].shape[1]
    table = torch.zeros(10_000, hidden)
    table[5_000:] = 2.0  # the RMS of all is the root of 2
    assert embedding_rms(with_table(vlm, tmp_path / "half", table), hidden) == pytest.approx(2**0.5, rel=0.03)


def test_without_a_table_there_is_none(vlm, tmp_path):
    hidden = table_of(vlm)[0][table_of(vlm)[1]].shape[1]
    assert embedding_rms(vlm, hidden + 1) is None
    assert embedding_rms(with_table(vlm, tmp_path / "zero", torch.zeros(40, hidden)), hidden) is None


def test_weights_that_are_not_whole_are_refused(vlm, tmp_path):
    directory = tmp_path / "cut"
    shutil.copytree(vlm, directory)
    data = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(data[:-10])
    with pytest.raises(InputError, match="not a complete safetensors file"):
        embedding_rms(directory, 32)
    assert json.loads((directory / "config.json").read_text())  # the rest of it is as it was
