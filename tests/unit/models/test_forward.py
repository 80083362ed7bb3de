"""The language half's passes: prefix against full pass, batch against single, scores against a plain computation."""

import dataclasses
import json

import pytest
import torch

from masp.models.candidates import candidate_tree
from masp.models.forward import Stage1Model, Stage2Model, num_logits
from masp.models.generation import generate
from masp.models.likelihood import cut_short, score_categories
from masp.models.sequence import LAYOUTS, build_sequence, make_batch, pad_features
from masp.models.trainable import AspectModules, SoftPrompt
from masp.vlm.features import Features
from masp.vlm.language import load_language_half
from masp.vlm.prompt import load_prompt
from tests.tiny import FAMILIES, layout_of, make_vlm

ASPECTS = ("scene", "object", "brightness")
GRIDS = [(1, 4, 4), (1, 2, 6), (1, 6, 4), (1, 2, 2), (1, 4, 8), (1, 8, 2), (1, 6, 6)]
CATEGORIES = ["sad", "sadness", "fear", "awe", "a", "sad fear anger"]


@pytest.fixture(scope="module", params=FAMILIES)
def parts(request, tmp_path_factory):
    folder = make_vlm(tmp_path_factory.mktemp("vlm") / request.param, request.param)
    language, prompt = load_language_half(str(folder)), load_prompt(str(folder))
    torch.manual_seed(1)
    modules = AspectModules(ASPECTS, language.hidden_size, num_queries=3)
    soft_prompt = SoftPrompt(torch.randn(6, language.hidden_size))
    features = [Features(torch.randn(g[1] * g[2] // 4, language.hidden_size)) for g in GRIDS]
    return language, prompt, modules, soft_prompt, features


def stage2(parts, layout="after_image", soft=True):
    language, prompt, modules, soft_prompt, _ = parts
    soft_prompt = soft_prompt if soft else None
    count = 6 if soft else 0
    return Stage2Model(language, modules, soft_prompt, num_logits(layout, prompt, language.vocab_size, count))


def sequences(parts, layout, answers=True, rows=range(7)):
    prompt = parts[1]
    return [
        build_sequence(
            prompt,
            f"Which emotion? {'really ' * n}",
            CATEGORIES[n % 6] if answers else None,
            num_aspect_tokens=9,
            image=layout_of(GRIDS[n]),
            num_soft_tokens=6,
            layout=layout,
        )
        for n in rows
    ]


@pytest.mark.parametrize("frozen_prefix", [True, False])
def test_layers_run_again_in_the_backward_pass_give_the_same(parts, frozen_prefix, tmp_path):
    """And each of them is run again: with fewer tensors kept, but over the same frozen prefix."""
    again = load_language_half(str(make_vlm(tmp_path / "vlm", parts[0].model.config.model_type)))
    again.recompute_layers()
    calls = []
    for layer in again.decoder.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    batch = make_batch(
        parts[1], sequences(parts, "after_image"), parts[4], row_image=range(7), frozen_prefix=frozen_prefix
    )
    results = []
    for language in (parts[0], again):
        model = Stage2Model(language, parts[2], parts[3])
        model.zero_grad()
        losses = model(batch)
        losses.sum().backward()
        results.append((losses.detach(), model.soft_prompt.weight.grad.clone()))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    num_layers = len(again.decoder.layers)
    assert calls.count(False) == (num_layers if frozen_prefix else 0) and calls.count(True) == 2 * num_layers


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frozen_prefix_equals_full_pass(parts, layout):
    model, features = stage2(parts, layout), parts[4]
    results = []
    for frozen_prefix in (True, False):
        batch = make_batch(
            parts[1], sequences(parts, layout), features, row_image=range(7), frozen_prefix=frozen_prefix
        )
        model.zero_grad()
        losses = model(batch)
        losses.sum().backward()
        results.append((losses.detach(), model.soft_prompt.weight.grad.clone()))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-5)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-5)
    assert results[0][1].abs().max() > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_of_seven_equals_seven_singles(parts, layout):
    model, features = stage2(parts, layout), parts[4]
    together = model(make_batch(parts[1], sequences(parts, layout), features, row_image=range(7)))
    alone = [
        model(make_batch(parts[1], sequences(parts, layout, rows=[n]), [features[n]], row_image=[0])) for n in range(7)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_stage1_groups_aspects_of_an_image(parts):
    language, prompt, modules, _, features = parts
    model = Stage1Model(language, modules)
    rows = [(image, aspect) for image in range(3) for aspect in range(3) if (image + aspect) % 4]
    built = [
        build_sequence(
            prompt,
            f"{ASPECTS[a]}? " * (i + 1),
            CATEGORIES[i],
            num_aspect_tokens=3,
            image=None,
            num_soft_tokens=0,
            layout="after_image",
        )
        for i, a in rows
    ]
    images, asked = [i for i, _ in rows], [a for _, a in rows]
    grouped = model(make_batch(parts[1], built, features[:3], row_image=images, row_aspect=asked))
    alone = [
        model(make_batch(parts[1], [s], [features[i]], row_image=[0], row_aspect=[a], frozen_prefix=False))
        for s, i, a in zip(built, images, asked, strict=True)
    ]
    assert torch.allclose(grouped, torch.cat(alone), atol=1e-5)


def test_regrouped_attention_equals_multihead_attention(parts):
    modules, features = parts[2], parts[4]
    module = modules.by_aspect["object"].requires_grad_(True)
    reference = torch.nn.MultiheadAttention(modules.hidden_size, 1, batch_first=True)
    reference.load_state_dict(
        {
            "in_proj_weight": module.in_proj_weight,
            "in_proj_bias": module.in_proj_bias.data.normal_(),
            "out_proj.weight": module.out_proj_weight,
            "out_proj.bias": module.out_proj_bias,
        }
    )
    padded, mask = pad_features([each.tokens for each in features])
    tokens, weights = module(padded, mask)
    expected, expected_weights = reference(module.query.expand(7, -1, -1), padded, padded, key_padding_mask=~mask)
    assert torch.allclose(tokens, expected, atol=1e-5)
    assert torch.allclose(weights, expected_weights, atol=1e-5)
    parameters = [module.query, module.in_proj_weight, module.out_proj_weight, module.out_proj_bias]
    ours = torch.autograd.grad(tokens.square().sum(), parameters)
    theirs = torch.autograd.grad(
        expected.square().sum(),
        [module.query, reference.in_proj_weight, reference.out_proj.weight, reference.out_proj.bias],
    )
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("frozen_prefix", [True, False])
def test_scores_equal_one_category_at_a_time(parts, layout, frozen_prefix):
    model, features, prompt = stage2(parts, layout), parts[4], parts[1]
    candidates = [prompt.answer(c) for c in CATEGORIES]
    end = None if layout == "released" else prompt.end
    batch = make_batch(
        parts[1], sequences(parts, layout, answers=False), features, row_image=range(7), frozen_prefix=frozen_prefix
    )
    sums, means = score_categories(model, batch, candidates, end)
    for n in range(7):
        for c, category in enumerate(CATEGORIES):
            sequence = build_sequence(
                prompt,
                f"Which emotion? {'really ' * n}",
                category,
                num_aspect_tokens=9,
                image=layout_of(GRIDS[n]),
                num_soft_tokens=6,
                layout=layout,
            )
            labels = sequence.labels.clone()
            if layout == "released":  # its loss also covers the newline after `assistant`
                labels[(labels != -100).nonzero()[0]] = -100
            sequence = dataclasses.replace(sequence, labels=labels)
            with torch.no_grad():
                loss = model(make_batch(parts[1], [sequence], [features[n]], row_image=[0], frozen_prefix=False))
            count = len(candidates[c]) + (end is not None)
            assert abs(-loss.item() - means[n, c].item()) < 1e-5
            # the loss is a mean, so its rounding is multiplied by the count: equal within 1e-5 of the sum
            assert -loss.item() * count == pytest.approx(sums[n, c].item(), rel=1e-5, abs=1e-5)


def test_the_tree_merges_what_begins_alike():
    tree = candidate_tree([(5, 6), (5,), (5, 6, 7), (8,), (5,), (9, 6)])
    assert tree.paths == ((0, 1), (0,), (0, 1, 2), (3,), (0,), (4, 5))
    assert tree.ids.tolist() == [5, 6, 7, 8, 9, 6] and tree.depth.tolist() == [0, 1, 2, 0, 0, 1]
    seen = {node: {n for n in range(6) if tree.sees[node, n]} for node in range(6)}
    assert seen == {0: {0}, 1: {0, 1}, 2: {0, 1, 2}, 3: {3}, 4: {4}, 5: {4, 5}}


def test_which_candidates_are_cut_short_without_an_end():
    assert cut_short([(5, 6), (5,), (7,), (5, 6, 8), (6,)]) == [(0, 3), (1, 0), (1, 3)]
    assert cut_short([(1, 2), (1, 3)]) == []


def test_equal_candidates_tie_exactly_and_few_positions_at_a_time_change_nothing(parts, monkeypatch):
    model, features, prompt = stage2(parts), parts[4], parts[1]
    batch = make_batch(parts[1], sequences(parts, "after_image", answers=False), features, row_image=range(7))
    candidates = [prompt.answer(c) for c in ("sadness", "sad", "sadness")]
    sums, _ = score_categories(model, batch, candidates, prompt.end)
    assert torch.equal(sums[:, 0], sums[:, 2]) and not torch.allclose(sums[:, 0], sums[:, 1])
    monkeypatch.setattr("masp.models.likelihood.MAX_POSITIONS", 3)
    assert torch.allclose(score_categories(model, batch, candidates, prompt.end)[0], sums, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_generation_does_not_depend_on_the_batch(parts, layout):
    model, features, prompt = stage2(parts, layout), parts[4], parts[1]
    built = sequences(parts, layout, answers=False)
    together, first = generate(model, make_batch(parts[1], built, features, row_image=range(7)), 4, prompt.stop)
    for n in range(7):
        alone, logits = generate(
            model, make_batch(parts[1], [built[n]], [features[n]], row_image=[0], frozen_prefix=False), 4, prompt.stop
        )
        assert alone[0] == together[n]
        assert torch.allclose(first[n], logits[0], atol=1e-4)


def test_positions_follow_the_vlm(parts):
    from transformers import AutoConfig, AutoModelForImageTextToText

    language, prompt = parts[0], parts[1]
    config = AutoConfig.from_pretrained(language.model.config._name_or_path)
    with torch.device("meta"):
        whole = AutoModelForImageTextToText.from_config(config)
    for grid in GRIDS:
        sequence = build_sequence(
            prompt,
            "Which emotion?",
            "awe",
            num_aspect_tokens=4,
            image=layout_of(grid),
            num_soft_tokens=3,
            layout="after_image",
        )
        is_feature = (sequence.kind == 2).int()[None]
        expected, _ = whole.model.get_rope_index(
            sequence.ids[None], mm_token_type_ids=is_feature, image_grid_thw=torch.tensor([grid])
        )
        assert torch.equal(expected[:, 0], sequence.positions)
    flat = build_sequence(
        prompt,
        "Which emotion?",
        "awe",
        num_aspect_tokens=4,
        image=layout_of(GRIDS[0]),
        num_soft_tokens=3,
        layout="released",
    )
    assert torch.equal(flat.positions, torch.arange(len(flat)).expand(3, -1))


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    """A VLM of two layers, of which the second sees 8 tokens."""
    directory = make_vlm(tmp_path_factory.mktemp("windowed") / "vlm")
    config = json.loads((directory / "config.json").read_text())
    layers = ["full_attention", "sliding_attention"]
    config["text_config"] |= {"use_sliding_window": True, "sliding_window": 8, "layer_types": layers}
    (directory / "config.json").write_text(json.dumps(config))
    language, prompt = load_language_half(str(directory)), load_prompt(str(directory))
    assert language.family.window == 8 and language.family.has_tree and language.family.pads_left
    torch.manual_seed(1)
    modules = AspectModules(ASPECTS, language.hidden_size, num_queries=3)
    features = [Features(torch.randn(g[1] * g[2] // 4, language.hidden_size)) for g in GRIDS]
    return language, prompt, modules, SoftPrompt(torch.randn(6, language.hidden_size)), features


def test_candidates_behind_a_window_as_a_tree_and_one_by_one(windowed, monkeypatch):
    model, prompt = stage2(windowed), windowed[1]
    built = sequences(windowed, "after_image", answers=False)
    candidates = [prompt.answer(category) for category in (*CATEGORIES, "a very long feeling of awe")]

    def scores(rows=range(7)):
        batch = make_batch(
            prompt, [built[n] for n in rows], [windowed[4][n] for n in rows], row_image=range(len(rows)), goes_on=True
        )
        return score_categories(model, batch, candidates, prompt.end)[0]

    tree = scores()
    assert torch.allclose(torch.cat([scores([n]) for n in range(7)]), tree, atol=1e-4)
    with monkeypatch.context() as patch:
        patch.setattr("masp.vlm.families.Family.has_tree", False)
        assert torch.allclose(scores(), tree, atol=1e-4)
    # without the window the tree would see more
    model.language.family = dataclasses.replace(model.language.family, window=None)
    try:
        assert (scores() - tree).abs().max() > 1e-2
    finally:
        model.language.family = dataclasses.replace(model.language.family, window=8)
