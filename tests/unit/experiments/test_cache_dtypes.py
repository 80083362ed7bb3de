"""What a number format costs is measured against the encoder in fp32, with what the run has trained."""

import json

import pytest
import torch

from masp.cache.codec import TORCH_NAMES
from masp.cli.main import main
from masp.config import load_config
from masp.errors import InputError
from masp.experiments.cache_dtypes import measure, report, table
from masp.vlm.features import Features
from masp.vlm.vision import VisionHalf
from tests.runs import make_run


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = make_run(tmp_path_factory.mktemp("run"), 2, 8)
    return path, load_config(str(path), [])


def test_every_format_is_measured_and_wider_ones_cost_less(config, capsys):
    result = report(config[1], None, 100)
    assert (result.num_images, result.split, result.scored_with) == (8, "test", "nothing trained (zero-shot)")
    formats = result.formats
    assert list(formats) == list(TORCH_NAMES)
    assert {name: row.encoder_dtype for name, row in formats.items()} == {
        "bf16": "bf16", "fp16": "fp16", "fp32": "fp32", "int8": "fp32", "fp8": "fp32",
    }  # fmt: skip
    exact = formats["fp32"]
    assert exact.relative_error == exact.score_change_max == exact.num_changed == 0
    assert exact.accuracy == result.accuracy
    assert 0 < formats["fp16"].relative_error < formats["bf16"].relative_error < 0.05
    assert 0 < formats["int8"].relative_error < formats["fp8"].relative_error < 0.05
    for row in formats.values():
        assert 0.99 < row.cosine_min <= row.cosine_mean <= 1 + 1e-6
        assert 0 <= row.score_change_mean <= row.score_change_max < 5
    assert formats["bf16"].size_of_bf16 == 1 and 1.5 < exact.size_of_bf16 < 2
    text = capsys.readouterr().out
    assert text == table(result) + "\n" and len(text.splitlines()) == 4 + len(formats)


def test_from_the_command_line(config, capsys):
    path, _ = config
    assert main(["cache", "precision", "--config", str(path), "--dtype", "int8", "--num-images", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["num_images"] == 3 and list(result["formats"]) == ["int8"]
    assert main(["cache", "precision", "--config", str(path), "--dtype", "int4"]) == 2
    assert "--dtype int4: must be one of bf16, fp16" in capsys.readouterr().err


def test_what_a_format_cannot_hold_counts_as_changed(config, monkeypatch):
    encode = VisionHalf.encode

    def overflowing(self, *arguments):
        features = encode(self, *arguments)
        return [f.moved(lambda t: t * torch.inf) if self.dtype == torch.float16 else f for f in features]

    monkeypatch.setattr(VisionHalf, "encode", overflowing)
    row = measure(config[1], ["fp16"], 4).formats["fp16"]
    assert row.num_not_finite == row.num_changed == 4


def test_the_error_of_deep_maps_is_told_apart(config, monkeypatch):
    encode = VisionHalf.encode

    def with_maps(self, *arguments):
        # the second map has one large value per token, which costs int8 the small ones
        maps = [(f.tokens, torch.cat([torch.full_like(f.tokens[:, :1], 300), f.tokens[:, 1:]], 1))
                for f in encode(self, *arguments)]  # fmt: skip
        return [Features(tokens, torch.stack([tokens, spiked])) for tokens, spiked in maps]

    assert measure(config[1], ["int8"], 4).formats["int8"].deep_relative_error is None
    monkeypatch.setattr(VisionHalf, "encode", with_maps)
    monkeypatch.setattr("masp.models.sequence._pad_deep", lambda features: None)  # this VLM's decoder takes none
    result = measure(config[1], list(TORCH_NAMES), 4)
    formats = result.formats
    assert formats["fp32"].deep_relative_error == 0
    assert 0 < formats["fp16"].deep_relative_error < formats["bf16"].deep_relative_error < 0.01
    assert 0 < formats["int8"].deep_relative_error < 0.01
    assert formats["int8"].deep_relative_error != formats["int8"].relative_error
    lines = table(result).splitlines()
    assert sum("error of the deep maps" in line for line in lines) == len(formats)
    assert formats["bf16"].bytes_per_image > 3 * 2 * result.num_tokens / 4 * result.hidden_size


def test_a_split_that_is_not_there(config):
    path, _ = config
    with pytest.raises(InputError, match="has no image in this split"):
        measure(load_config(str(path), ["evaluate.split=val"]), ["int8"], 4)
    with pytest.raises(InputError, match="--num-images 0"):
        measure(config[1], ["int8"], 0)
