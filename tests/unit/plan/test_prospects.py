"""Which stages a dataset allows, as doctor, plan and submission say it."""

import dataclasses

import pytest

from masp.data.findings import WITHOUT_STAGE_1, key_findings
from masp.data.sample import Dataset, Sample
from masp.plan.prospects import obstacles, prospect_findings, prospects
from masp.training.schedule import num_steps_of, too_little


def dataset(config, num_train: int = 100, answers=("scene", "object", "brightness"), **misspelled: int) -> Dataset:
    samples = [
        Sample(f"train/awe/{i}", "train", config.output_dir, "awe", dict.fromkeys(answers, "x"))
        for i in range(num_train)
    ]
    found = key_findings({(key, key.lower()): count for key, count in misspelled.items()})
    return Dataset("folder", config.output_dir, ("awe",), tuple(samples), (), tuple(found))


@pytest.fixture
def run(config, tmp_path):
    aspects = ["scene", "object", "brightness"]
    stages = {
        name: dataclasses.replace(getattr(config, name), learning_rate=0.01, num_epochs=2, global_batch_size=8)
        for name in ("stage1", "stage2")
    }
    checkpoint = dataclasses.replace(config.checkpoint, aspect=None)
    return dataclasses.replace(config, output_dir=str(tmp_path), aspects=aspects, checkpoint=checkpoint, **stages)


def test_all_is_well(run):
    one, two = prospects(run, dataset(run))
    assert (one.summary, one.hint, two.summary, two.hint) == ("100 images, 26 steps", "", "100 images, 26 steps", "")
    assert prospect_findings(run, dataset(run)) == [] and obstacles(run, dataset(run)) == {}


def test_pairs_are_steps_of_their_own(run):
    run.stage1.position = "pair"
    one, two = prospects(run, dataset(run))
    assert (one.num_steps, two.num_steps) == (2 * 38, 26)  # 300 pairs, and 100 images, in eights


def test_a_subset_is_what_both_stages_see(run):
    run.dataset = dataclasses.replace(run.dataset, fraction=0.25)
    one, two = prospects(run, dataset(run))
    assert (one.summary, two.summary) == ("25 images, 8 steps", "25 images, 8 steps")
    run.dataset = dataclasses.replace(run.dataset, fraction=None, shots=3)
    samples = [Sample(f"train/joy/{i}", "train", "x", "joy", {}) for i in range(50)]
    mixed = dataset(run)
    mixed = dataclasses.replace(mixed, categories=("awe", "joy"), samples=(*mixed.samples, *samples))
    one, two = prospects(run, mixed)
    assert (one.num_images, two.num_images) == (3, 6)


def test_without_annotations_both_stages_say_the_same_way_out(run):
    found = obstacles(run, dataset(run, answers=()))
    assert list(found) == ["stage1", "stage2"] and all(WITHOUT_STAGE_1 in text for text in found.values())
    run.checkpoint.aspect = "none"
    one, two = prospects(run, dataset(run, answers=()))
    assert one.summary == "not needed: checkpoint.aspect = none" and two.summary == "100 images, 26 steps"


def test_what_the_vlm_is_to_annotate_needs_no_annotation(run):
    bare = dataset(run, answers=())
    run.annotate.aspects = ["scene", "object", "brightness"]
    assert obstacles(run, bare) == {} and prospects(run, bare)[0].summary == "100 images, 26 steps"
    run.annotate.aspects = ["scene", "object"]
    assert obstacles(run, bare)["stage1"].startswith("no training image is annotated with brightness; give aspects=")
    run.cache.dir = None  # from which the VLM would annotate
    assert list(obstacles(run, bare)) == ["stage1", "stage2"]


def test_a_misspelled_aspect_is_named_with_the_setting_that_leaves_it_out(run):
    data = dataset(run, answers=("object", "brightness"), Scene=7)
    text = obstacles(run, data)["stage1"]
    assert text.startswith("no training image is annotated with scene (7 annotations have the key 'Scene'")
    assert text.endswith("give aspects=[object,brightness]")
    (found, *_) = prospect_findings(run, data)
    assert found.serious and found.kind == "training"


def test_modules_of_an_earlier_run_are_enough_for_stage_2(run, tmp_path):
    (tmp_path / "stage1").mkdir()
    (tmp_path / "stage1/aspect.safetensors").write_bytes(b"")
    assert list(obstacles(run, dataset(run, answers=()))) == ["stage1"]


def test_a_dataset_without_training_images(run):
    assert obstacles(run, dataset(run, 0))["stage2"] == "the dataset has no training image"


def test_the_defaults_on_a_small_set_are_said_to_change_nothing(run):
    run.stage2 = dataclasses.replace(run.stage2, learning_rate=5e-6, num_epochs=1)
    hint = prospects(run, dataset(run, 144))[1].hint
    assert hint.startswith(
        "stage2: 18 steps at stage2.learning_rate = 5e-06 move a value by at most about 5e-05 in all"
    )
    assert "raise stage2.learning_rate or stage2.num_epochs, or lower stage2.global_batch_size, which is 8" in hint


def test_the_published_run_is_not_warned_about(run):
    settings = dataclasses.replace(run.stage2, learning_rate=5e-6, num_epochs=1)
    assert too_little("stage2", num_steps_of(94_500, settings), settings) is None


def test_distributions_that_no_training_image_has(run):
    run.stage2.supervision = "distribution"
    without = dataset(run)
    one, two = prospects(run, without)
    assert one.obstacle == "" and "no training image has a distribution" in two.obstacle
    assert "stage2.supervision=label" in two.summary and list(obstacles(run, without)) == ["stage2"]
    without.samples[3].distribution = (1.0,)
    assert obstacles(run, without) == {}
