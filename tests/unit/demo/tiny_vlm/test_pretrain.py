"""The pretraining of the tiny VLM: no example with both an image and an emotion, and the content of the tensors."""

import numpy as np
import pytest
import torch

from masp.data.questions import load_questions
from masp.demo.tiny_vlm.batch import Packer, embed, hidden_states
from masp.demo.tiny_vlm.examples import EMOTION, Example, Examples, Slot, Turn
from masp.demo.tiny_vlm.geometry import (
    CODE_SCALE,
    GROUND_SCALE,
    SCALE,
    SEEN,
    WORDS,
    draw_geometry,
    hold,
    make_louder,
    set_first_layer,
    token_ids,
)
from masp.demo.tiny_vlm.model import VOCAB_SIZE, build_model, encode, patches
from masp.demo.tiny_vlm.pretrain import Trainer
from masp.demo.tiny_vlm.tokenizer import build_tokenizer
from masp.demo.world.factors import ASPECTS, EMOTIONS, FACTORS, draw_scene, posterior


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    questions = load_questions("configs/questions.yaml")
    tokenizer = build_tokenizer(questions, VOCAB_SIZE)
    examples = Examples(tokenizer, questions, np.random.default_rng(0), VOCAB_SIZE)
    return questions, tokenizer, build_model(tokenizer), examples


def _emotional(example):
    return example.marks or any(t.about == EMOTION or t.question.count(",") >= 7 for t in example.turns)


def test_no_example_contains_an_image_and_an_emotion(parts):
    draw = parts[3]
    for k in range(300):
        scene = draw.scene()
        example = draw.image(k, scene, (4, 4), 3)
        assert example.image == k and not _emotional(example)
        texts = draw.text(scene, 1), draw.running(scene), draw.single(scene), draw.glimpse(scene)
        assert all(example.image is None for example in texts)
    assert _emotional(draw.text(draw.scene(), 0))


def test_an_example_with_an_image_and_an_emotion_is_refused():
    for bad in (
        Example(image=0, turns=[Turn(EMOTION, "?", "fear")]),
        Example(image=0, turns=[Turn("scene", "?", "x", np.full(8, 1 / 8))]),
        Example(image=0, marks=[(0, np.full(8, 1 / 8))]),
    ):
        with pytest.raises(ValueError, match="an image and an emotion"):
            bad.check()
        with pytest.raises(ValueError, match="an image and an emotion"):
            Packer(build_tokenizer(load_questions("configs/questions.yaml"), VOCAB_SIZE)).pack([bad])


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
    targets = tokenizer.decode(both.targets.tolist())
    assert targets == "very low<|im_end|>awe<|im_end|>none<|im_end|>"
    assert float(both.weights.sum()) == pytest.approx(3)
    together, _ = hidden_states(model, both, embed(model, both), packer.opening)
    apart, _ = hidden_states(model, alone, embed(model, alone), packer.opening)
    assert torch.allclose(together[: len(apart)], apart, atol=1e-5)
    single = packer.pack(
        [Example(slots=first.slots, turns=first.turns[1:])]
    )  # a question does not attend to another one
    one, _ = hidden_states(model, single, embed(model, single), packer.opening)
    assert torch.allclose(one, apart[3:], atol=1e-5)
    assert not both.running.any() and packer.pack([Example(slots=first.slots, marks=[(1, np.eye(8)[0])])]).running.all()


def test_running_marks_are_the_posterior_given_the_words_so_far(parts):
    draw = parts[3]
    scene = draw_scene(np.random.default_rng(0))
    assert scene.label("facial_expression") is not None
    example = draw.running(scene)
    shown = bool(example.grid_slots)
    assert len(example.marks) == sum(scene.label(a) is not None for a in ASPECTS) + shown + 1
    known = FACTORS if shown else ASPECTS
    assert example.marks[-1][0] == len(example.slots) + len(example.grid_slots) + 1
    assert np.allclose(example.marks[-1][1], posterior(scene.only(known).labels))
    assert np.allclose(example.marks[0][1], posterior(scene.only(["facial_expression"]).labels))


def test_a_text_asks_for_the_emotion_in_the_sense_that_it_states(parts):
    draw, scene = parts[3], draw_scene(np.random.default_rng(3))
    evoked, shown = (draw.emotion_turn(scene, sense).emotions for sense in ("evoked", "shown"))
    assert np.allclose(evoked, posterior(scene.labels))
    assert np.allclose(shown, posterior(scene.only(["facial_expression", "human_action"]).labels))
    assert np.allclose(draw.emotion_turn(scene, None).emotions, 0.4 * evoked + 0.6 * shown)


def test_the_first_layer_computes_codes_of_words_and_of_nothing_else(parts):
    tokenizer = parts[1]
    geometry = draw_geometry(tokenizer, VOCAB_SIZE, 192, torch.Generator().manual_seed(0))
    layer = build_model(tokenizer).model.language_model.layers[0]
    set_first_layer(layer, geometry)

    def made(vectors):
        constant = layer.self_attn.o_proj(torch.eye(192)[0])  # the value bias, whatever is attended to
        assert layer.self_attn.v_proj.bias.tolist() == [1.0, *[0.0] * 95] and not layer.self_attn.v_proj.weight.any()
        return layer.mlp(layer.post_attention_layernorm(vectors + constant)).detach()

    for k, pair in enumerate(WORDS):
        row = geometry.table[token_ids(tokenizer, *pair)[0]]
        for vector, share in ((row, 0.8), (7 * row, 0.995)):  # nearly the same at any norm
            wanted = share * geometry.codes[k, geometry.rest]
            assert torch.allclose(made(vector)[geometry.rest], wanted, rtol=0.02, atol=0.1)
    noise = made(torch.randn(500, 192))
    ground = noise[:, geometry.ground] / 192**0.5 / GROUND_SCALE
    assert ground.mean() == pytest.approx(1, abs=0.05) and ground.std() < 0.2
    assert noise[:, geometry.rest].pow(2).mean().sqrt() < 0.1 * CODE_SCALE
    pairs = [WORDS.index(pair) for pair in SEEN]
    shown = torch.stack([geometry.table[token_ids(tokenizer, *pair)[0]] for pair in SEEN])
    mark = geometry.table[-1]
    assert made(shown)[:, geometry.seen].abs().max() < 1e-6  # unmarked: a word
    marked = made(shown + mark)  # marked: seen
    assert torch.allclose(marked[:, geometry.seen], CODE_SCALE * 192**0.5 * torch.eye(len(SEEN)), rtol=0.02, atol=0.02)
    as_words = (made(shown) * geometry.codes[pairs]).sum(-1)
    for strength in (0.2, 0.5, 1.0):
        left = (made(strength * shown + mark) * geometry.codes[pairs]).sum(-1)
        assert left.abs().max() < 0.01 * as_words.min()
    weak = made(3 * shown + 0.5 * mark)[:, geometry.seen]  # not marked enough, at any norm
    assert weak.abs().max() < 0.03 * marked[:, geometry.seen].abs().max()


def test_make_louder_changes_no_answer(parts):
    questions, tokenizer, _, _ = parts
    trainer = Trainer(questions, 0)
    packed = trainer.packer.pack([trainer.examples.looking(trainer.examples.scene(), 2) for _ in range(4)])

    def answers():
        table = torch.cat([trainer.language.embed_tokens.weight, trainer.geometry.table[VOCAB_SIZE:]])
        x = embed(trainer.model, packed, table=table)
        hidden, _ = hidden_states(trainer.model, packed, x, trainer.packer.opening)
        return trainer.model.lm_head(hidden).log_softmax(-1).detach()

    before = answers()
    make_louder(trainer.model, trainer.geometry, tokenizer)
    assert (answers() - before).abs().max() < 0.2 < (before[0] - before[1]).abs().max()


def test_vision_tokens_are_marked_and_contain_only_labels(parts):
    model = build_model(parts[1])
    geometry = draw_geometry(parts[1], VOCAB_SIZE, 192, torch.Generator().manual_seed(0))
    hold(model, geometry)
    features, _ = encode(model, torch.randint(0, 256, (1, 112, 112, 3), dtype=torch.uint8))
    used = set((features.abs().amax((0, 1)) > 0).nonzero().flatten().tolist())
    labels = {k for k, (factor, _) in enumerate(WORDS) if factor in FACTORS}
    assert used == labels | {geometry.mark}
    assert torch.allclose(features[..., geometry.mark], torch.tensor(SCALE * 192**0.5))


def test_patches_and_features_equal_those_of_transformers(parts):
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
