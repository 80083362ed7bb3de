"""Nothing in the inner loops waits for a GPU.

The meta device stands in for one: it computes no values, so whatever would read one on the host raises there.
"""

import pytest
import torch

from masp.models import forward
from masp.models.sequence import build_sequence, make_batch
from masp.vlm.features import Features, ImageLayout
from masp.vlm.language import load_language_half
from masp.vlm.prompt import load_prompt
from masp.vlm.vision import load_vision_half
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
    at = forward._feature_places(batch, batch.suffix.places[forward.FEATURE][0])
    assert torch.equal(batch.features[at], torch.cat([each.tokens for each in features]))
    language.to("meta")
    there = batch.to("meta", torch.float32)
    soft_prompt = torch.empty(3, language.hidden_size, device="meta")
    embeds, _ = forward._inputs(language, there, there.suffix, {}, None, soft_prompt)
    assert forward.row_losses(language, embeds, there).shape == (2,)
