"""From generated text to an answer: the same decision rule for emotions and for aspects."""

import pytest
import torch

from masp.artifacts.trained import Trained
from masp.config import load_config
from masp.data.questions import Questions
from masp.errors import InputError
from masp.evaluation.scorers import AspectScorer, ScoreRequest, TargetScorer, written_answer
from masp.models.trainable import AspectModules
from masp.vlm.features import Features, ImageLayout
from tests.tiny import make_vlm

HIDDEN = 32
QUESTIONS = Questions("questions.yaml", {"object": ("Which objects?",)}, ("Which of {categories}?",))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    vlm = make_vlm(tmp_path_factory.mktemp("vlm") / "vlm", hidden=HIDDEN)
    settings = [f"vlm.path={vlm}", "dataset.root=x", "cache.dir=x", "aspects=[object]", "engine.precision=fp32"]
    return load_config(None, [*settings, "evaluate.scoring=generate"])


def requests(aspect=None):
    """Features for which random weights write various lines."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(4, HIDDEN, generator=generator) for _ in range(24)]
    return [ScoreRequest(Features(tokens), ImageLayout(4, (1, 4, 4)), aspect=aspect) for tokens in drawn]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Fear", "fear"),
        (" FEAR \nbecause", "fear"),
        ("very_happy", "very happy"),
        ("Ängstlich", "ängstlich"),
        ("fear.", "fear."),
        ("\nfear", ""),
        ("", ""),
    ],
)
def test_the_answer_in_a_text(text, answer):
    assert written_answer(text) == answer


def test_upper_and_lower_case_of_category_and_answer_do_not_differ(config):
    trained = Trained(None, None, None, None, "after_image")
    scorer = TargetScorer(config, trained, QUESTIONS, ("fear", "joy"), "cpu")
    scores = scorer.score(requests())
    assert all(score.prediction is None for score in scores)
    lines = {score.text.split("\n")[0].strip() for score in scores}
    swapped = {line.lower(): line.swapcase() for line in lines if line.lower() != line.upper() and "_" not in line}
    assert swapped, "random weights wrote no letter"
    scorer.categories = tuple(swapped.values())  # the question stays, and with it what is written
    again = scorer.score(requests())
    assert [score.text for score in again] == [score.text for score in scores]
    assert [score.prediction for score in again] == [swapped.get(written_answer(score.text)) for score in scores]
    assert any(score.prediction for score in again)


def test_without_a_grid_there_is_no_map_of_where_aspects_look(config):
    trained = Trained(AspectModules(["object"], HIDDEN), None, None, None, "after_image")
    scorer = TargetScorer(config, trained, QUESTIONS, ("fear", "joy"), "cpu")
    features = Features(torch.ones(4, HIDDEN))
    (found,) = scorer.attention([ScoreRequest(features, ImageLayout(4, (1, 4, 4)))])
    assert found.shape == (1, 2, 2)
    with pytest.raises(InputError, match="test/a: the vision tokens of this VLM do not form one grid"):
        scorer.attention([ScoreRequest(features, ImageLayout(4), name="test/a")])


def test_written_aspects_are_compared_in_the_same_form(config):
    modules = AspectModules(["object"], HIDDEN)
    scorer = AspectScorer(config, modules, "after_image", QUESTIONS, {}, {"object": 6}, "cpu")
    scores = scorer.score(requests("object"))
    assert [s.prediction for s in scores] == [written_answer(s.text) for s in scores]
    assert any(s.text.lower() != s.text for s in scores), "random weights wrote no upper case"
