"""Tokenizers that would hang, grow, answer at random or have tokens without embedding: one line that names the key."""

import json

import pytest

from masp.errors import InputError
from masp.vlm.prompt import load_prompt


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
         "crashes on short texts"),
        ("normalizer", {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}]},
         "a text of 100 characters becomes 1,099 tokens"),
        ("decoder", {"type": "Strip", "content": "a", "start": 1, "stop": 1}, "crashes on short texts"),
        ("model", {"dropout": 0.1}, "model.dropout = 0.1: must be null"),
    ],
)  # fmt: skip
def test_a_step_of_another_tokenizer(vlm, section, value, message):
    content = json.loads((vlm / "tokenizer.json").read_text())
    content[section] = {**content["model"], **value} if section == "model" else value
    (vlm / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        load_prompt(str(vlm))
    assert message in str(error.value) and str(vlm) in str(error.value)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("config.json", {"text_config__vocab_size": 100}, "vocab_size = 100 in config.json, but the tokenizer has a"),
        ("tokenizer_config.json", {"image_token": "<image>"}, "image_token = '<image>' in tokenizer_config.json, but"),
    ],
)
def test_facts_stated_twice(vlm, change, name, values, message):
    change(name, **values)
    with pytest.raises(InputError, match=message):
        load_prompt(str(vlm))
