"""Every kind of VLM that needs no torchvision: our halves against the stock model of transformers.

The VLMs are tiny and of random weights; `families/zoo.py` of the shared directory defines them.
"""

import contextlib
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from masp.cache.codec import decode_features, encode_features, store
from masp.config import load_config as load_settings
from masp.evaluation.group.members import why_alone
from masp.experiments.family_check import _difference, _stock_logits, check_family
from masp.models.candidates import scored_tree
from masp.models.forward import run
from masp.models.generation import generate
from masp.models.group_likelihood import branch_of, score_members
from masp.models.likelihood import answer_losses, score_categories
from masp.models.losses import row_losses
from masp.models.sequence import build_sequence, make_batch
from masp.models.weighted import make_weighted_batch
from masp.vlm.families import load_config, model_class
from masp.vlm.language import LanguageHalf, load_language_half
from masp.vlm.loading import AttentionError, quiet_transformers
from masp.vlm.preprocessor import load_preprocessor
from masp.vlm.prompt import load_prompt
from masp.vlm.vision import load_vision_half

WORKING = (
    "qwen2_vl qwen2_5_vl qwen3_vl qwen3_vl_moe qwen3_5 qwen3_5_moe qwen4_exp internvl llava llava_next gemma3 gemma4 "
    "gemma4_e paligemma paligemma2 smolvlm idefics3 glm4v glm46v minicpmv4_6 deepseek_vl deepseek_vl_hybrid "
    "granite4_vision"
).split()
REFUSED = {
    "mllama": "its image features enter through cross-attention",
    "instructblip": "its image features depend on the question",
    "blip_2": "has no image_token",
}
SIZES = ((150, 100), (60, 75))
HEADERS = ((1024, 768), (768, 1024), (640, 427), (1024, 300), (333, 500), (90, 60), (1000, 1000))
QUESTIONS = ("What is it?", "Which of these do you see: joy, fear?")
ANSWERS = (
    "joy", "fear", "joyful", "fearful", " joy", "amuse/awe", 'what they call "joy"', "радость 😀", "<eos>", "long " * 9,
)  # fmt: skip


def image(width, height, seed=0):
    small = np.random.default_rng(seed).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclasses.dataclass
class Loaded:
    """Both halves of a VLM, and two images with a question each."""

    path: str
    attention: str

    def __post_init__(self):
        self.prompt, self.preprocessor = load_prompt(self.path), load_preprocessor(self.path)
        vision = load_vision_half(self.path, attention=self.attention)
        self.language = load_language_half(self.path, attention=self.attention)
        self.images = [image(*size, seed) for seed, size in enumerate(SIZES)]
        made = [self.preprocessor(each) for each in self.images]
        self.layouts = [layout for _, layout in made]
        # as they are read back from a cache
        self.features = [
            decode_features(memoryview(bytearray(encode_features(store(vision.encode([inputs], [layout])[0], "fp32")))))
            for inputs, layout in made
        ]
        self.joined = vision.encode([inputs for inputs, _ in made], self.layouts)

    def sequences(self, answer=None, **slots):
        slots = {"num_aspect_tokens": 0, "num_soft_tokens": 0, **slots}
        return [
            build_sequence(self.prompt, question, answer, image=layout, layout="after_image", **slots)
            for question, layout in zip(QUESTIONS, self.layouts, strict=True)
        ]

    def batch(self, sequences, **settings):
        return make_batch(self.prompt, sequences, self.features, row_image=range(len(sequences)), **settings)

    def hidden(self, batch, cache=None):
        return run(self.language, batch, None, None, cache)

    num_logits = None


@pytest.fixture(
    params=[(family, kind) for family in WORKING for kind in ("eager", "sdpa")], ids="-".join, scope="module"
)
def loaded(request, family_vlm):
    family, attention = request.param
    torch.set_num_threads(1)
    try:
        return Loaded(str(family_vlm(family)), attention)
    except AttentionError:
        assert family == "paligemma2" and attention == "sdpa"
        pytest.skip("transformers has no such attention for it")


def test_our_halves_say_what_the_stock_model_says(loaded, monkeypatch):
    vlm, (directory, attention) = loaded, (loaded.path, loaded.attention)
    config = load_config(Path(directory))
    with quiet_transformers():
        stock = model_class(config).from_pretrained(directory, dtype=torch.float32, attn_implementation=attention)
    monkeypatch.setattr(model_class(config), "from_pretrained", lambda *_, **__: stock)
    sequences = vlm.sequences()
    want = []
    for question, each in zip(QUESTIONS, vlm.images, strict=True):
        monkeypatch.setattr("masp.experiments.family_check.QUESTION", question)
        want.append(_stock_logits(Path(directory), config, vlm.prompt, each, attention, "cpu"))
    scale = max(1.0, *(float(each.abs().max()) / 2 for each in want))

    with torch.inference_mode():
        # one image after another, both at once, behind a prefix, and as scoring goes on from them
        for row in range(2):
            batch = make_batch(vlm.prompt, [sequences[row]], [vlm.features[row]], row_image=[0], frozen_prefix=False)
            found = vlm.language.logits(vlm.hidden(batch))[0]
            assert found.shape == want[row].shape and _difference(found, want[row]) <= 2e-6 * scale
        for settings in ({"frozen_prefix": False}, {}, {"goes_on": True}):
            batch = vlm.batch(sequences, **settings)
            logits = vlm.language.logits(vlm.hidden(batch))
            for row, sequence in enumerate(sequences):
                start = 0 if batch.prefix is None else sequence.split
                mask = batch.suffix.mask[row]
                assert _difference(logits[row][mask], want[row][start:]) <= 1e-5 * scale, settings

        candidates = [vlm.prompt.answer(answer) for answer in ANSWERS]
        sums, _ = score_categories(vlm, vlm.batch(sequences, goes_on=True), candidates, vlm.prompt.end)
        rows, first = generate(vlm, vlm.batch(sequences, goes_on=True), 3, frozenset())
    for row, sequence in enumerate(sequences):
        assert rows[row][0] == int(want[row][-1].argmax()) and _difference(first[row], want[row][-1]) <= 1e-5 * scale
        # what follows, by whole passes of our own half, which agrees with the stock model
        for place, words in enumerate([*candidates, tuple(rows[row][:2])]):
            ids = [*words, vlm.prompt.end][: 2 if place == len(candidates) else None]
            longer = extended(vlm, sequence, ids)
            batch = make_batch(vlm.prompt, [longer], [vlm.features[row]], row_image=[0], frozen_prefix=False)
            with torch.inference_mode():
                logits = vlm.language.logits(vlm.hidden(batch))[0, len(sequence) - 1 :]
            if place < len(candidates):
                own = logits[:-1].double().log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum()
                assert abs(float(own - sums[row, place])) <= 1e-5 * scale * len(ids)
            else:
                assert logits.argmax(-1).tolist() == rows[row]


def test_soft_prompts_and_questions_behind_one_prefix_score_what_each_scores_alone(loaded):
    vlm = loaded
    if vlm.prompt.family.runs_whole:
        assert "models read a prompt as a whole" in (why_alone_for(vlm) or "")
        return
    assert why_alone_for(vlm) is None
    scored = scored_tree(tuple(vlm.prompt.answer(answer) for answer in ANSWERS), vlm.prompt.end)
    candidates = [vlm.prompt.answer(answer) for answer in ANSWERS]
    table = vlm.language.table.detach()
    soft_prompts = [None, *(torch.randn(n, table.shape[1]) * table.std() for n in (2, 7))]
    made = [
        [
            build_sequence(vlm.prompt, question, None, num_aspect_tokens=0, image=layout, layout="after_image",
                           num_soft_tokens=0 if soft_prompt is None else len(soft_prompt))
            for layout in vlm.layouts
        ]
        for question, soft_prompt in zip((*QUESTIONS, "So?"), soft_prompts, strict=True)
    ]  # fmt: skip
    branches = [
        branch_of(vlm.language, sequences[1], soft_prompt, scored, "cpu")
        for sequences, soft_prompt in zip(made, soft_prompts, strict=True)
    ]
    found = score_members(vlm.language, vlm.batch(made[2]), None, branches, scored)
    for (sums, means), sequences, soft_prompt in zip(found, made, soft_prompts, strict=True):
        batch = vlm.batch(sequences, frozen_prefix=False, goes_on=True)
        model = SimpleNamespace(language=vlm.language, num_logits=None)
        model.hidden = lambda batch, cache, given=soft_prompt: run(vlm.language, batch, None, given, cache)
        own = score_categories(model, batch, candidates, vlm.prompt.end)
        for ours, alone in zip((sums, means), own, strict=True):
            torch.testing.assert_close(ours, alone, atol=2e-5, rtol=2e-6)


def why_alone_for(vlm):
    given = [f"vlm.path={vlm.path}", "checkpoint.soft_prompt=none", "cache.dir=cache", "dataset.root=images"]
    return why_alone(load_settings(None, given))


def test_images_that_are_encoded_together_have_the_features_that_they_have_alone(loaded):
    for alone, joined in zip(loaded.features, loaded.joined, strict=True):
        scale = max(1.0, float(alone.tokens.abs().max()))
        for one, other in zip(alone.tensors, joined.tensors, strict=True):
            assert _difference(one, other) <= 2e-6 * scale


def extended(vlm, sequence, ids):
    """A sequence with the words of an answer behind it."""
    count, start = len(ids), int(sequence.positions[0, -1]) + 1
    more = torch.arange(start, start + count).expand(3, -1)
    kind = int(vlm.prompt.family.runs_whole)
    return dataclasses.replace(
        sequence,
        ids=torch.cat([sequence.ids, torch.tensor(ids)]),
        kind=torch.cat([sequence.kind, torch.zeros(count, dtype=sequence.kind.dtype)]),
        positions=torch.cat([sequence.positions, more], dim=1),
        labels=torch.cat([sequence.labels, torch.full((count,), -100)]),
        types={name: torch.cat([own, torch.full((count,), kind)]) for name, own in sequence.types.items()},
    )


@contextlib.contextmanager
def recomputing(language, on):
    """Run layers again for the backward pass, if `on`, and afterwards no more."""
    if on:
        language.recompute_layers()
    try:
        yield
    finally:
        if on:
            language.recomputes = False
            for layer in language.decoder.layers:
                del layer.forward  # the one of the class is back


def gradient(vlm, **settings):
    """Loss and gradient of a soft prompt behind aspect tokens and features."""
    draw = torch.Generator().manual_seed(0)
    width = vlm.language.hidden_size
    aspects = torch.randn(2, 1, 3, width, generator=draw) * 0.3
    soft = (torch.randn(4, width, generator=draw) * 0.3).requires_grad_()
    batch = vlm.batch(vlm.sequences("joy", num_aspect_tokens=3, num_soft_tokens=4), **settings)
    losses = row_losses(vlm.language, run(vlm.language, batch, aspects, soft), batch)
    losses.sum().backward()
    return losses.detach(), soft.grad


def test_the_gradient_of_the_soft_prompt_behind_a_frozen_prefix(loaded):
    losses, whole = gradient(loaded, frozen_prefix=False)
    assert float(whole.abs().max()) > 1e-4
    for recompute in (False, True):
        with recomputing(loaded.language, recompute):
            again, found = gradient(loaded)
        assert torch.allclose(again, losses, atol=1e-5) and _difference(found, whole) <= 2e-5


def test_weighted_answers_have_the_loss_and_gradient_of_single_passes(loaded):
    vlm, draw = loaded, torch.Generator().manual_seed(0)
    votes = {"joy": 0.25, "fear": 0.15, "joyful": 0.6}
    aspects = torch.randn(2, 1, 3, vlm.language.hidden_size, generator=draw) * 0.3
    soft = (torch.randn(4, vlm.language.hidden_size, generator=draw) * 0.3).requires_grad_()
    model = SimpleNamespace(language=vlm.language, num_logits=None)
    model.hidden = lambda batch, cache=None: run(vlm.language, batch, aspects, soft, cache)

    def gradient(batch):
        soft.grad = None
        losses = answer_losses(model, batch) if batch.answers else row_losses(vlm.language, model.hidden(batch), batch)
        loss = (losses * batch.weights).sum()
        loss.backward()
        return loss.detach(), soft.grad

    slots = {"num_aspect_tokens": 3, "num_soft_tokens": 4}
    singles = [gradient(vlm.batch(vlm.sequences(answer, **slots))) for answer in votes]
    loss, whole = (
        sum(p * single[which] for p, single in zip(votes.values(), singles, strict=True)) for which in range(2)
    )
    assert float(whole.abs().max()) > 1e-4
    for recompute in (False, True):
        batch = make_weighted_batch(
            vlm.prompt, lambda image, answer: vlm.sequences(answer, **slots)[image], [votes] * 2, vlm.features,
            weights=[1.0] * 2, layout="after_image",
        )  # fmt: skip
        assert (batch.answers is not None) == vlm.prompt.family.has_tree
        with recomputing(vlm.language, recompute):
            again, found = gradient(batch)
        assert abs(float(again - loss)) <= 1e-5 and _difference(found, whole) <= 2e-5


@pytest.mark.parametrize(
    ("family", "dropped"),
    [
        ("qwen3_vl", ("visual_pos_masks", "deepstack_visual_embeds")),
        ("granite4_vision", ("vision_mask", "deepstack_features")),
    ],
)
def test_without_deep_maps_a_vlm_that_has_them_is_wrong(family_vlm, monkeypatch, family, dropped):
    vlm, extra = Loaded(str(family_vlm(family)), "sdpa"), LanguageHalf._extra
    right = logits_of_sequence(vlm, vlm.sequences()[0])

    def without(*arguments):
        found = extra(*arguments)
        return {name: value for name, value in found.items() if name not in dropped}

    monkeypatch.setattr(LanguageHalf, "_extra", without)
    assert _difference(logits_of_sequence(vlm, vlm.sequences()[0]), right) > 1e-2


def test_with_ids_of_other_words_layers_that_look_at_them_are_wrong(family_vlm, monkeypatch):
    vlm, extra = Loaded(str(family_vlm("gemma4_e")), "sdpa"), LanguageHalf._extra
    right = logits_of_sequence(vlm, vlm.sequences()[0])

    def others(half, tokens, embeds):
        return extra(half, dataclasses.replace(tokens, ids=tokens.ids.flip(1)), embeds)

    monkeypatch.setattr(LanguageHalf, "_extra", others)
    assert _difference(logits_of_sequence(vlm, vlm.sequences()[0]), right) > 1e-2


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "qwen3_5", "glm4v"])
def test_plain_positions_are_wrong_where_an_image_has_a_grid(family_vlm, family):
    vlm = Loaded(str(family_vlm(family)), "sdpa")
    right = vlm.sequences()[0]
    flat = dataclasses.replace(right, positions=torch.arange(len(right)).expand(3, -1))
    assert _difference(*(logits_of_sequence(vlm, each) for each in (right, flat))) > 1e-2


@pytest.mark.parametrize("family", ["gemma3", "gemma4", "paligemma"])
def test_masks_without_types_are_wrong_where_an_image_sees_itself(family_vlm, family):
    vlm = Loaded(str(family_vlm(family)), "sdpa")
    right = vlm.sequences()[0]
    plain = dataclasses.replace(right, types={name: torch.zeros_like(own) for name, own in right.types.items()})
    if family == "paligemma":  # there the words of the prompt have type 0, and see each other
        plain = dataclasses.replace(right, types={name: torch.ones_like(own) for name, own in right.types.items()})
    assert _difference(*(logits_of_sequence(vlm, each) for each in (right, plain))) > 1e-2


@pytest.mark.parametrize("family", ["gemma4", "qwen3_5", "minicpmv4_6"])
def test_padding_between_a_prefix_and_the_rest_is_wrong_where_layers_count_it(family_vlm, family, monkeypatch):
    vlm = Loaded(str(family_vlm(family)), "sdpa")
    sequences = vlm.sequences()
    shorter = min(range(2), key=lambda row: sequences[row].split)

    def suffix():
        batch = vlm.batch(sequences)
        with torch.inference_mode():
            return vlm.language.logits(vlm.hidden(batch))[shorter][batch.suffix.mask[shorter]]

    right = suffix()
    monkeypatch.setattr("masp.vlm.families.Family.pads_left", False)
    assert _difference(suffix(), right) > 1e-2


def logits_of_sequence(vlm, sequence):
    batch = make_batch(vlm.prompt, [sequence], [vlm.features[0]], row_image=[0], frozen_prefix=False)
    with torch.inference_mode():
        return vlm.language.logits(vlm.hidden(batch))[0]


@pytest.mark.parametrize("family", WORKING)
def test_the_header_tells_the_number_of_tokens(family_vlm, family):
    preprocessor = load_preprocessor(str(family_vlm(family)))
    for size in HEADERS:
        layout = preprocessor(image(*size))[1]
        assert preprocessor.num_tokens(*size) == layout.num_tokens and preprocessor.planned(*size) == layout, size


@pytest.mark.parametrize(("family", "reason"), REFUSED.items())
def test_what_cannot_be_taken_apart_is_refused_with_the_reason(family_vlm, family, reason):
    result, halves = check_family(str(family_vlm(family)))
    assert not result.supported and not result.passed and halves is None and reason in result.reason
    assert "\n" not in result.reason


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3", "paligemma2"])
def test_a_check_of_a_family(family_vlm, family):
    result, halves = check_family(str(family_vlm(family)))
    assert result.passed and result.stock_difference <= 2e-6 and result.tokens == result.tokens_predicted
    assert (result.prefix_difference is None) == (family == "paligemma2")
    assert halves.vision > 10_000 and halves.language > 10_000


def test_a_difference_does_not_pass(family_vlm, monkeypatch):
    monkeypatch.setattr(LanguageHalf, "_final", lambda self, logits: logits * 1.01)
    result, _ = check_family(str(family_vlm("qwen3_vl")))
    assert result.supported and not result.passed and "logits differ from the stock model's by" in result.reason
