"""Tokenizers and chat templates of other versions and other models: one line that names the directory."""

import json

import pytest

from masp.errors import InputError
from masp.vlm.prompt import load_prompt

TEXT_ONLY = "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>\n{% endfor %}"


def refused(vlm) -> str:
    with pytest.raises(InputError) as error:
        load_prompt(str(vlm))
    assert str(vlm) in str(error.value) and "\n" not in str(error.value) and error.value.exit_code == 2
    return str(error.value)


def test_a_tokenizer_of_a_newer_version(vlm, change):
    model = json.loads((vlm / "tokenizer.json").read_text())["model"]
    change("tokenizer.json", model={**model, "type": "Quantum"})
    assert "has no usable tokenizer: data did not match any variant" in refused(vlm)


def test_settings_of_the_tokenizer_that_are_a_list(vlm):
    (vlm / "tokenizer_config.json").write_text("[1]")
    assert "tokenizer_config.json" in refused(vlm)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (TEXT_ONLY, "cannot be used: can only concatenate str"),
        ("{{ messages[7].role }}", "cannot be used: "),
        ("{% for %}", "cannot be used: "),
        ("{{ raise_exception('no system role') }}", "cannot be used: no system role"),
        ("nothing", "does not write the system text"),
        ("", "has no chat template"),
    ],
)
def test_a_chat_template_for_something_else(vlm, template, message):
    (vlm / "chat_template.jinja").write_text(template)
    assert message in refused(vlm)


@pytest.mark.parametrize("number", [-5, 10**6, 10**30])
def test_an_image_token_that_the_tokenizer_does_not_have(vlm, change, number):
    change("config.json", image_token_id=number)
    assert f"image_token_id = {number} is not a token of the tokenizer" in refused(vlm)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "generation_config.json"),
        ('{"eos_token_id": "x"}', "eos_token_id = 'x': must be token ids"),
        ('{"eos_token_id": [1, "x"]}', "must be token ids"),
    ],
)
def test_odd_generation_settings(vlm, content, message):
    (vlm / "generation_config.json").write_text(content)
    assert message in refused(vlm)
