"""What an annotation is expected to compute, against what torch counts while the VLM is asked."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from masp.annotation.asking import VlmAnnotator
from masp.cache.reader import CachedSample
from masp.config import load_aspects
from masp.data.datasets import dataset_of
from masp.data.questions import questions_of
from masp.plan.annotation import estimate_annotation
from masp.plan.plan import make_plan
from masp.plan.rates import Rate
from masp.plan.render import render
from masp.plan.tokens import plan_images
from masp.vlm.cost.flops import shapes
from masp.vlm.families import load_config as load_vlm_config
from masp.vlm.features import Features
from masp.vlm.preprocessor import load_preprocessor
from tests.annotated import DEFINITIONS
from tests.unit.plan.test_evaluation import SIZES, Counted

RATE = Rate(1e12, "FLOP", "stated")


@pytest.fixture
def config(config, tmp_path):
    path = tmp_path / "aspects.yaml"
    path.write_text(DEFINITIONS)
    config.aspect_definitions, config.annotate.max_new_tokens = str(path), 5
    config.annotate.device, config.vlm.attention, config.engine.precision = "cpu", "eager", "fp32"
    return config


@pytest.fixture
def images(config):
    """Planned images of three sizes in turn, two thirds of them with a scene."""
    samples = dataset_of(config).samples
    preprocessor = load_preprocessor(config.vlm.path, config.vlm.min_pixels, config.vlm.max_pixels)
    return plan_images(samples, np.array([SIZES[i % len(SIZES)] for i in range(len(samples))], "i4"), preprocessor)[0]


def estimate(config, images):
    return estimate_annotation(config, shapes(load_vlm_config(Path(config.vlm.path)))[1], images, RATE)


@pytest.mark.full
def test_it_takes_what_torch_counts(config, images, monkeypatch):
    config.aspects = ["weather", "mood", "scene", "light"]
    aspects, language = load_aspects(config.aspect_definitions), shapes(load_vlm_config(Path(config.vlm.path)))[1]
    vlm = VlmAnnotator(config, questions_of(config))
    # random weights may write an end token; a plan counts the largest length
    vlm.prompt = replace(vlm.prompt, stop=frozenset())
    tokens, flops, num_questions = 0, 0.0, 0

    def ask(p, *names):
        nonlocal tokens, flops, num_questions
        with monkeypatch.context() as patch:
            counted = Counted(patch, language)
            counted.count(lambda: vlm.answer([sample_of(p)], [aspects[name] for name in names]))
        tokens, flops, num_questions = tokens + counted.tokens, flops + counted.flops, num_questions + len(names)

    lacking = [p for p in images if not p.sample.answers]
    assert 0 < len(lacking) < len(images)
    for p in images:
        ask(p, "weather", "mood")  # brightness is computed from the image
    for p in lacking:
        ask(p, "scene")
    found = estimate(config, images)
    assert (found.aspects, found.num_images, found.num_questions) == (
        ("weather", "mood", "scene"), len(images), num_questions,
    )  # fmt: skip
    assert found.tokens_per_image * found.num_images == pytest.approx(tokens)
    assert found.flops == pytest.approx(flops, rel=2e-3)
    assert found.hours == found.flops / 1e12 / 3600


def sample_of(p):
    return CachedSample("k", "train", "awe", {}, Features(torch.randn(p.num_tokens, 32)), p.layout, p.size)


def test_only_where_the_vlm_has_to(config, images):
    config.aspects = ["scene"]
    assert estimate(config, images) is None  # people annotated it
    config.annotate.aspects = ["scene"]
    lacking = sum("scene" not in p.sample.answers for p in images)
    assert estimate(config, images).num_questions == lacking > 0
    config.aspects, config.annotate.aspects = ["light"], None
    assert estimate(config, images) is None  # from pixels
    config.aspects = ["weather"]
    assert estimate(config, images).num_images == len(images)
    config.checkpoint.aspect = "none"
    assert estimate(config, images) is None
    config.checkpoint.aspect, config.cache.dir = None, None
    assert estimate(config, images) is None


def test_a_plan_shows_it(config):
    config.aspects = ["weather", "scene"]
    plan = make_plan(config)
    (line,) = [line for line in render(plan).splitlines() if line.startswith("annotate: ")]
    assert "questions about weather, scene of 24 images: " in line
    found = plan.to_dict()["annotate"]
    keys = "aspects num_images num_questions tokens_per_image flops_per_image flops hours rate"
    assert found["num_images"] == 24 and list(found) == keys.split()
    config.aspects = ["scene"]
    assert "annotate: the VLM" not in render(make_plan(config))
