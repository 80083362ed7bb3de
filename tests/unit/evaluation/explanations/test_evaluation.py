"""Which images are explained, and how explanations are configured; `tests/pipeline/test_explanations.py` runs them."""

import random

import pytest

from masp.config import load_config
from masp.errors import InputError
from masp.evaluation.explanations.evaluation import chosen_images, explained_config, explains, why_not_explained
from masp.results.explanations.explanations_file import NUM_SAMPLE


def config(*settings):
    return load_config(None, ["vlm.path=m", "dataset.root=d", "cache.dir=c", *settings])


def test_the_sample_depends_on_the_keys_alone():
    keys = [f"test/awe/{number:05d}" for number in range(1000)]
    sample = chosen_images(keys, "sample")
    assert len(sample) == NUM_SAMPLE == 200 and sample == sorted(sample)
    shuffled = random.Random(0).sample(keys, len(keys))
    assert sorted(chosen_images(shuffled, "sample")) == sample
    # more images displace some and leave the others
    more = chosen_images([*keys, *(f"test/joy/{number}" for number in range(200))], "sample")
    assert 120 < len(set(more) & set(sample)) < 200
    numbers = [int(key[-5:]) for key in sample]
    assert 400 < sum(numbers) / len(numbers) < 600  # no corner of the split
    assert chosen_images(keys[:7], "sample") == keys[:7] and chosen_images(keys, "all") == keys


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["evaluate.explain=sample", "evaluate.stage=stage1"], "'sample': nothing is explained; only evaluations of"),
        (["evaluate.explain=all", "aspects=[]"], "'all': nothing is explained; there are no aspect modules"),
        (["evaluate.explain=all", "checkpoint.aspect=none"], "there are no aspect modules"),
    ],
)
def test_where_nothing_can_be_explained_that_is_said(settings, words):
    assert words in why_not_explained(config(*settings)) and not explains(config(*settings))


def test_where_explanations_are_not_asked_for_nothing_is_said():
    assert why_not_explained(config("aspects=[]")) is None and not explains(config())
    assert why_not_explained(config("evaluate.explain=all")) is None and explains(config("evaluate.explain=all"))


def test_explanations_compare_likelihoods_one_image_at_a_time(tmp_path):
    asked = config("evaluate.explain=all", "evaluate.scoring=generate", "evaluate.attention=true",
                   "evaluate.validation=true", "evaluate.prompts=all", "evaluate.batch_size=9")  # fmt: skip
    part = explained_config(asked, tmp_path).evaluate
    assert (part.scoring, part.batch_size, part.output_dir) == ("likelihood", 1, str(tmp_path / "explanations"))
    assert not (part.attention or part.validation or part.linear_probe) and part.prompts == "first"
    assert asked.evaluate.scoring == "generate"
    with pytest.raises(
        InputError, match=r"evaluate.explain = 'all': .* evaluate.without = \['scene'\] .* one of the two"
    ):
        explained_config(config("evaluate.explain=all", "evaluate.without=[scene]"), tmp_path)
