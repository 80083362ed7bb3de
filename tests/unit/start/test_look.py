"""What a dataset is, and what it allows, in plain words."""

import json

import pytest
from PIL import Image

from masp.config import load_config
from masp.config.aspects import load_aspects
from masp.config.schema import DatasetConfig
from masp.data.datasets import dataset_of
from masp.errors import InputError
from masp.start.look import look_at, outlook
from masp.taxonomy import CATEGORY_SETS

ASPECTS = load_aspects()


def make(root, layout: dict[str, int], annotated: bool = False):
    """Directories with so many images each."""
    for place, count in layout.items():
        (root / place).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (i % 256, len(place), i // 256)).save(root / place / f"{place.count('/')}{i}.png")
            if annotated:
                notes = root / "annotation" / place.rpartition("/")[2]
                notes.mkdir(parents=True, exist_ok=True)
                (notes / f"{place.count('/')}{i}.json").write_text(json.dumps({"scene": "sea", "brightness": 0.5}))
    return root


def look(root, **more):
    return look_at(DatasetConfig(root=str(root), **more), ASPECTS, set(more))


@pytest.mark.parametrize(
    ("layout", "split"),
    [
        ({"joy": 20, "fear": 20}, {"train": 0.55, "val": 0.15, "test": 0.3}),
        ({"train/joy": 20, "train/fear": 20, "test/joy": 5, "test/fear": 5}, {"train": 0.85, "val": 0.15}),
        ({"train/joy": 20, "train/fear": 20, "val/joy": 5, "val/fear": 5}, {"train": 0.7, "test": 0.3}),
        ({"train/joy": 20, "train/fear": 20}, {"train": 0.55, "val": 0.15, "test": 0.3}),
        ({f"{split}/{name}": 5 for split in ("train", "val", "test") for name in ("joy", "fear")}, None),
    ],
)
def test_splits_that_are_missing_are_taken_out_of_train(tmp_path, layout, split):
    found = look(make(tmp_path / "data", layout))
    assert found.settings.split == split and found.settings.name == "folder"
    assert all(found.dataset.holdings.num_images(name) for name in ("train", "val", "test"))
    assert len(found.dataset.samples) == sum(layout.values())


def test_what_the_user_says_stays(tmp_path):
    root = make(tmp_path / "data", {"joy": 20, "fear": 20})
    found = look(root, split={"train": 0.5, "test": 0.5}, name="emotion6")
    assert found.settings.split == {"train": 0.5, "test": 0.5} and found.settings.name == "emotion6"
    assert found.num_train == 20


def test_published_layouts_are_recognized(tmp_path):
    from masp.demo.world.write_dataset import write_demo_data

    write_demo_data(tmp_path / "world", 12, 8, seed=1)
    found = look(tmp_path / "world")
    assert found.settings.name == "emoset" and found.annotated["brightness"]


def test_emotion6_as_it_is_shipped_is_recognized_and_its_namesake_is_not(tmp_path):
    names = CATEGORY_SETS["emotion6"]
    make(tmp_path / "six", {f"images/{name}": 10 for name in names})
    lines = [f"{name}/1{i}.png\t4.2\t5.1\t1.0" + "\t0.0" * 6 for name in names for i in range(10)]
    (tmp_path / "six/ground_truth.txt").write_text("\n".join(lines) + "\n")
    found = look(tmp_path / "six")
    assert found.settings.name == "emotion6" and found.settings.split == {"train": 0.55, "val": 0.15, "test": 0.3}
    config = load_config(None, ["vlm.path=m", "cache.dir=c", f"dataset.root={tmp_path}"])
    assert "votes: images have a distribution" in "\n".join(outlook(config, found.dataset))
    (tmp_path / "six/ground_truth.txt").write_text("what I know for certain\n")
    assert look(tmp_path / "six").settings.name == "folder"


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ({"joy": 20}, "'joy'; at least two categories"),
        ({"joy": 1, "fear": 1}, "no category has more than 1 image, too few to train on some and test on others"),
        ({"test/joy": 5, "test/fear": 5}, "has no training images"),
    ],
)
def test_what_no_accuracy_could_come_of_is_refused(tmp_path, layout, words):
    with pytest.raises(InputError, match=words):
        look(make(tmp_path / "data", layout))


def test_a_division_without_any_test_image_is_refused(tmp_path):
    root = make(tmp_path / "data", {"joy": 3, "fear": 2})
    with pytest.raises(InputError, match="none of the 5 images is a test image"):
        look(root, split={"train": 0.95, "test": 0.05})


def lines_of(root, *settings: str) -> str:
    found = look(root)
    config = load_config(None, ["vlm.path=m", "cache.dir=c", f"dataset.root={root}", *settings])
    return "\n".join(outlook(config, found.dataset))


def test_the_outlook_without_annotations(tmp_path):
    text = lines_of(make(tmp_path / "data", {"joy": 40, "fear": 8}))
    assert "labels: 2 categories in " in text and "fewer than 10 training images of fear (" in text
    assert "val: 7 images, which the best state of training is chosen on" in text
    assert (
        "test: 15 images, which the accuracy is measured on: to about ±0.23 (95 % interval); four times as many images "
        "would halve that"
    ) in text
    assert "aspects: nobody annotated facial_expression, object" in text and "masp annotate" in text
    assert "aspects=[]" in text and "votes" not in text
    assert "the soft prompt is trained alone" in lines_of(tmp_path / "data", "aspects=[]")
    assert "checkpoint.aspect = a.pth" in lines_of(tmp_path / "data", "checkpoint.aspect=a.pth")


def test_the_outlook_with_annotations(tmp_path):
    text = lines_of(make(tmp_path / "data", {"joy": 20, "fear": 20}, annotated=True))
    assert "aspects: annotated by people, of 22 training images: scene 22, brightness 22" in text
    assert "nobody annotated facial_expression, object, human_action, colorfulness" in text
    assert "(aspects=[scene,brightness])" in text
    assert "nobody" not in lines_of(tmp_path / "data", "aspects=[scene]")


def test_the_outlook_of_a_dataset_that_was_not_divided(tmp_path):
    root = make(tmp_path / "data", {"train/joy": 20, "train/fear": 20})
    config = load_config(None, ["vlm.path=m", "cache.dir=c", f"dataset.root={root}"])
    text = "\n".join(outlook(config, dataset_of(config)))
    assert "val: none: up to 256 images are held out of train" in text
    assert "test: none: nothing can be measured; dataset.split={train: 0.7, test: 0.3}" in text
