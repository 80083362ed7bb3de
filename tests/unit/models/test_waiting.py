"""Nothing in the inner loops waits for a GPU.

The meta device stands in for one: it computes no values, so whatever would read one on the host raises there.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import masking_utils
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from benchmarks.random_vlm import draw_part
from benchmarks.random_vlm import make_vlm as make_random_vlm
from masp.models import forward, likelihood
from masp.models.forward import Stage1Model, Stage2Model
from masp.models.losses import row_losses
from masp.models.sequence import build_sequence, make_batch
from masp.models.trainable import AspectModules, SoftPrompt
from masp.vlm.features import Features, ImageLayout
from masp.vlm.language import LanguageHalf, load_language_half
from masp.vlm.preprocessor import load_preprocessor
from masp.vlm.processor import blank
from masp.vlm.prompt import load_prompt
from masp.vlm.vision import VisionHalf, load_vision_half
from tests.tiny import FAMILIES, layout_of, make_vlm

GRIDS = [(1, 4, 6), (1, 8, 10)]


@pytest.fixture(scope="module", params=FAMILIES)
def vlm(request, tmp_path_factory):
    return str(make_vlm(tmp_path_factory.mktemp("vlm") / request.param, request.param))


@pytest.fixture(scope="module")
def pixels():
    random = torch.Generator().manual_seed(0)
    return [torch.randn(h * w, 3 * 2 * 14 * 14, generator=random) for _, h, w in GRIDS]


def images(pixels):
    """Inputs and layouts, as the encoder takes them."""
    inputs = [{"pixel_values": p, "image_grid_thw": torch.tensor([g])} for p, g in zip(pixels, GRIDS, strict=True)]
    return inputs, [ImageLayout(h * w // 4, (t, h, w)) for t, h, w in GRIDS]


def test_the_encoder_gives_what_transformers_gives(vlm, pixels):
    half = load_vision_half(vlm)
    with torch.inference_mode():
        plain = half.model.model.get_image_features(torch.cat(pixels), torch.tensor(GRIDS)).pooler_output
    for own, features in zip(half.encode(*images(pixels)), plain, strict=True):
        assert torch.equal(own.tokens, features)


def test_the_encoder_reads_nothing_back(vlm, pixels):
    half = load_vision_half(vlm)
    half.model.to("meta")
    half.device = torch.device("meta")
    assert [tuple(f.tokens.shape) for f in half.encode(*images(pixels))] == [
        (6, half.hidden_size),
        (20, half.hidden_size),
    ]


def test_a_batch_is_filled_and_its_loss_taken_without_reading_back(vlm):
    language, prompt = load_language_half(vlm), load_prompt(vlm)
    features = [Features(torch.randn(h * w // 4, language.hidden_size)) for _, h, w in GRIDS]
    sequences = [
        build_sequence(
            prompt,
            "Which emotion?",
            "awe",
            num_aspect_tokens=0,
            image=layout_of(g),
            num_soft_tokens=3,
            layout="after_image",
        )
        for g in GRIDS
    ]
    batch = make_batch(prompt, sequences, features, row_image=[0, 1], frozen_prefix=False)
    at = forward._feature_places(batch.suffix, batch.row_image)
    assert torch.equal(batch.features[at], torch.cat([each.tokens for each in features]))
    language.to("meta")
    there = batch.to("meta", torch.float32)
    soft_prompt = torch.empty(3, language.hidden_size, device="meta")
    embeds, _ = forward._inputs(language, there, there.suffix, {}, None, soft_prompt)
    assert row_losses(language, embeds, there).shape == (2,)


@pytest.fixture(params=["qwen3-vl-8b", "internvl3-8b", "gemma3-4b"])
def other_vlm(request, tmp_path):
    return str(make_random_vlm(tmp_path / "vlm", request.param, None, "tiny"))


def test_halves_of_other_families_meet_only_what_is_on_their_device(other_vlm, monkeypatch):
    """Encoding, both stages forward and backward, and scoring, in bf16. Two things of transformers read back: the check
    whether a batch is padded, once per pass, and masks of DeepStack; they are let through here."""
    monkeypatch.setattr(masking_utils, "fast_all", lambda mask: False)
    monkeypatch.setattr(Qwen3VLTextModel, "_deepstack_process", lambda self, hidden, places, maps: hidden)
    preprocessor, prompt = load_preprocessor(other_vlm), load_prompt(other_vlm)
    prepared = [preprocessor(blank(*size)) for size in ((112, 84), (140, 140))]
    layouts = [layout for _, layout in prepared]
    encoder = VisionHalf(draw_part(other_vlm, "vision", torch.bfloat16, "meta", "sdpa"))
    encoded = encoder.encode([inputs for inputs, _ in prepared], layouts)
    assert all(tensor.is_meta for each in encoded for tensor in each.tensors)

    language = LanguageHalf(draw_part(other_vlm, "language", torch.bfloat16, "meta", "sdpa"), counts_only=True)
    cached = [each.moved(lambda tensor: torch.zeros(tensor.shape)) for each in encoded]
    with torch.device("meta"):
        aspects = AspectModules(["scene", "object"], language.hidden_size).to(torch.bfloat16)
        soft_prompt = SoftPrompt(torch.empty(8, language.hidden_size, dtype=torch.bfloat16))

    def batch(answer, *, aspect_tokens, soft, **settings):
        images = [None, None] if soft == 0 else layouts
        sequences = [
            build_sequence(prompt, "Which?", answer, num_aspect_tokens=aspect_tokens, image=image, num_soft_tokens=soft,
                           layout="after_image")
            for image in images
        ]  # fmt: skip
        made = make_batch(prompt, sequences, cached, row_image=[0, 1], **settings)
        return made.to("meta", torch.bfloat16)

    first = batch("dog", aspect_tokens=5, soft=0, row_aspect=[0, 1])
    second = batch("awe", aspect_tokens=10, soft=8)
    with NoTransfers():
        Stage1Model(language, aspects)(first).sum().backward()
        stage2 = Stage2Model(language, aspects, soft_prompt)  # which freezes the modules
        stage2(second).sum().backward()
    assert all(parameter.grad.is_meta for parameter in (*aspects.parameters(), soft_prompt.weight))
    # what is read at the end of scoring is all of it that is read
    monkeypatch.setattr(likelihood, "log_likelihoods", reading(likelihood.log_likelihoods))
    question = batch(None, aspect_tokens=10, soft=8, frozen_prefix=False, goes_on=True)
    scores, _ = likelihood.score_categories(stage2, question, [prompt.answer("awe"), prompt.answer("fear")], prompt.end)
    assert scores.shape == (2, 2)


class NoTransfers(TorchDispatchMode):
    """Within it, no tensor of the CPU but a number goes to the meta device: a GPU would be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        given, returned = (
            [leaf for leaf in tree_leaves(part) if isinstance(leaf, torch.Tensor) and leaf.dim()]
            for part in ((args, kwargs), found)
        )
        is_mixed = {tensor.is_meta for tensor in (*given, *returned)} == {True, False}
        assert not is_mixed, f"{func} takes {[tuple(tensor.shape) for tensor in given if not tensor.is_meta]} over"
        return found


def reading(function):
    """The function, with zeros on the CPU for the numbers that it returns."""

    def read(*args):
        found = function(*args)
        assert found.is_meta
        return torch.zeros(found.shape)

    return read
