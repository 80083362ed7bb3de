"""The committed tiny VLM recognizes what it should, and transformers loads it."""

import shutil
import subprocess
import sys

import pytest
import torch

from masp.data.questions import load_questions
from masp.demo.tiny_vlm import VLM_DIR
from masp.demo.tiny_vlm.evaluate import aspect_accuracy, caption_accuracy, load_demo_vlm
from masp.demo.tiny_vlm.geometry import LOUDER, WORDS, draw_geometry
from masp.demo.tiny_vlm.image_pool import draw_pool
from masp.demo.tiny_vlm.model import VOCAB_SIZE, encode
from masp.errors import InputError


def test_the_committed_vlm_names_aspects_and_knows_emotions():
    model, tokenizer = load_demo_vlm(VLM_DIR)
    questions = load_questions("configs/questions.yaml")
    accuracy = aspect_accuracy(model, tokenizer, questions, 120)
    assert min(accuracy.values()) >= 0.85, accuracy
    assert sum(accuracy.values()) / len(accuracy) >= 0.9, accuracy
    reached, best = caption_accuracy(model, tokenizer, questions, 300)
    assert reached >= 0.93 * best


def test_vision_tokens_do_not_act_as_words():
    """The labels in vision tokens produce no word codes, except those of the weather."""
    model, tokenizer = load_demo_vlm(VLM_DIR)
    geometry = draw_geometry(tokenizer, VOCAB_SIZE, 192, torch.Generator().manual_seed(0))
    layer = model.model.language_model.layers[0]
    codes = geometry.codes / geometry.codes.pow(2).sum(-1, keepdim=True) / LOUDER
    weather = torch.tensor([factor == "weather" for factor, _ in WORDS])
    most = []
    for pixels, _ in draw_pool(120, "unseen").values():
        features, _ = encode(model, torch.from_numpy(pixels))
        made = layer.mlp(layer.post_attention_layernorm(features + layer.self_attn.o_proj.weight[:, 0]))
        most.append((made @ codes.T).amax((0, 1)))
    most = torch.stack(most).amax(0)
    assert most[~weather].max() < 0.1 < most[weather].min(), most


def test_it_is_small_and_names_its_tokens():
    from transformers import AutoConfig, AutoTokenizer

    config, tokenizer = AutoConfig.from_pretrained(VLM_DIR), AutoTokenizer.from_pretrained(VLM_DIR)
    assert config.model_type == "qwen2_vl" and (VLM_DIR / "model.safetensors").stat().st_size < 5e6
    for name in ("image", "video"):
        assert tokenizer.convert_ids_to_tokens(getattr(config, f"{name}_token_id")) == f"<|{name}_pad|>"
    turns = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Why?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.apply_chat_template(turns[1:], tokenize=False, add_generation_prompt=True) == text


def test_it_generates_through_transformers():
    model, tokenizer = load_demo_vlm(VLM_DIR)
    ids = tokenizer("<|im_start|>user\nName the scene.<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**ids, max_new_tokens=3, do_sample=False)
    assert out.shape[1] > ids["input_ids"].shape[1]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.jinja", "{% if %}{{"),
        ("generation_config.json", "{"),
        ("config.json", '{"model_type": "qwen2_vl", "vision_config": 3}'),
    ],
)
def test_a_damaged_file_of_a_vlm_is_named(tmp_path, file, content):
    from masp.vlm.prompt import load_prompt

    folder = shutil.copytree(VLM_DIR, tmp_path / "vlm")
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=r"vlm\.path: .*vlm") as error:
        load_prompt(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.full
def test_the_tool_builds_a_vlm_and_resumes_after_a_finished_phase(tmp_path):
    command = [sys.executable, "tools/build_demo_vlm.py", "--out", str(tmp_path / "vlm"), "--scale", "0.002"]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "language" in first.stdout and "sight" in first.stdout
    assert first.stdout.splitlines()[-1].startswith(f"wrote {tmp_path / 'vlm'} in ")
    weights = (tmp_path / "vlm" / "model.safetensors").read_bytes()
    for phase in ("doubts", "together"):
        (tmp_path / "vlm" / "phases" / f"{phase}.safetensors").unlink()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "language" not in again.stdout and "doubts" in again.stdout and "together" in again.stdout
    assert (tmp_path / "vlm" / "model.safetensors").read_bytes() == weights
    model, tokenizer = load_demo_vlm(tmp_path / "vlm")
    assert model.config.text_config.vocab_size >= len(tokenizer)
    other = subprocess.run([*command, "--seed", "1"], capture_output=True, text=True)
    assert other.returncode == 1 and "language.safetensors: seed is 0, not 1" in other.stderr
    assert "Traceback" not in other.stderr
