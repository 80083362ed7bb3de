"""Steps without a cache: what each kind of VLM gets of an image is what a cache would give it, in both stages."""

import copy
from contextlib import closing

import pytest
import torch

from masp.artifacts.store import Lineage, save_aspects
from masp.cache.reader import open_cache
from masp.config import load_config
from masp.errors import DataError
from masp.extraction.job import extract
from masp.models.trainable import AspectModules
from masp.runtime.prefetch import ReadAhead
from masp.training.live_features import batches_of
from masp.training.stages import open_stage
from masp.training.steps import HeldOutSteps, Steps
from masp.vlm.features import Features
from masp.vlm.prompt import load_prompt
from tests.family_vlms import MAX_SIDE
from tests.images import make_dataset
from tests.runs import make_config_file

FULL = pytest.mark.full
FAMILIES = [
    "qwen3_vl",  # M-RoPE, DeepStack
    "gemma3",  # no grid; masks that depend on types of tokens
    "llava_next",  # separators between rows of tokens
    *(
        pytest.param(name, marks=FULL)
        for name in "internvl gemma4 gemma4_e smolvlm idefics3 glm4v minicpmv4_6 qwen3_5 paligemma granite4_vision "
        "qwen3_vl_moe qwen4_exp deepseek_vl".split()
    ),
]


def without_cache(config, **changes):
    config = copy.deepcopy(config)
    config.cache.dir = None
    for name, value in changes.items():
        setattr(config.dataset, name, value)
    return config


def assert_same(found, expected):
    """Two batches, every tensor of them."""
    one, other = [], []
    found.moved(lambda tensor: one.append(tensor) or tensor)
    expected.moved(lambda tensor: other.append(tensor) or tensor)
    assert len(one) == len(other) > 10
    for mine, theirs in zip(one, other, strict=True):
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def with_modules(config, directory, hidden_size):
    save_aspects(
        AspectModules(config.aspects, hidden_size, config.aspect_module.num_queries),
        directory,
        Lineage("aspect", "trained"),
    )
    config.checkpoint.aspect = str(directory / "aspect.pth")
    return config


def compare(config, stage, num_workers=0):
    """All steps of a stage, and what it holds out, from the cache and without."""
    prompt = load_prompt(config.vlm.path)
    cached, live = (open_stage(stage, one, "cpu") for one in (config, without_cache(config)))
    encoder = live.load_encoder()
    assert cached.load_encoder() is None and cached.schedule.num_steps == live.schedule.num_steps > 0
    for kind in (Steps, HeldOutSteps):
        from_cache, from_images = kind(cached, prompt), kind(live, prompt)
        with ReadAhead(from_images, range(len(from_images)), num_workers, "engine.num_workers") as steps:
            for number, step in enumerate(steps):
                expected = from_cache[number]
                assert step.keys == expected.keys and step.total_weight == expected.total_weight
                assert step.num_tokens == expected.num_tokens and step.flops > expected.flops
                assert all(batch.features.is_meta for batch in step.batches)
                batches = batches_of(step, encoder)
                assert len(batches) == len(expected.batches)
                for found, batch in zip(batches, batches_of(expected, None), strict=True):
                    assert_same(found, batch)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gets_what_a_cache_would_give_it(family_vlm, tmp_path, family, stage):
    images = make_dataset(tmp_path / "pictures", 8, 4)
    validated = [f"{stage}.validate_every=1", f"{stage}.validation_size=2", f"{stage}.num_epochs=2"]
    config = load_config(make_config_file(tmp_path, family_vlm(family), images), [MAX_SIDE, *validated])
    extract(config)
    with closing(open_cache(config.cache.dir)) as cache:
        with_modules(config, tmp_path, cache.hidden_size)
    compare(config, stage)


@pytest.fixture
def validated(config, tmp_path):
    config = with_modules(copy.deepcopy(config), tmp_path, 32)
    config.output_dir = str(tmp_path)
    for settings in (config.stage1, config.stage2):
        settings.validate_every, settings.validation_size = 1, 2
    return config


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_workers_and_pairs_and_other_number_formats(validated, tmp_path, dtype):
    validated.stage1.position = "pair"
    if dtype != "fp32":
        validated.cache.dtype, validated.cache.dir = dtype, str(tmp_path / "other")
        with_modules(validated, tmp_path, 32)
        extract(validated)
    compare(validated, "stage1", num_workers=2)


def test_training_sees_other_pixels_in_each_epoch_and_validation_the_images_as_they_are(validated):
    prompt = load_prompt(validated.vlm.path)
    plain, changed = (open_stage("stage2", without_cache(validated, augment=kind), "cpu") for kind in ("none", "crop"))
    encoder, per_epoch = plain.load_encoder(), plain.schedule.steps_per_epoch

    def features(steps, numbers):
        found = {}
        for step in (steps[number] for number in numbers):
            for batch, keys in zip(batches_of(step, encoder), step.keys, strict=True):
                found |= {key: batch.features[i][batch.feature_mask[i]] for i, key in enumerate(keys) if key}
        return found

    unchanged = features(Steps(plain, prompt), range(per_epoch))
    one, two = (features(Steps(changed, prompt), range(e * per_epoch, (e + 1) * per_epoch)) for e in (0, 1))
    assert unchanged.keys() == one.keys() == two.keys()
    for key, tensor in unchanged.items():
        assert one[key].shape == two[key].shape == tensor.shape  # so that budgets and steps are the same
        assert not torch.allclose(one[key], tensor, atol=1e-2)
        assert not torch.allclose(one[key], two[key], atol=1e-2)
    of_ranks = [features(Steps(changed, prompt, rank, 2), range(per_epoch)) for rank in (0, 1)]
    assert not of_ranks[0].keys() & of_ranks[1].keys()
    for key, tensor in (of_ranks[0] | of_ranks[1]).items():
        torch.testing.assert_close(tensor, one[key], atol=1e-5, rtol=1e-5)
    held_out = [features(HeldOutSteps(stage, prompt), [0]) for stage in (plain, changed)]
    assert held_out[0].keys() == held_out[1].keys()
    assert all(torch.equal(held_out[1][key], tensor) for key, tensor in held_out[0].items())


def test_features_that_are_not_there_yet_cannot_be_used_by_mistake(validated):
    stage = open_stage("stage2", without_cache(validated), "cpu")
    step = Steps(stage, load_prompt(validated.vlm.path))[0]
    with pytest.raises(NotImplementedError, match="meta"):
        step.batches[0].to("cpu", torch.float32)
    with pytest.raises(ValueError, match="the batch has features"):
        step.batches[0].with_features([Features(torch.zeros(1, 32))])


def test_features_that_are_not_finite_end_the_run_and_name_the_sample(validated, monkeypatch):
    stage = open_stage("stage2", without_cache(validated), "cpu")
    step, encoder = Steps(stage, load_prompt(validated.vlm.path))[0], stage.load_encoder()
    with torch.no_grad():
        next(encoder.vision.model.parameters()).fill_(float("nan"))
    key = step.keys[0][0]
    with pytest.raises(DataError, match=f"sample {key}: the features are not finite in fp32"):
        list(batches_of(step, encoder))


def test_the_identity_names_the_dataset_and_what_the_order_depends_on(validated):
    live = open_stage("stage1", without_cache(validated, augment="flip"), "cpu")
    cached = open_stage("stage1", validated, "cpu")
    one, other = live.identity(), cached.identity()
    added = {"dataset": cached.record.dataset, "cache.num_shards": 4, "dataset.augment": "flip"}
    assert one == other | {"cache": None} | added
    assert live.record == cached.record
