"""What an evaluation is expected to compute, against what torch counts while it scores the same images."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from masp.artifacts.trained import Trained
from masp.config import load_aspects
from masp.data.datasets import dataset_of
from masp.data.questions import questions_of
from masp.data.sample import Sample
from masp.evaluation.aspects import closed_answers, num_tokens_of_longest
from masp.evaluation.explain import Explainer, left_out
from masp.evaluation.group.scorer import GroupScorer
from masp.evaluation.prompts import FIRST, other_wordings
from masp.evaluation.scorers import AspectScorer, ScoreRequest, TargetScorer
from masp.models.trainable import AspectModules, SoftPrompt
from masp.plan.evaluation import (
    AnswerTokens,
    compared_tokens,
    estimate_evaluation,
    evaluation_rate,
    evaluation_work,
    generated_tokens,
)
from masp.plan.plan import make_plan
from masp.plan.rates import Rate, Rates
from masp.plan.render import render
from masp.plan.tokens import plan_images
from masp.plan.work import StageWork, estimate_live_stage, extraction_flops
from masp.vlm.cost.flops import language_flops, shapes
from masp.vlm.families import load_config as load_vlm_config
from masp.vlm.features import Features
from masp.vlm.language import LanguageHalf
from masp.vlm.preprocessor import load_preprocessor
from masp.vlm.prompt import load_prompt
from tests.images import CATEGORIES

SIZES = [(60, 90), (140, 84), (100, 100)]


@pytest.fixture
def images(config):
    """Planned images of both splits, three sizes in turn."""
    samples = dataset_of(config).samples
    preprocessor = load_preprocessor(config.vlm.path, config.vlm.min_pixels, config.vlm.max_pixels)
    return plan_images(samples, np.array([SIZES[i % len(SIZES)] for i in range(len(samples))], "i4"), preprocessor)[0]


@pytest.fixture
def sizes(config):
    return shapes(load_vlm_config(Path(config.vlm.path)))


class Counted:
    """Tokens and FLOP of the language half, without what eager attention multiplies and then masks."""

    def __init__(self, monkeypatch, language):
        self.tokens = self.flops = 0
        forward, pair = LanguageHalf.forward, 4 * language.num_layers * language.num_heads * language.head_width

        def noted(half, embeds, mask, *rest):
            rows, length = embeds.shape[:2]
            # only trees come with a mask of their own, in which each token sees itself and its beginning
            seen = int((mask[0, 0, :, -length:] == 0).sum()) if mask.dim() == 4 else length * (length + 1) // 2
            self.tokens += rows * length
            self.flops -= rows * pair * (length**2 - seen)
            return forward(half, embeds, mask, *rest)

        monkeypatch.setattr(LanguageHalf, "forward", noted)

    def run(self, scorer, requests):
        # random weights may write an end token; a plan counts the largest length
        scorer.prompt = replace(scorer.prompt, stop=frozenset())
        self.count(lambda: scorer.score(requests))

    def count(self, work):
        with FlopCounterMode(display=False) as counter:
            work()
        self.flops += counter.get_total_flops()


def trained(config, num_soft=None):
    modules = AspectModules(config.aspects, 32) if config.aspects and config.checkpoint.aspect != "none" else None
    soft = SoftPrompt(torch.randn(num_soft, 32)).requires_grad_(False) if num_soft else None
    return Trained(modules, None, soft, None, config.stage2.layout, config.stage2.vision_features)


def request(p, aspect=None):
    return ScoreRequest(Features(torch.randn(p.num_tokens, 32)), p.layout, aspect=aspect)


@pytest.mark.parametrize(
    ("layout", "scoring", "prompts"),
    [("after_image", "likelihood", "all"), ("after_image", "generate", "first"), ("released", "likelihood", "first")],
)
def test_emotions_take_what_torch_counts(config, images, sizes, monkeypatch, layout, scoring, prompts):
    config.stage2.layout, config.evaluate.scoring, config.evaluate.prompts = layout, scoring, prompts
    config.vlm.attention, config.engine.precision = "eager", "fp32"
    questions, model = questions_of(config), trained(config, config.stage2.num_soft_prompt_tokens)
    wordings = [FIRST, *(other_wordings(questions, CATEGORIES) if prompts == "all" else [])]
    counted = Counted(monkeypatch, sizes[1])
    images = [p for p in images if p.sample.split == "test"][:3]
    work = evaluation_work(config, *sizes, images, CATEGORIES)
    scorers = [
        TargetScorer(config, model, questions, CATEGORIES, "cpu", wording.question(questions, CATEGORIES))
        for wording in wordings
    ]
    for p in images:
        if prompts == "all":
            counted.count(lambda p=p: GroupScorer(scorers).score([request(p)], range(len(scorers))))
        else:
            counted.run(scorers[0], [request(p)])
    assert work.num_wordings == len(wordings) and (len(wordings) > 1) == (prompts == "all")
    assert (work.num_images, work.num_sequences) == (len(images), len(images) * len(wordings))
    assert work.tokens == counted.tokens
    # rotary tables are the small rest
    assert work.flops == pytest.approx(counted.flops, rel=2e-3) and work.encoder_flops == 0


@pytest.mark.parametrize("layout", ["after_image", "released"])
def test_aspects_take_what_torch_counts(config, images, sizes, monkeypatch, layout):
    config.stage1.layout, config.evaluate.stage, config.aspects = layout, "stage1", ["brightness", "object"]
    config.vlm.attention, config.engine.precision, config.evaluate.batch_size = "eager", "fp32", 1
    images = [p for p in images if p.sample.split == "test" and p.sample.answers]
    work = evaluation_work(config, *sizes, images, CATEGORIES)
    prompt, questions = load_prompt(config.vlm.path), questions_of(config)
    closed = {"brightness": closed_answers(load_aspects()["brightness"], set())}
    longest = num_tokens_of_longest(prompt, {"object": ["dog, tree"]})
    modules = AspectModules(config.aspects, 32)
    scorer = AspectScorer(config, modules.requires_grad_(False), layout, questions, closed, longest, "cpu")
    counted = Counted(monkeypatch, sizes[1])
    for p in images:
        for aspect in config.aspects:
            counted.run(scorer, [request(p, aspect)])
    assert (work.num_images, work.num_sequences, work.num_wordings) == (len(images), 2 * len(images), 1)
    assert work.tokens == counted.tokens
    assert work.flops == pytest.approx(counted.flops, rel=2e-3)


def test_questions_about_an_aspect_share_the_system_turn_in_a_batch(config, images, sizes):
    config.evaluate.stage, config.aspects, config.evaluate.batch_size = "stage1", ["object"], 1
    alone = evaluation_work(config, *sizes, images, CATEGORIES)
    config.evaluate.batch_size = 4
    together = evaluation_work(config, *sizes, images, CATEGORIES)
    prompt = load_prompt(config.vlm.path)
    opening = len(prompt.opening) + len(prompt.image_start)
    assert alone.num_sequences == 4 and alone.tokens - together.tokens == 3 * opening
    assert alone.flops - together.flops == pytest.approx(3 * language_flops(sizes[1], suffix=opening, gradient=False))


def test_answers_that_begin_alike():
    candidates = [(5,), (5, 6), (7, 8, 9), (7, 8, 3)]
    assert compared_tokens(candidates, has_tree=True) == AnswerTokens({0: 2, 1: 2, 2: 2}, 7)
    # one after another, where only what has run before can be left out
    assert compared_tokens(candidates, has_tree=False) == AnswerTokens({0: 4, 1: 3, 2: 2}, 7)
    assert compared_tokens(candidates[1::-1], has_tree=False) == AnswerTokens({0: 1, 1: 1}, 3)
    assert generated_tokens(4) == AnswerTokens({0: 1, 1: 1, 2: 1}, 4) and generated_tokens(1) == AnswerTokens({}, 1)


def test_what_is_left_out_of_the_prompt_costs_nothing(config, images, sizes):
    def tokens(**changes):
        changed = copy.deepcopy(config)
        for name, value in changes.items():
            section, key = name.split("__")
            setattr(getattr(changed, section), key, value)
        return evaluation_work(changed, *sizes, images, CATEGORIES)

    whole, num_images = tokens(), 6
    vision = sum(p.num_tokens for p in images if p.sample.split == "test")
    assert whole.tokens - tokens(stage2__vision_features=False).tokens == vision
    assert whole.tokens - tokens(checkpoint__soft_prompt="none").tokens == num_images * 32
    assert whole.tokens - tokens(checkpoint__aspect="none").tokens == num_images * 6 * 5
    stored = tokens(cache__aspect_tokens=True)
    assert stored.tokens == whole.tokens and stored.flops < whole.flops
    fewer = tokens(evaluate__category_map=["awe="])
    assert (fewer.num_images, whole.num_images) == (4, 6)
    renamed = tokens(evaluate__category_map=["awe=joy", "elsewhere=anger"])
    assert renamed.num_images == 6 and renamed.tokens < whole.tokens  # two answers are compared, not three
    assert tokens(evaluate__split="val").num_images == 0


@pytest.mark.parametrize("layout", ["after_image", "released"])
def test_explanations_take_what_torch_counts(config, images, sizes, monkeypatch, layout):
    """Answers of open questions are counted at their largest length, so the aspects here are closed."""
    config.stage2.layout, config.aspects, config.evaluate.explain = layout, ["brightness", "colorfulness"], "sample"
    config.vlm.attention, config.engine.precision = "eager", "fp32"
    images = [p for p in images if p.sample.split == "test"][:3]
    work = evaluation_work(config, *sizes, images, CATEGORIES)
    config.evaluate.explain = "none"
    scores = evaluation_work(config, *sizes, images, CATEGORIES)
    assert (work.num_explained, scores.num_explained) == (3, 0) and work.num_passes == 2 * scores.num_passes
    assert work.num_sequences - scores.num_sequences == 3 * (5 + 2)
    questions, model = questions_of(config), trained(config, config.stage2.num_soft_prompt_tokens)
    scorer = TargetScorer(config, model, questions, CATEGORIES, "cpu")
    explainer = Explainer(config, model, questions, scorer, scorer.model.language)
    counted = Counted(monkeypatch, sizes[1])
    for p in images:
        asked = request(p)
        parts = [replace(asked, without=part) for part in left_out(scorer.aspects, True)]
        counted.count(lambda parts=parts: scorer.score(parts))
        for aspect in config.aspects:
            counted.count(lambda asked=asked, aspect=aspect: explainer.answers.answers([asked], aspect))
    assert work.tokens - scores.tokens == counted.tokens
    # of padded prompts, and of answers that are not those of the counter's tree, a little more or less is masked
    assert work.flops - scores.flops == pytest.approx(counted.flops, rel=0.03)


def test_the_encoder_and_the_validation_split(config, images, sizes):
    config.evaluate.source, config.evaluate.prompts, config.evaluate.validation = "live", "all", True
    held_out = [p for p in images if p.sample.split == "train"][:2]
    images = [replace(p, sample=Sample(f"val/{n}", "val", "x", "joy", {})) for n, p in enumerate(held_out)] + list(
        images
    )
    work = evaluation_work(config, *sizes, images, CATEGORIES)
    test = [p for p in images if p.sample.split == "test"]
    assert (work.num_images, work.num_validation_images, work.num_passes) == (6, 2, 6 * work.num_wordings + 2)
    expected = work.num_wordings * extraction_flops(sizes[0], test) + extraction_flops(sizes[0], images[:2])
    assert work.encoder_flops == expected
    language, encoder = Rate(2.0, "FLOP", ""), Rate(4.0, "FLOP", "")
    found = estimate_evaluation(config, work, language, encoder, 1000.0)
    assert found.hours == pytest.approx((work.flops / 2 + work.encoder_flops / 4) / 3600)
    assert found.flops == work.flops + work.encoder_flops and found.reads_bytes_per_s == 0
    config.evaluate.source, directory, config.cache.dir = "cache", config.cache.dir, None
    assert evaluation_work(config, *sizes, images, CATEGORIES) == work  # without a cache, the source is what it can be
    assert estimate_evaluation(config, work, language, encoder, 1000.0) == found
    config.cache.dir = directory
    cached = estimate_evaluation(config, replace(work, encoder_flops=0.0), language, encoder, 1000.0)
    assert cached.images_per_s == pytest.approx(2 * work.num_passes / work.flops)
    assert cached.reads_bytes_per_s == cached.images_per_s * 1000


def test_tokens_per_second_of_training_become_flop(config):
    stated, logged = Rate(7.0, "FLOP", "stated"), Rate(3.0, "tokens", "a run")
    works = {"stage1": StageWork(1, 0, 0, 0.0, 0.0), "stage2": StageWork(2, 4, 4, 10.0, 50.0)}
    rates = Rates(stated, logged, logged)
    stages = {name: estimate_live_stage(work, stated, 25.0, 4, stated) for name, work in works.items()}
    assert evaluation_rate(config, rates, works, stages) == Rate(15.0, "FLOP", "a run, tokens as FLOP")
    beside_the_encoder = Rates(stated, logged, replace(logged, includes_encoder=True))  # 100 FLOP, and 2 x 25
    assert evaluation_rate(config, beside_the_encoder, works, stages).per_second == 3.0 * 150 / 20
    config.evaluate.stage = "stage1"
    assert evaluation_rate(config, rates, works, stages) == stated  # nothing to learn from: nothing to convert with
    assert evaluation_rate(config, Rates(stated, stated, logged), works, stages) == stated


def test_a_plan_shows_it(config):
    config.evaluate.prompts = "all"
    plan = make_plan(config)
    found = plan.evaluate
    assert (found.stage, found.split, found.scoring, found.num_images) == ("stage2", "test", "likelihood", 6)
    row = next(line for line in render(plan).splitlines() if line.startswith("evaluate ")).split()
    assert row[1:3] == ["6", str(found.num_wordings)] and found.num_wordings > 1
    assert f"evaluate: 6 images of test in {found.num_wordings} wordings of the question" in render(plan)
    assert found.hours == pytest.approx(found.flops / (989e12 * 0.4) / 3600)
    config.evaluate.split = "val"
    assert "evaluate          0  nothing to score" in render(make_plan(config))
