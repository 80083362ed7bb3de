"""The thread that owns the models, with a real model: batches, failures, what is cancelled, and how it stops."""

import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch

from masp.errors import DataError, InputError
from masp.inference.images import named_images
from masp.inference.model import Model
from masp.inference.serving.batching import Batcher, Job, ModelFailed
from masp.inference.source import config_of
from tests.serving import png

NUM_IMAGES = 6


@pytest.fixture(scope="module")
def expected(trained):
    return Model(config_of(trained)).predict([png(seed) for seed in range(NUM_IMAGES)])


@pytest.fixture
def batcher(trained):
    """Loads in its thread; batches of four, and an image waits for half a second."""
    loaded, sizes = threading.Event(), []
    batcher = Batcher([Model(config_of(trained))], 4, 0.5, on_loaded=lambda error: loaded.set(), on_batch=sizes.append)
    batcher.sizes = sizes
    batcher.start()
    assert loaded.wait(120) and batcher.is_ready
    yield batcher
    batcher.stop()


def jobs_of(batcher, seeds):
    model = batcher.models[0]
    return [Job(0, image, model.prepare(image)) for image in named_images([png(seed) for seed in seeds])]


def answers(batcher, jobs):
    futures = [batcher.submit(job) for job in jobs]
    return [future.exception(60) or future.result().prediction.log_likelihoods for future in futures]


def test_images_are_scored_together_and_answered_each(batcher, expected):
    found = answers(batcher, jobs_of(batcher, range(NUM_IMAGES)))
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other.log_likelihoods, abs=1e-5, rel=0)
    assert batcher.sizes == [4, 2]


def test_an_image_that_fails_fails_alone(batcher, expected):
    jobs = jobs_of(batcher, range(4))
    jobs[1].prepared.inputs["pixel_values"].fill_(torch.nan)  # its features are not finite
    jobs[2].prepared.inputs.clear()  # a bug
    found = answers(batcher, jobs)
    assert isinstance(found[1], DataError) and "not finite" in str(found[1])
    assert isinstance(found[2], ModelFailed)
    for place in (0, 3):
        assert found[place] == pytest.approx(expected[place].log_likelihoods, abs=1e-5, rel=0)
    assert answers(batcher, jobs_of(batcher, [5])) == [pytest.approx(expected[5].log_likelihoods, abs=1e-5, rel=0)]


def test_what_is_cancelled_is_not_scored(batcher, expected):
    jobs = jobs_of(batcher, range(3))
    futures = [batcher.submit(job) for job in jobs]
    assert futures[0].cancel() and futures[2].cancel()
    assert futures[1].result(60).prediction.log_likelihoods == pytest.approx(expected[1].log_likelihoods, abs=1e-5)
    assert batcher.sizes == [1]


def test_what_nobody_waits_for_is_not_explained(batcher):
    wanted, given_up = jobs_of(batcher, range(2))
    wanted.explains = given_up.explains = given_up.is_given_up = True
    futures = [batcher.submit(job) for job in (wanted, given_up)]
    assert futures[0].result(60).explanation.image == "image 0"
    assert futures[1].result(60).explanation is None


def test_what_waits_is_cancelled_when_it_stops(batcher):
    future = batcher.submit(jobs_of(batcher, [0])[0])
    batcher.stop()
    with pytest.raises(CancelledError):
        future.result(60)


def test_why_a_model_cannot_be_loaded_is_told(trained, tmp_path):
    config = config_of(trained)
    model = Model(config)
    config.vlm.path = str(tmp_path / "gone")
    told = []
    ended = threading.Event()
    batcher = Batcher([model], 4, 0.0, on_loaded=lambda error: (told.append(error), ended.set()))
    batcher.start()
    assert ended.wait(60) and isinstance(told[0], InputError) and not batcher.is_ready


def test_models_share_what_of_the_vlm_is_the_same(trained):
    first, second, third = (Model(config_of(trained, settings=given)) for given in ([], [], ["engine.precision=bf16"]))
    second.use_vlm_of(first)
    third.use_vlm_of(first)
    assert second.language is first.language and second.encoder.vision is first.encoder.vision
    assert third.language is not first.language and third.encoder.vision is first.encoder.vision
    images = [png(seed) for seed in range(3)]
    alone = Model(config_of(trained)).predict(images)
    for model in (first, second, first):
        found = [list(one.log_likelihoods.values()) for one in model.predict(images)]
        np.testing.assert_allclose(found, [list(one.log_likelihoods.values()) for one in alone], atol=1e-5, rtol=0)
    whole = Model(config_of(trained, settings=["engine.precision=bf16"])).predict(images)
    assert [one.log_likelihoods for one in third.predict(images)] == [one.log_likelihoods for one in whole]
