"""What the tiny VLM is pretrained on: never a picture with an emotion, and what the tensors hold."""

import numpy as np
import pytest
import torch

from masp.data.categories import ASPECTS
from masp.data.demo.batch import Packer, embed, hidden_states
from masp.data.demo.examples import EMOTION, Example, Examples, Slot, Turn
from masp.data.demo.model import VOCAB_SIZE, build_model, encode, patches
from masp.data.demo.tokenizer import build_tokenizer
from masp.data.demo.world import EMOTIONS, draw_scene, posterior
from masp.data.questions import load_questions


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    questions = load_questions("configs/questions.yaml")
    tokenizer = build_tokenizer(questions, VOCAB_SIZE)
    return questions, tokenizer, build_model(tokenizer), Examples(tokenizer, questions, np.random.default_rng(0))


def _emotional(example):
    return example.marks or any(t.about == EMOTION or t.question.count(",") >= 7 for t in example.turns)


def test_no_example_holds_a_picture_and_an_emotion(parts):
    draw = parts[3]
    for k in range(300):
        scene = draw.scene()
        for example in (draw.picture(k, scene, (4, 4), 3), draw.picture_with_words(k, scene, (4, 4), 3)):
            assert example.picture == k and not _emotional(example)
        for example in (draw.text(scene, 1), draw.running(scene), draw.single(scene), draw.object_list()):
            assert example.picture is None
    assert _emotional(draw.text(draw.scene(), 0))


def test_the_builder_refuses_a_picture_with_an_emotion():
    for bad in (
        Example(picture=0, turns=[Turn(EMOTION, "?", "fear")]),
        Example(picture=0, turns=[Turn("scene", "?", "x", np.full(8, 1 / 8))]),
        Example(picture=0, marks=[(0, np.full(8, 1 / 8))]),
    ):
        with pytest.raises(ValueError, match="a picture and an emotion"):
            bad.check()


def test_every_word_that_matters_is_one_token(parts):
    tokenizer = parts[1]
    for word in (*EMOTIONS, "low", "high", "happy", "cemetery", "yoga"):
        assert len(tokenizer(word)["input_ids"]) == len(tokenizer(f" {word}")["input_ids"]) == 1
    assert tokenizer.decode(tokenizer("Ünïcode → text, 123")["input_ids"]) == "Ünïcode → text, 123"


def test_supervised_positions_predict_the_answer_and_rows_do_not_mix(parts):
    _, tokenizer, model, _ = parts
    packer = Packer(tokenizer)
    turns = [Turn("brightness", "How?", "very low"), Turn(EMOTION, "Why?", "awe")]
    first = Example(slots=[Slot(packer.ids("happy"), [1.0])], turns=turns)
    second = Example(slots=[Slot([5], [1.0])] * 9, gap=3, turns=[Turn("object", "What is it?", "none")])
    both, alone = packer.pack([first, second]), packer.pack([first])
    said = tokenizer.decode(both.targets.tolist())
    assert said == "very low<|im_end|>awe<|im_end|>none<|im_end|>"
    assert float(both.weights.sum()) == pytest.approx(3)
    together = hidden_states(model, both, embed(model, both), packer.opening)
    apart = hidden_states(model, alone, embed(model, alone), packer.opening)
    assert torch.allclose(together[: len(apart)], apart, atol=1e-5)
    single = packer.pack([Example(slots=first.slots, turns=first.turns[1:])])  # a question does not see its neighbour
    assert torch.allclose(hidden_states(model, single, embed(model, single), packer.opening), apart[3:], atol=1e-5)


def test_running_marks_are_the_posterior_of_what_was_told(parts):
    draw = parts[3]
    scene = draw_scene(np.random.default_rng(3))
    example = draw.running(scene)
    assert len(example.marks) == sum(i >= 0 for i in scene.labels)
    assert np.allclose(example.marks[-1][1], posterior(scene.labels))
    known = [scene.labels[0] if a == "facial_expression" else -1 for a in ASPECTS]
    if scene.labels[0] >= 0:
        assert np.allclose(example.marks[0][1], posterior(known))


def test_patches_and_features_are_those_of_transformers(parts):
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    model = parts[2]
    pixels = torch.randint(0, 256, (2, 112, 140, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    processor = Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=78400, patch_size=14, merge_size=2)
    theirs = processor([Image.fromarray(p.numpy()) for p in pixels], return_tensors="pt")
    ours, grid = patches(pixels)
    assert torch.allclose(ours, theirs["pixel_values"], atol=1e-5)
    assert theirs["image_grid_thw"].tolist() == [[*grid]] * 2
    out = model.model.visual(ours, grid_thw=torch.tensor([grid] * 2)).pooler_output
    assert torch.allclose(encode(model, pixels)[0].flatten(0, 1), out, atol=1e-4)
