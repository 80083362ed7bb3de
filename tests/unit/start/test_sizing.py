"""How long and how fast to train: enough steps for few images, and a reach that does not depend on their number."""

import math

import pytest

from masp.config import load_config
from masp.models.trainable import AspectModule
from masp.start.sizing import BATCH_SIZES, MIN_EPOCHS, MIN_STEPS, REACH, attention_rms, stage_sizes
from masp.training.schedule import learning_rate

COUNTS = [1, 2, 7, 8, 9, 63, 140, 511, 512, 1000, 4000, 94_500, 10_000_000]


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("num_images", COUNTS)
def test_the_settings_are_valid_and_all_steps_together_reach_as_far(stage, num_images):
    rms = 0.02
    sizes = stage_sizes(stage, num_images, rms)
    names = ("num_epochs", "global_batch_size", "learning_rate", "warmup_ratio", "validate_every", "patience")
    given = [f"{stage}.{name}={getattr(sizes, name)}" for name in names]
    settings = getattr(load_config(None, ["vlm.path=m", "dataset.root=d", "cache.dir=c", *given]), stage)
    assert [getattr(settings, name) for name in names] == [getattr(sizes, name) for name in names]
    assert sizes.num_steps == math.ceil(num_images / sizes.global_batch_size) * sizes.num_epochs
    total = sum(learning_rate(step, sizes.num_steps, settings) for step in range(sizes.num_steps))
    assert total == pytest.approx(REACH * rms, rel=0.12 if sizes.num_steps > 20 else 0.5)
    assert 1 <= sizes.num_steps // sizes.validate_every <= 11 or sizes.num_steps < 20


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_few_images_are_seen_more_often_and_many_as_published(stage):
    for num_images in (140, 1000, 4000):
        assert stage_sizes(stage, num_images, 1.0).num_steps >= MIN_STEPS[stage]
    assert stage_sizes(stage, 94_500, 1.0).num_epochs == MIN_EPOCHS[stage]
    epochs = [stage_sizes(stage, count, 1.0).num_epochs for count in COUNTS]
    batches = [stage_sizes(stage, count, 1.0).global_batch_size for count in COUNTS]
    assert epochs == sorted(epochs, reverse=True) and batches == sorted(batches) and set(batches) <= set(BATCH_SIZES)


def test_what_is_decided_already_is_kept_and_the_learning_rate_suits_it():
    sizes = stage_sizes("stage2", 160, 1.0, batch_size=4, num_epochs=2)
    assert (sizes.global_batch_size, sizes.num_epochs, sizes.num_steps) == (4, 2, 80)
    assert sizes.learning_rate == pytest.approx(2 * REACH / 80, rel=0.05)


def test_the_published_and_the_demos_learning_rates_have_about_this_reach():
    published = load_config("configs/train.yaml").stage2
    num_steps = 94_500  # one epoch of single images
    assert published.learning_rate * num_steps / 2 / 0.02 == pytest.approx(REACH, rel=0.5)  # initializer_range
    demo, num_steps = load_config("configs/demo.yaml"), 3 * 63
    assert demo.stage2.learning_rate * num_steps / 2 / 26.9 == pytest.approx(REACH, rel=0.5)
    assert demo.stage1.learning_rate * (5 * 63) / 2 / attention_rms(192) == pytest.approx(REACH, rel=0.5)


def test_the_rms_of_the_cross_attention_is_that_of_its_initial_weights():
    weight = AspectModule(192, 5).in_proj_weight.detach()
    assert float(weight.square().mean().sqrt()) == pytest.approx(attention_rms(192), rel=0.02)


@pytest.mark.parametrize(("num_images", "rms"), [(0, 1.0), (5, 0.0), (5, float("nan"))])
def test_nothing_to_size_is_refused(num_images, rms):
    with pytest.raises(ValueError, match="cannot size"):
        stage_sizes("stage1", num_images, rms)
