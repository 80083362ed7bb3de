"""Chat templates of any kind: every piece of the prompt is in the text, within a bound, or it is one line."""

import json

import pytest
from transformers import AutoTokenizer

from masp.errors import InputError
from masp.vlm.files.render_template import render
from masp.vlm.files.template import SYSTEM, Turn, chat_turn
from masp.vlm.prompt import load_prompt
from tests.tiny import CHAT_TEMPLATE

IMAGE = "<|image_pad|>"
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{% if p.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Takes content as a list of parts only; of a string it writes nothing."""


def refused(directory) -> str:
    with pytest.raises(InputError) as error:
        chat_turn(directory, IMAGE, {}, has_system=True)
    assert str(directory) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_the_same_text_as_transformers(vlm):
    tokenizer = AutoTokenizer.from_pretrained(vlm)
    content = [{"type": "image"}, {"type": "text", "text": "Q"}]
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": content}]
    for add in (True, False):
        theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add)
        assert render(CHAT_TEMPLATE, {"messages": messages, "add_generation_prompt": add}) == theirs


def test_a_template_that_takes_lists_only(vlm):
    whole = load_prompt(str(vlm))
    (vlm / "chat_template.jinja").write_text(PARTS)
    parts = load_prompt(str(vlm))
    assert (parts.opening, parts.after_question, parts.end) == (whole.opening, whole.after_question, whole.end)


@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json", "tokenizer_config.json"])
def test_the_only_template_is_in_another_file(tmp_path, name):
    (tmp_path / name).write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    assert chat_turn(tmp_path, IMAGE, {}, has_system=True).tail == "<|im_end|>\n"
    (tmp_path / name).write_text(json.dumps({"chat_template": [{"name": "default", "template": CHAT_TEMPLATE}]}))
    assert chat_turn(tmp_path, IMAGE, {}, has_system=True).tail == "<|im_end|>\n"
    (tmp_path / "chat_template.jinja").write_text("Hello " + CHAT_TEMPLATE)
    assert "have chat templates that write different prompts" in refused(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "piece"),
    [
        ("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}", "the system text"),
        (IMAGE, "", "the image"),
        (IMAGE, IMAGE * 2, "the image more than once"),
        ("{{ part['text'] }}", "", "the question"),
        ("{{ part['text'] }}", "{{ part['text'] * 2 }}", "the question more than once"),
        ("{% for m in messages %}", "{% for m in messages if m.role != 'assistant' %}", "write the answer"),
    ],
)
def test_a_piece_that_is_lost(tmp_path, old, new, piece):
    assert old in CHAT_TEMPLATE
    (tmp_path / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace(old, new))
    assert piece in refused(tmp_path)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**9) %}{% endfor %}",
        pytest.param(
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", marks=pytest.mark.full
        ),
        "{{ 'a' * 10**9 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ strftime_now('%Y') }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_that_loops_grows_or_reaches_out(tmp_path, template):
    (tmp_path / "chat_template.jinja").write_text(template)
    message = refused(tmp_path)
    assert "cannot be" in message or "does not write" in message


THINKING = "<|im_start|>assistant\n{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}"


def test_a_model_that_thinks_is_told_not_to(tmp_path):
    template = CHAT_TEMPLATE.replace("<|im_start|>assistant\n", THINKING)
    assert template != CHAT_TEMPLATE
    (tmp_path / "chat_template.jinja").write_text(template)
    turn = chat_turn(tmp_path, IMAGE, {}, has_system=True)
    assert turn.closing == "<|im_end|>\n<|im_start|>assistant\n" and "<think>" not in str(turn)


def test_a_template_that_thinks_whatever_it_is_told_writes_it_into_the_prompt(tmp_path):
    (tmp_path / "chat_template.jinja").write_text(
        CHAT_TEMPLATE.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n")
    )
    turn = chat_turn(tmp_path, IMAGE, {}, has_system=True)
    assert turn.closing.endswith("assistant\n<think>\n\n</think>\n\n") and turn.lead == ""


VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>\n{% else %}{{ p['text'] }}{% endif %}"
    "{% endfor %}{% endif %} {% else %}ASSISTANT: {{ m['content'] }}END{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@pytest.mark.parametrize(("end", "tail"), [("</s>", "</s>"), ("", "")])
def test_white_space_before_an_answer_belongs_to_the_answer(tmp_path, end, tail):
    (tmp_path / "chat_template.jinja").write_text(VICUNA.replace("END", end))
    turn = chat_turn(tmp_path, "<image>", {}, has_system=False)
    assert turn == Turn("USER: ", "\n", " ASSISTANT:", " ", tail, "USER: QUESTION ASSISTANT:")


def test_without_a_system_turn_the_prompt_begins_with_what_the_template_writes(tmp_path):
    (tmp_path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    assert SYSTEM in chat_turn(tmp_path, IMAGE, {}, has_system=True).before
    assert chat_turn(tmp_path, IMAGE, {}, has_system=False).before == "<|im_start|>user\n<|vision_start|>"
