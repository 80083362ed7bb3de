"""Vision tokens by the sizes of images, and text tokens as the tokenizer counts them."""

import statistics
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from masp.cache.codec import SampleRecord, encode_record
from masp.data.datasets import dataset_of
from masp.data.questions import questions_of
from masp.data.sample import Sample, Samples
from masp.errors import InputError
from masp.plan.disk import tar_sizes
from masp.plan.tokens import (
    PlannedImage,
    TokenStatistics,
    WeightedWords,
    answers_of,
    count_words,
    layouts_of,
    plan_images,
    tally,
    token_statistics,
)
from masp.vlm.preprocessor import RefusedImage, load_preprocessor
from masp.vlm.prompt import load_prompt
from tests.tiny import layout_of
from tests.vlm_sizes import save_config_only


def test_quantiles():
    images = [PlannedImage(None, (1, 1), layout_of((1, 2, 2 * n)), 300) for n in range(1, 101)]
    assert token_statistics(images) == TokenStatistics(min=1, median=50, mean=50.5, p95=95, max=100, total=5050)


def test_tokens_are_those_of_the_vlm(config):
    dataset = dataset_of(config)
    train = [sample for sample in dataset.samples if sample.split == "train"]
    prompt, questions = load_prompt(config.vlm.path), questions_of(config)
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
    listed = [template.replace("{categories}", "anger, awe, joy") for template in questions.target_templates]
    assert words.target_question == statistics.mean(asked(text) for text in listed)


def test_without_a_tokenizer_words_are_counted(config, tmp_path):
    config.vlm.path = str(save_config_only(tmp_path / "bare", "Qwen2-VL-2B"))
    dataset = dataset_of(config)
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
    config.stage2.supervision = "distribution"
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


def many_samples(count):
    answers = [{"scene": 'a "bar"', "object": "dög"}, {}, {"brightness": "low"}]
    votes = [None, (1 / 3, 2 / 3), (1e-05, 0.99999)]
    return Samples.of(
        Sample(
            f"{split}/cafe/{n:07d}%2Ejpg", split, "none", "café" if n % 2 else "awe", answers[n % 3], votes[n // 2 % 3]
        )
        for n in range(count)
        for split in ["test" if n % 5 else "train"]
    )


def test_columns_are_what_each_image_would_be(config):
    samples, sizes = many_samples(60), np.array([(100 + n % 7, 60) for n in range(60)], dtype=np.int32)
    sizes[[3, 59]] = 0
    preprocessor = load_preprocessor(config.vlm.path)
    images, _ = plan_images(samples, sizes, preprocessor)
    kept = [n for n in range(60) if n not in (3, 59)]
    assert len(images) == 58 and [image.sample for image in images] == [samples[n] for n in kept]
    for image, number in zip(images, kept, strict=True):
        sample, size = samples[number], tuple(sizes[number].tolist())
        assert (image.size, image.layout) == (size, preprocessor.planned(*size))
        record = SampleRecord(
            sample.key, sample.split, sample.category, sample.answers, size, image.grid, "0" * 64, image.layout.block,
            sample.distribution,
        )  # fmt: skip
        assert image.record_bytes == len(encode_record(record))
    train = images.in_split("train")
    assert [image.sample.split for image in train] == ["train"] * len(train) and len(train) == 12
    annotated = images.with_answers(["object", "brightness"])
    assert [image.sample for image in annotated] == [i.sample for i in images if i.sample.answers]
    assert token_statistics(images) == token_statistics(list(images))
    assert images.num_tokens.tolist() == [image.num_tokens for image in images]
    counts = {}
    for image, count in tally(images):
        kind = kind_of(image)
        assert kind not in counts
        counts[kind] = count
    assert counts == Counter(map(kind_of, images))
    assert answers_of(images, ["scene", "colorfulness"]) == {"scene": {'a "bar"'}, "colorfulness": set()}


def kind_of(image):
    return image.layout, image.sample.split, image.sample.category, tuple(image.sample.answers)


def test_an_image_takes_few_bytes_of_memory(config):
    count, preprocessor = 20_000, load_preprocessor(config.vlm.path)
    samples = many_samples(count)
    sizes = np.stack([np.arange(count) % 50 + 100, np.full(count, 90)], axis=1).astype(np.int32)
    shards = {"train-00000": np.arange(count)}
    tracemalloc.start()
    try:
        images, _ = plan_images(samples, sizes, preprocessor)
        assert len(images.groups) < 1000
        again = images.again(layouts_of([size for size, _ in images.kinds], preprocessor))
        tar_sizes(again, shards, 8, "bf16")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200 * count, peak / count


@pytest.mark.full
def test_several_processes_find_the_same_layouts_as_one(vlm, monkeypatch):
    preprocessor = load_preprocessor(str(vlm))
    sizes = [(90 + n, 60) for n in range(70)] + [(2, 900)]
    alone = layouts_of(sizes, preprocessor, num_processes=1)
    assert alone[90, 60] == preprocessor.layout(90, 60) and "aspect ratio" in alone[2, 900]
    monkeypatch.setattr("masp.plan.tokens._TRIAL_S", -1)
    monkeypatch.setattr("masp.plan.tokens._ALONE_S", -1)
    assert layouts_of(sizes, preprocessor, num_processes=2) == alone


def test_images_that_another_processor_refuses_are_left_out(config):
    preprocessor, sizes = load_preprocessor(config.vlm.path), np.array([(100, 60), (130, 60)] * 2, dtype=np.int32)
    images, refused = plan_images(many_samples(4), sizes, preprocessor)
    assert len(images) == 4 and not refused
    layouts = {(100, 60): "refused", (130, 60): layout_of((1, 2, 100))}
    left = images.again(layouts)[images.is_planned(layouts)]
    assert [image.sample for image in left] == [images[1].sample, images[3].sample]
    assert {image.layout for image in left} == {layout_of((1, 2, 100))}
    changed = len(str(layout_of((1, 2, 100)).grid)) - len(str(images[1].grid))
    assert left.record_bytes.tolist() == [images[place].record_bytes + changed for place in (1, 3)]


def test_images_that_the_processor_refuses_are_named():
    class Refusing:
        def planned(self, width, height):
            if width == 130:
                raise RefusedImage("130 is too wide")
            return layout_of((1, 2, 2))

    samples, sizes = many_samples(3), np.array([(0, 0), (130, 60), (100, 60)], dtype=np.int32)
    images, refused = plan_images(samples, sizes, Refusing())
    assert [image.sample for image in images] == [samples[2]] and images[0].size == (100, 60)
    assert refused == [(samples.images[1], "130 is too wide")]
