"""What lower pixel limits would save."""

from pathlib import Path

import numpy as np
import pytest

from masp.plan.disk import tar_sizes
from masp.plan.levers import TOKEN_LIMITS, pixel_levers
from masp.plan.tokens import plan_images
from masp.plan.work import extraction_flops
from masp.vlm.cost.flops import shapes
from masp.vlm.families import load_config
from masp.vlm.preprocessor import load_preprocessor


@pytest.fixture
def images(config):
    """Images of one size each, too large for most limits."""
    from masp.data.datasets import dataset_of

    samples = dataset_of(config).samples[:3]
    preprocessor = load_preprocessor(config.vlm.path, config.vlm.min_pixels, 600 * 28 * 28)
    return plan_images(samples, np.array([(1000, 700), (400, 300), (60, 60)], dtype=np.int32), preprocessor)[0]


SHARDS = {"train-00000": np.arange(3)}


def test_every_limit_below_the_largest_image_is_a_lever(config, images):
    vision, language = shapes(load_config(Path(config.vlm.path)))
    found = pixel_levers(config, vision, images, SHARDS, language.width)
    limits = [limit for limit in TOKEN_LIMITS if limit < images.num_tokens.max()]
    assert [lever.setting for lever in found] == [f"vlm.max_pixels={n * 28 * 28}" for n in limits] and len(limits) > 1
    for limit, lever in zip(limits, found, strict=True):
        assert lever.mean_tokens <= limit
        assert lever.bytes < sum(tar_sizes(images, SHARDS, language.width, config.cache.dtype).values())
        assert lever.extraction_flops < extraction_flops(vision, images)


def test_a_limit_below_the_smallest_number_of_pixels_is_not_a_lever(config, images):
    config.vlm.min_pixels = 300 * 28 * 28
    vision, language = shapes(load_config(Path(config.vlm.path)))
    found = pixel_levers(config, vision, images, SHARDS, language.width)
    assert [lever.setting for lever in found] == [f"vlm.max_pixels={512 * 28 * 28}"]
