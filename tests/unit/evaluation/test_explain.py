"""Explanations: what is left out of which prompt, and that contributions are the differences that they say."""

import numpy as np
import pytest
import torch

from masp.artifacts.trained import Trained
from masp.config import load_config
from masp.data.questions import Questions
from masp.errors import InputError
from masp.evaluation.explain import Explainer, left_out
from masp.evaluation.scorers import ScoreRequest, TargetScorer
from masp.models.trainable import AspectModules, SoftPrompt
from masp.results.explanations.explanation import AspectExplanation, Explanation
from masp.vlm.features import Features, ImageLayout
from tests.tiny import make_vlm

HIDDEN = 32
ASPECTS = ("scene", "object", "brightness")
QUESTIONS = Questions("q.yaml", {name: (f"Which {name}?",) for name in ASPECTS}, ("Which of {categories}?",))
CATEGORIES = ("fear", "joy", "awe")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    vlm = make_vlm(tmp_path_factory.mktemp("vlm") / "vlm", hidden=HIDDEN)
    settings = [f"vlm.path={vlm}", "dataset.root=x", "cache.dir=x", "engine.precision=fp32"]
    return load_config(None, [*settings, f"aspects=[{','.join(ASPECTS)}]"])


def trained(aspects=ASPECTS, layout="after_image", vision_features=True):
    torch.manual_seed(0)
    modules = AspectModules(aspects, HIDDEN, num_queries=3) if aspects else None
    return Trained(modules, None, SoftPrompt(torch.randn(4, HIDDEN)), None, layout, vision_features)


def requests(count=3):
    generator = torch.Generator().manual_seed(1)
    features = [Features(torch.randn(4 + 2 * n, HIDDEN, generator=generator)) for n in range(count)]
    return [
        ScoreRequest(f, ImageLayout(len(f.tokens), (1, 4, len(f.tokens))), name=f"i{n}") for n, f in enumerate(features)
    ]


def explainer(config, found, categories=CATEGORIES):
    scorer = TargetScorer(config, found, QUESTIONS, categories, "cpu")
    return scorer, Explainer(config, found, QUESTIONS, scorer, scorer.model.language)


def test_what_is_left_out():
    assert left_out(["a", "b"], True) == [set(), {"a"}, {"b"}, {"a", "b"}, {"vision_features"}]
    assert left_out(["a", "b"], False) == [set(), {"a"}, {"b"}]
    assert left_out(["a"], True) == [set(), {"a"}, {"vision_features"}]
    assert left_out(["a"], False) == [set()]


@pytest.mark.parametrize("layout", ["after_image", "released"])
def test_contributions_are_the_differences_of_separate_models(config, layout):
    """Leaving an aspect out is the same as a model that never had it."""
    found = trained(layout=layout)
    scorer, explaining = explainer(config, found)
    for request, explanation in zip(requests(), explaining.explain(requests()), strict=True):
        (whole,) = scorer.score([request])
        best = CATEGORIES.index(whole.prediction)
        assert explanation.category == whole.prediction
        for gone, said in zip(ASPECTS, explanation.aspects, strict=True):
            rest = [name for name in ASPECTS if name != gone]
            modules = AspectModules(rest, HIDDEN, num_queries=3)
            modules.by_aspect.load_state_dict(
                {k: v for k, v in found.aspects.by_aspect.state_dict().items() if not k.startswith(f"{gone}.")}
            )
            other = Trained(modules, None, found.soft_prompt, None, layout)
            (without,) = TargetScorer(config, other, QUESTIONS, CATEGORIES, "cpu").score([request])
            assert said.contribution == pytest.approx(whole.scores[best] - without.scores[best], abs=1e-5)
            assert abs(said.contribution) > 1e-4
        nothing = Trained(None, None, found.soft_prompt, None, layout)
        (without,) = TargetScorer(config, nothing, QUESTIONS, CATEGORIES, "cpu").score([request])
        assert explanation.all_aspects == pytest.approx(whole.scores[best] - without.scores[best], abs=1e-5)
        blind = Trained(found.aspects, None, found.soft_prompt, None, layout, vision_features=False)
        (without,) = TargetScorer(config, blind, QUESTIONS, CATEGORIES, "cpu").score([request])
        assert explanation.vision_features == pytest.approx(whole.scores[best] - without.scores[best], abs=1e-5)
        total = sum(said.contribution for said in explanation.aspects) + explanation.interaction
        assert total == pytest.approx(explanation.all_aspects, abs=1e-9)


def test_answers_are_likeliest_and_written_ones_have_their_probability(config):
    _, explaining = explainer(config, trained())
    for request, explanation in zip(requests(), explaining.explain(requests()), strict=True):
        by_aspect = {said.aspect: said for said in explanation.aspects}
        words = ["very low", "low", "moderate", "high", "very high"]
        assert by_aspect["brightness"].answer in words
        assert 1 / 5 <= by_aspect["brightness"].probability <= 1
        assert 0 < by_aspect["object"].probability <= 1  # lists are written
        assert by_aspect["scene"].attention.shape == (2, len(request.features.tokens) // 2)
        assert by_aspect["scene"].attention.sum() == pytest.approx(1, abs=1e-5)


def test_an_only_aspect_without_vision_features_has_no_contribution(config):
    one = load_config(None, [f"vlm.path={config.vlm.path}", "dataset.root=x", "cache.dir=x", "aspects=[scene]"])
    one.engine.precision = "fp32"
    found = trained(("scene",), vision_features=False)
    scorer = TargetScorer(one, found, QUESTIONS, CATEGORIES, "cpu")
    (explanation,) = Explainer(one, found, QUESTIONS, scorer, scorer.model.language).explain(requests(1))
    assert explanation.aspects[0].contribution is None and explanation.aspects[0].answer is not None
    assert explanation.all_aspects is None and explanation.interaction is None and explanation.vision_features is None
    assert "no aspect alone" in explanation.sentence


def test_without_aspect_modules_there_is_nothing_to_explain_with(config):
    with pytest.raises(InputError, match="no aspect modules"):
        explainer(config, trained(None))


def test_the_sentence_says_the_numbers_and_nothing_else():
    rows = [("facial_expression", "crying", 1.34), ("scene", "cemetery", 0.91), ("brightness", "low", 0.44)]
    rows += [("object", "cake", 0.2), ("colorfulness", "high", -2.0)]
    aspects = tuple(AspectExplanation(name, answer, 0.9, value, value, np.ones((1, 1))) for name, answer, value in rows)
    found = Explanation("a.jpg", "sadness", 0.81, {"sadness": 0.81, "joy": 0.19}, aspects, 2.0, 0.1)
    assert found.sentence == (
        "sadness 0.81: facial expression crying (+1.3), scene cemetery (+0.9), brightness low (+0.4)"
    )
    assert found.to_json()["interaction"] == pytest.approx(2.0 - 0.89)
