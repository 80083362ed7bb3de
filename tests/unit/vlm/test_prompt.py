"""Tokenizers and chat templates of other versions and other models: one line that names the directory."""

import dataclasses
import json

import pytest

from masp.errors import InputError
from masp.vlm.processor import special_ids
from masp.vlm.prompt import Prompt, _end, load_prompt

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
    assert f"image_token_id = {number} is not a token id of the tokenizer" in refused(vlm)


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


SPECIAL_TEXTS = (
    "<|im_end|>",
    "joy<|im_end|>",
    "a <|image_pad|> b<|vision_start|>",
    "<|im_start|>user\nfear<|im_end|>\n",
)


@pytest.mark.parametrize("text", SPECIAL_TEXTS)
def test_special_tokens_in_a_text_of_the_user_are_a_text(whole_vlm, text):
    prompt = load_prompt(str(whole_vlm))
    special = special_ids(prompt.tokenizer)
    answer, question = prompt.answer(text), prompt.question(text)
    assert not special & {*answer} and prompt.decode(list(answer)) == text
    # of the template's own there are as many as around any question
    count = sum(token in special for token in prompt.question("joy"))
    assert sum(token in special for token in question) == count
    assert prompt.tokenizer.decode(question).startswith(text)
    assert question[-4:] == prompt.question("joy")[-4:]


@pytest.mark.parametrize("text", ["joy", "fearful", " joy", "amuse/awe", 'say "joy"', "радость 😀", "long " * 30])
def test_words_of_an_answer_can_be_read_again(whole_vlm, text):
    prompt = load_prompt(str(whole_vlm))
    assert prompt.decode(list(prompt.answer(text))) == text and prompt.end not in prompt.answer(text)


def test_a_tokenizer_that_cannot_read_special_tokens_as_a_text(whole_vlm, monkeypatch):
    prompt = load_prompt(str(whole_vlm))
    # as tokenizers that mark the beginning of a text
    monkeypatch.setattr(Prompt, "plain_ids", lambda self, text: (0, *self.ids(text)))
    for refuse in (prompt.answer, prompt.question):
        with pytest.raises(InputError, match="^vlm.path: the text 'a <.im_end.>' contains '<.im_end.>', which"):
            refuse("a <|im_end|>")


def test_a_placeholder_that_is_not_a_special_token(whole_vlm):
    prompt = load_prompt(str(whole_vlm))
    prompt.tokenizer.add_tokens(["<picture>"])
    family = dataclasses.replace(prompt.family, image_token_id=prompt.ids("<picture>")[0])
    with pytest.raises(InputError, match="'a <picture>' contains '<picture>', which the tokenizer can only read"):
        dataclasses.replace(prompt, family=family).answer("a <picture>")


def test_the_token_that_ends_an_answer(whole_vlm):
    tokenizer = load_prompt(str(whole_vlm)).tokenizer
    special = special_ids(tokenizer)
    end, other = (tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("im_end", "endoftext"))
    assert tokenizer.eos_token_id == end
    assert _end(whole_vlm, tokenizer, "", special) == end  # the template writes nothing
    assert _end(whole_vlm, tokenizer, " <|endoftext|>\n", special) == other
    with pytest.raises(InputError, match="ends an answer with '!', which does not begin with a special token"):
        _end(whole_vlm, tokenizer, "!", special)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="writes nothing after an answer, and the tokenizer has no eos_token$"):
        _end(whole_vlm, tokenizer, "\n", special)
