"""Vision tokens by the sizes of images, and text tokens as the tokenizer counts them."""

import statistics

import pytest

from masp.data.datasets import read_dataset
from masp.data.questions import load_questions
from masp.data.sample import Sample
from masp.errors import InputError
from masp.plan.tokens import (
    PlannedImage,
    TokenStatistics,
    WeightedWords,
    count_words,
    layouts_of,
    plan_again,
    token_statistics,
)
from masp.vlm.preprocessor import load_preprocessor
from masp.vlm.prompt import load_prompt
from tests.tiny import layout_of
from tests.vlm_sizes import save_config_only


def test_quantiles():
    images = [PlannedImage(None, (1, 1), layout_of((1, 2, 2 * n)), 300) for n in range(1, 101)]
    assert token_statistics(images) == TokenStatistics(min=1, median=50, mean=50.5, p95=95, max=100, total=5050)


def test_tokens_are_those_of_the_vlm(config):
    dataset = read_dataset(config.dataset)
    train = [sample for sample in dataset.samples if sample.split == "train"]
    prompt, questions = load_prompt(config.vlm.path), load_questions(config.questions)
    words = count_words(config, train, dataset.categories)
    assert words.counted
    closing = len(prompt.question(""))
    assert (words.opening, words.closing) == (len(prompt.opening), closing)

    def asked(text):
        return len(prompt.question(text)) - closing

    for aspect in ("scene", "object"):
        templates, answers = questions.templates(aspect), [s.answers[aspect] for s in train if aspect in s.answers]
        assert words.questions[aspect] == statistics.mean(asked(text) for text in templates)
        assert words.answers[aspect] == pytest.approx(statistics.mean(len(prompt.answer(text)) for text in answers))
    assert words.answers["facial_expression"] == 0.0  # nothing is annotated with it
    listed = [template.replace("{categories}", "anger, awe, joy") for template in questions.emotions]
    assert words.emotion_question == statistics.mean(asked(text) for text in listed)


def test_without_a_tokenizer_words_are_counted(config, tmp_path):
    config.vlm.path = str(save_config_only(tmp_path / "bare", "Qwen2-VL-2B"))
    dataset = read_dataset(config.dataset)
    words = count_words(config, [s for s in dataset.samples if "object" in s.answers], dataset.categories)
    assert not words.counted and words.opening == 14
    assert words.answers["object"] == 3  # "dog, tree"


@pytest.mark.parametrize("has_tree", [True, False])
def test_answers_that_all_count_are_those_that_training_runs(config, monkeypatch, has_tree):
    monkeypatch.setattr("masp.vlm.families.Family.has_tree", has_tree)
    categories = ("awe", "fear", "fear of heights")
    votes = [None, (0.5, 0.5, 0.0), (0.0, 0.4, 0.6), (0.0, 0.4, 0.6)]
    samples = [Sample(f"train/{n}", "train", "none", "awe", {}, own) for n, own in enumerate(votes)]
    assert count_words(config, samples, categories).weighted is None
    config.stage2.targets = "distribution"
    awe, fear, heights = (len(load_prompt(config.vlm.path).answer(category)) for category in categories)
    assert heights > fear  # and begins with it
    words = count_words(config, samples, categories)
    tokens = [awe, awe + fear, *([heights] * 2 if has_tree else [fear + heights] * 2)]
    assert words.weighted == WeightedWords(pytest.approx(7 / 4), pytest.approx(sum(tokens) / 4), has_tree)
    config.stage2.distribution_loss = "drawn"
    assert count_words(config, samples, categories).weighted is None


def test_a_missing_questions_file(config):
    config.questions = "/no/such.yaml"
    with pytest.raises(InputError, match="/no/such.yaml"):
        count_words(config, [], ("joy",))


@pytest.mark.full
def test_several_processes_find_the_same_layouts_as_one(vlm, monkeypatch):
    preprocessor = load_preprocessor(str(vlm))
    sizes = [(90 + n, 60) for n in range(70)] + [(2, 900)]
    alone = layouts_of(sizes, preprocessor, num_processes=1)
    assert alone[90, 60] == preprocessor.layout(90, 60) and "aspect ratio" in alone[2, 900]
    monkeypatch.setattr("masp.plan.tokens._TRIAL_S", -1)
    monkeypatch.setattr("masp.plan.tokens._ALONE_S", -1)
    assert layouts_of(sizes, preprocessor, num_processes=2) == alone


def test_images_that_another_processor_refuses_are_left_out():
    images = [PlannedImage(None, (n, n), layout_of((1, 2, 2 * n)), 300) for n in (1, 2)]
    (left,) = plan_again(images, {(1, 1): "refused", (2, 2): layout_of((1, 2, 100))})
    assert left.layout == layout_of((1, 2, 100)) and left.record_bytes == 302
