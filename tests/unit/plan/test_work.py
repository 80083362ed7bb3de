"""Lengths of sequences, and when the cache has paid for itself."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from masp.config import load_config
from masp.models.sequence import IGNORED, build_sequence
from masp.models.trainable import AspectModules
from masp.models.weighted import make_weighted_batch
from masp.plan.rates import Rate
from masp.plan.tokens import PlannedImage, WeightedWords, Words
from masp.plan.work import (
    StageWork,
    estimate_live_stage,
    estimate_stage,
    stage1_lengths,
    stage1_work,
    stage2_lengths,
    stage2_work,
    without_cache,
)
from masp.training.steps import batch_flops
from masp.vlm.cost.flops import encoder_flops, shapes
from masp.vlm.families import load_config as load_vlm_config
from masp.vlm.features import Features
from masp.vlm.prompt import load_prompt
from tests.tiny import layout_of


@pytest.mark.parametrize("layout", ["after_image", "released"])
def test_lengths_are_those_of_the_sequences_that_training_builds(vlm, tmp_path, layout):
    config = load_config(
        None,
        [f"vlm.path={vlm}", "dataset.root=x", "cache.dir=x", f"stage1.layout={layout}", f"stage2.layout={layout}",
         "aspects=[scene,object]"],
    )  # fmt: skip
    prompt, question, answer = load_prompt(str(vlm)), "Which emotion?", "awe"
    num_answer, closing = len(prompt.answer(answer)), len(prompt.question(""))
    num_question = len(prompt.question(question)) - closing
    words = Words(
        len(prompt.opening), len(prompt.image_start), len(prompt.image_end), closing,
        {"scene": num_question}, {"scene": num_answer}, num_question, num_answer, True,
    )  # fmt: skip
    for stage, lengths, tokens, grid, soft in (
        ("stage1", stage1_lengths(config, words, "scene"), 5, None, 0),
        ("stage2", stage2_lengths(config, words, 6), 10, (1, 4, 6), 32),
    ):
        sequence = build_sequence(
            prompt,
            question,
            answer,
            num_aspect_tokens=tokens,
            image=grid and layout_of(grid),
            num_soft_tokens=soft,
            layout=layout,
        )
        assert (lengths.prefix, lengths.total) == (sequence.split, len(sequence)), stage
        assert lengths.num_logits == int((sequence.labels != IGNORED).sum()), stage
        assert lengths.shared == (stage == "stage1" or layout == "released")


def test_what_is_left_out_or_runs_whole_changes_the_lengths(config):
    words = Words(10, 1, 1, 5, {"scene": 6.0}, {"scene": 2.0}, 20.0, 2.0, True, lead=3, trail=4)
    whole = replace(words, runs_whole=True)
    for lengths in (
        lambda words: stage1_lengths(config, words, "scene"),
        lambda words: stage2_lengths(config, words, 9),
    ):
        assert (lengths(whole).prefix, lengths(whole).suffix) == (0, lengths(words).total) and lengths(words).prefix
    both = stage2_lengths(config, words, 9).total
    config.stage2.vision_features = False
    assert both - stage2_lengths(config, words, 9).total == 9 - 3 - 4
    config.stage2.vision_features, config.checkpoint.aspect = True, "none"
    assert both - stage2_lengths(config, words, 9).total == 6 * 5


@pytest.mark.parametrize("has_tree", [True, False])
@pytest.mark.parametrize("frozen_prefix", [True, False])
def test_lengths_of_weighted_answers_are_those_that_training_runs(config, monkeypatch, has_tree, frozen_prefix):
    monkeypatch.setattr("masp.vlm.families.Family.has_tree", has_tree)
    config.aspects, config.stage2.frozen_prefix = ["scene", "object"], frozen_prefix
    config.stage2.supervision = "distribution"
    prompt, question, votes = load_prompt(config.vlm.path), "Which emotion?", {"awe": 0.5, "fear": 0.25, "joy": 0.25}

    def build(image, answer):
        return build_sequence(
            prompt, question, answer, num_aspect_tokens=10, image=layout_of((1, 4, 6)), num_soft_tokens=32,
            layout="after_image",
        )  # fmt: skip

    features = [Features(torch.zeros(6, 32))]
    batch = make_weighted_batch(
        prompt, build, [votes], features, weights=[1.0], layout="after_image", frozen_prefix=frozen_prefix
    )
    closing, num_answer = len(prompt.question("")), sum(len(prompt.answer(answer)) for answer in votes)
    words = Words(
        len(prompt.opening), len(prompt.image_start), len(prompt.image_end), closing, {}, {},
        len(prompt.question(question)) - closing, 0.0, True, weighted=WeightedWords(3, num_answer, has_tree),
    )  # fmt: skip
    lengths = stage2_lengths(config, words, 6)
    assert lengths.total == pytest.approx(batch.num_tokens) and not lengths.shared
    predicting = len(batch.supervised[0]) if batch.answers is None else len(batch.answers.rows)
    assert lengths.num_suffixes * lengths.num_logits == pytest.approx(predicting)
    # what is planned of a whole epoch is what training counts of its steps
    _, language = shapes(load_vlm_config(Path(config.vlm.path)))
    planned = stage2_work(config, language, words, [PlannedImage(None, (56, 56), layout_of((1, 4, 6)), 300)])
    counted = batch_flops(language, batch, config.aspect_module.num_queries, 2)
    assert planned.flops_per_epoch == pytest.approx(counted, rel=1e-6 if has_tree else 1e-3)  # of a mean length
    assert planned.tokens_per_epoch == pytest.approx(batch.num_tokens)


def test_pairs_read_an_image_for_each_of_its_answers(config):
    _, language = shapes(load_vlm_config(Path(config.vlm.path)))
    words = Words(10, 1, 1, 5, dict.fromkeys(config.aspects, 6.0), dict.fromkeys(config.aspects, 2.0), 20.0, 2.0, True)

    class Annotated:
        answers = dict.fromkeys(config.aspects[:2], "sea")

    train = [PlannedImage(Annotated, (56, 56), layout_of((1, 4, 4)), 100)] * 3
    images = stage1_work(config, language, words, train)
    config.stage1.position = "pair"
    config.stage1.global_batch_size = 1
    pairs = stage1_work(config, language, words, train)
    assert (images.num_images, images.num_rows, pairs.num_images, pairs.num_rows) == (3, 6, 6, 6)
    assert pairs.flops_per_epoch > images.flops_per_epoch
    # alone in its micro-batch, each pair runs the system turn
    assert pairs.tokens_per_epoch == 6 * stage1_lengths(config, words, config.aspects[0]).total


def test_restarts_share_the_prefix_and_nothing_else(config):
    _, language = shapes(load_vlm_config(Path(config.vlm.path)))
    words = Words(10, 1, 1, 5, dict.fromkeys(config.aspects, 6.0), dict.fromkeys(config.aspects, 2.0), 20.0, 2.0, True)

    class Annotated:
        answers = dict.fromkeys(config.aspects[:2], "sea")

    train = [PlannedImage(Annotated, (56, 56), layout_of((1, 4, 4)), 100)] * 3
    one = stage1_work(config, language, words, train)
    config.stage1.restarts = 3
    three = stage1_work(config, language, words, train)
    lengths = stage1_lengths(config, words, config.aspects[0])
    assert three.tokens_per_epoch - one.tokens_per_epoch == pytest.approx(2 * 6 * lengths.suffix)
    assert 2.5 < three.flops_per_epoch / one.flops_per_epoch < 3
    assert (one.num_restarts, one.state_bytes, three.num_restarts) == (1, 0, 3)
    modules = AspectModules(config.aspects, language.width, config.aspect_module.num_queries)
    assert three.state_bytes == 3 * 16 * sum(parameter.numel() for parameter in modules.parameters())


@pytest.mark.parametrize("position", ["image", "pair"])
def test_without_a_cache_each_stage_runs_the_encoder_for_what_it_sees(position):
    work = StageWork(num_epochs=3, num_images=8 if position == "pair" else 4, num_rows=8, tokens_per_epoch=50.0,
                     flops_per_epoch=100.0)  # fmt: skip
    slow, fast = Rate(10.0, "FLOP", ""), Rate(20.0, "FLOP", "")
    with_cache, found = estimate_stage(work, slow, 5.0), estimate_live_stage(work, slow, 40.0, 4, fast)
    runs = 3 * work.num_images / 4
    assert found.encoder_flops == 40 * runs and found.encoder_hours == pytest.approx(40 * runs / 20 / 3600)
    assert found.flops == with_cache.flops + found.encoder_flops
    assert found.hours == pytest.approx(with_cache.hours + found.encoder_hours)
    assert found.flops_per_image * 3 * work.num_images == pytest.approx(found.flops)
    assert found.images_per_s == pytest.approx(3 * work.num_images / found.hours / 3600)
    assert (with_cache.encoder_flops, found.reads_bytes_per_s) == (0, 0) and with_cache.reads_bytes_per_s > 0
    # the tokens per second of a run without a cache were measured beside the encoder
    measured = Rate(10.0, "tokens", "", includes_encoder=True)
    assert estimate_live_stage(work, measured, 40.0, 4, fast).hours == estimate_stage(work, measured, 0.0).hours
    nothing = estimate_live_stage(StageWork(3, 0, 0, 0.0, 0.0), slow, 0.0, 0, fast)
    assert (nothing.hours, nothing.images_per_s, nothing.encoder_flops) == (0, 0, 0)


def test_when_the_cache_has_paid_for_itself(config):
    vision, _ = shapes(load_vlm_config(Path(config.vlm.path)))

    class Annotated:
        answers = {"scene": "sea", "object": "dog"}  # noqa: RUF012 - a stand-in

    train = [PlannedImage(Annotated, (56, 56), layout_of((1, 4, 4)), 300)] * 3
    one = encoder_flops(vision, (1, 4, 4))
    config.stage1.num_epochs, config.stage2.num_epochs = 3, 1
    rate = Rate(one, "FLOP", "")
    published = without_cache(config, vision, train, 4 * one, rate, per_aspect=True)
    assert published.encoder_flops == pytest.approx((3 * 6 + 3) * one)
    assert published.encoder_hours == pytest.approx((3 * 6 + 3) / 3600)
    assert published.pays_after_epochs == pytest.approx(4 / 6)
    once = without_cache(config, vision, train, 4 * one, rate, per_aspect=False)
    assert once.encoder_flops == pytest.approx(4 * 3 * one) and once.pays_after_epochs == pytest.approx(4 / 3)
    assert without_cache(config, vision, train, 13 * one, rate, per_aspect=False).pays_after_epochs is None
