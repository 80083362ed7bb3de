"""Both layouts of a dataset: what is read, and what is refused in which words."""

import json
import os
import pickle
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from masp.config import DatasetConfig, load_aspects
from masp.data.datasets import SPLITS, list_dataset, read_dataset
from masp.data.findings import NO_ANNOTATIONS
from masp.data.sample import Samples, split_names
from masp.errors import DataError, InputError, MaspError
from masp.taxonomy import CATEGORY_SETS

ANNOTATION = {"brightness": 0.6, "colorfulness": 0.0, "scene": "beach", "object": ["Dog"], "emotion": "anger"}


def write(path: Path, content: object = "image") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read(root: Path, name: str = "emoset", categories: list[str] | None = None):
    return read_dataset(DatasetConfig(name=name, root=str(root), categories=categories), load_aspects())


def texts(dataset) -> list[str]:
    return [str(finding) for finding in dataset.findings]


def refused(root: Path, name: str = "emoset", kind: type[MaspError] = InputError, **options) -> str:
    with pytest.raises(kind) as error:
        read(root, name, **options)
    message = str(error.value)
    assert "\n" not in message
    return message.replace(str(root), "ROOT")


def folders(root: Path, *images: str) -> Path:
    for image in images:
        write(root / image)
    return root


def index(root: Path, **splits: list) -> Path:
    for split, rows in splits.items():
        write(root / f"{split}.json", rows)
    return root


# Folders


def test_image_folders(tmp_path):
    folders(tmp_path, "train/anger/b.JPG", "train/anger/a.png", "train/Awe /c.webp", "test/anger/d.jpeg")
    dataset = read(tmp_path)
    assert [(s.key, s.split, s.category) for s in dataset.samples] == [
        ("test/anger/d%2Ejpeg", "test", "anger"),
        ("train/Awe%20/c%2Ewebp", "train", "awe"),
        ("train/anger/a%2Epng", "train", "anger"),
        ("train/anger/b%2EJPG", "train", "anger"),
    ]
    assert all(Path(s.image).is_file() and s.answers == {} for s in dataset.samples)
    assert dataset.categories == CATEGORY_SETS["emoset"]
    assert (dataset.name, dataset.root, dataset.ignored) == ("emoset", tmp_path, ())
    assert texts(dataset) == [
        NO_ANNOTATIONS,
        "no image has 6 of the categories: amusement, contentment, disgust",
        "test has no image of the category that train has: awe",
    ]


def test_annotations_of_image_folders(tmp_path):
    folders(tmp_path, "train/Anger/a.b.jpg", "val/Anger/c.jpg", "val/Anger/d.jpg")
    write(tmp_path / "annotation/anger/a.b.json", ANNOTATION)
    write(tmp_path / "annotation/anger/c.json", {})
    dataset = read(tmp_path)
    assert [s.answers for s in dataset.samples] == [
        {"brightness": "high", "colorfulness": "very low", "scene": "beach", "object": "dog"},
        {},
        {},
    ]
    assert f"1 of 3 images have no annotation: {tmp_path / 'val/Anger/d.jpg'}" in texts(dataset)


def test_own_categories(tmp_path):
    folders(tmp_path, "train/very_Happy/a.png", "train/bored/a.png", "test/bored/a.png", "test/calm/a.png")
    assert read(tmp_path, "folder").categories == ("bored", "calm", "very happy")
    assert read(tmp_path, "folder", ["Very Happy", "calm", "bored", "alert"]).categories == (
        "very happy",
        "calm",
        "bored",
        "alert",
    )


def test_what_is_ignored_is_named_but_not_litter(tmp_path):
    folders(tmp_path, "train/anger/a.png", "train/anger/notes.txt", "train/anger/noextension", "train/readme.md")
    folders(tmp_path, "train/anger/deeper/b.png", "train/anger/.DS_Store", "train/anger/._a.png", "train/.git/config")
    folders(tmp_path, "train/anger/Thumbs.db", "train/__MACOSX/a.png", "train/anger/desktop.ini", "train/anger/.a.jpg")
    dataset = read(tmp_path)
    assert [s.key for s in dataset.samples] == ["train/anger/a%2Epng", "train/anger/deeper/b%2Epng"]
    assert dataset.ignored == (
        "train/anger/.a.jpg",
        "train/anger/noextension",
        "train/anger/notes.txt",
        "train/readme.md",
    )


def test_names_of_any_kind(tmp_path):
    names = [
        "a.jpg",
        "A.jpg",
        "a%2Ejpg.jpg",
        "é.jpg",
        "e\u0301.jpg",
        "sp ace.jpg",
        "new\nline.jpg",
        "~.jpg",
        "-.jpg",
        "한국.jpg",
    ]
    if sys.platform == "linux":
        names.append(os.fsdecode(b"\xff\xfe.jpg"))
    folders(tmp_path, *(f"train/anger/{name}" for name in names))
    dataset = read(tmp_path)
    assert len({s.key for s in dataset.samples}) == len(names)
    assert [s.key for s in dataset.samples] == sorted(s.key for s in dataset.samples)
    assert {Path(s.image).name for s in dataset.samples} == set(names)


def test_links_are_followed(tmp_path):
    folders(tmp_path / "store", "a.png", "b.png")
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "data/train/joy").symlink_to(tmp_path / "store")
    assert len(read(tmp_path / "data", "emotion6").samples) == 2


def test_refused_image_folders(tmp_path):
    folders(tmp_path, "train/anger/a.png")
    (tmp_path / "train/awe").mkdir()
    assert refused(tmp_path) == (
        "ROOT/train/awe: this category directory holds no image; add images (.jpg, .png, .webp, …) or remove it"
    )
    write(tmp_path / "train/awe/notes.txt")
    assert "holds no image (1 other things)" in refused(tmp_path)
    write(tmp_path / "train/awe/a.png")
    write(tmp_path / "train/boredom/a.png")
    assert refused(tmp_path).startswith(
        "ROOT/train/boredom: 'boredom' is not a category of this dataset; valid are amusement, anger, awe, contentment"
    )
    write(tmp_path / "train/Anger/a.png")
    assert refused(tmp_path, "folder") == "ROOT/train/anger: means the category 'anger', and so does ROOT/train/Anger"


def test_a_split_without_categories(tmp_path):
    folders(tmp_path, "train/anger/a.png", "test/a.png")
    assert refused(tmp_path) == "ROOT/test: holds no category directory such as amusement/"


def test_an_annotation_shared_by_two_images(tmp_path):
    folders(tmp_path, "train/anger/1.png", "test/anger/1.png")
    assert len(read(tmp_path).samples) == 2
    write(tmp_path / "annotation/anger/1.json", ANNOTATION)
    assert refused(tmp_path) == (
        "ROOT/annotation/anger/1.json: would annotate both ROOT/train/anger/1.png and ROOT/test/anger/1.png; "
        "give images different names"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "is not valid JSON"),
        ({"brightness": 1.7}, "brightness = 1.7: must be a number from 0 to 1, or be left out"),
        ({"object": "dog"}, "object = 'dog': must be a list of strings, or be left out"),
        ([], "must hold one JSON object"),
    ],
)
def test_a_damaged_annotation(tmp_path, content, expected):
    folders(tmp_path, *(f"train/anger/{i}.png" for i in range(600)))
    write(tmp_path / "annotation/anger/77.json", content)
    message = refused(tmp_path, kind=DataError)
    assert message.startswith("ROOT/annotation/anger/77.json: ")
    assert expected in message


# Roots


def test_roots_that_are_no_dataset(tmp_path):
    assert refused(tmp_path / "gone").endswith("no such directory")
    assert ": a dataset of files has only one kind of them, which may be .tar" in refused(write(tmp_path / "file"))
    (tmp_path / "empty").mkdir()
    assert "is empty; a dataset has image folders such as train/<emotion>/" in refused(tmp_path / "empty")
    folders(tmp_path / "flat", *(f"{name}.png" for name in "abcdef"))
    assert "holds a.png, b.png, c.png, d.png, e.png, …; a dataset has image folders" in refused(tmp_path / "flat")
    folders(index(tmp_path / "both", train=[["awe", "a.png", ""]]), "test/awe/a.png")
    assert "several formats, emoset (train.json), folders (images in directories); dataset.format" in refused(
        tmp_path / "both"
    )


@pytest.mark.parametrize("split", SPLITS)
def test_one_split_is_enough(tmp_path, split):
    assert read(folders(tmp_path / "a", f"{split}/anger/a.png")).samples[0].split == split
    assert read(index(tmp_path / "b", **{split: [["anger", "a.png", ""]]})).samples[0].split == split


# Index files


def test_index_files(tmp_path):
    index(
        tmp_path,
        train=[["amusement", "image/amusement/b.jpg", "annotation/amusement/b.json"]],
        val=[["awe", "awe_1", "./image//awe/a.jpg", "annotation/awe/a.json"], ["Fear ", "image/fear/c.jpg", ""]],
    )
    write(tmp_path / "annotation/amusement/b.json", ANNOTATION)
    write(tmp_path / "annotation/awe/a.json", {"human_action": "boxing "})
    dataset = read(tmp_path)
    assert [(s.key, s.category, s.answers) for s in dataset.samples] == [
        (
            "train/image/amusement/b%2Ejpg",
            "amusement",
            {"brightness": "high", "colorfulness": "very low", "scene": "beach", "object": "dog"},
        ),
        ("val/image/awe/a%2Ejpg", "awe", {"human_action": "boxing"}),
        ("val/image/fear/c%2Ejpg", "fear", {}),
    ]
    # Whether an image exists is extraction's question.
    assert dataset.samples[1].image == str(tmp_path / "image/awe/a.jpg")
    assert f"1 of 3 images have no annotation: {tmp_path / 'image/fear/c.jpg'}" in texts(dataset)
    assert "3 of 3 listed images do not exist: image/amusement/b.jpg, image/awe/a.jpg, image/fear/c.jpg" in texts(
        dataset
    )


def test_no_annotation_at_all_and_some_missing(tmp_path):
    rows = [["awe", f"{i}.jpg", f"annotation/{i}.json"] for i in range(4)]
    index(tmp_path, test=rows)
    assert NO_ANNOTATIONS in texts(read(tmp_path))
    write(tmp_path / "annotation/1.json", ANNOTATION)
    assert refused(tmp_path, kind=DataError) == (
        "ROOT/annotation/0.json: this annotation, listed in ROOT/test.json row 1, is missing (and 2 more); "
        "restore what is missing or take the rows out"
    )


def test_an_image_in_two_splits_is_reported(tmp_path):
    index(tmp_path, train=[["awe", "a.jpg", ""], ["awe", "b.jpg", ""]], test=[["awe", "a.jpg", ""]])
    dataset = read(tmp_path)
    assert len(dataset.samples) == 3
    shared = next(finding for finding in dataset.findings if finding.kind == "duplicates")
    assert shared.serious and shared.text == (
        f"{tmp_path / 'test.json'} row 1 lists what {tmp_path / 'train.json'} row 1 lists too: "
        "an image in two splits is evaluated after it was trained on"
    )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([["awe", "a.jpg"]], "ROOT/train.json row 1: ['awe', 'a.jpg']: must be"),
        ([["awe", "a.jpg", "", "", ""]], "must be"),
        ([["awe", "a.jpg", ""], ["awe", 3, ""]], "ROOT/train.json row 2"),
        ([{"emotion": "awe"}], "row 1"),
        ([["bored", "a.jpg", ""]], "row 1: 'bored' is not a category of this dataset; valid are amusement, anger"),
        ([["", "a.jpg", ""]], "'' is not a category"),
        ([["awe", "../a.jpg", ""]], "'../a.jpg': must be the path of a file, relative to the dataset's directory"),
        ([["awe", "x/../../a.jpg", ""]], "must be the path of a file"),
        ([["awe", "/etc/passwd", ""]], "'/etc/passwd': must be the path of a file"),
        ([["awe", "a.jpg", "../../secret.json"]], "'../../secret.json': must be the path of a file"),
        ([["awe", " ", ""]], "must be the path of a file"),
        ([["awe", "a\0.jpg", ""]], "must be the path of a file"),
        ([["awe", "\ud800.jpg", ""]], "row 1: '\\ud800.jpg' holds characters that no file name can hold"),
        ([["awe", "x" * 3000, ""]], "row 1: "),
        ([["awe", "a.jpg", ""], ["fear", "./a.jpg", ""]], "row 2: 'a.jpg' is listed again, first in row 1"),
        ([], "must hold a list of rows"),
        ({}, "must hold a list of rows"),
        ("[[", "ROOT/train.json: is not valid JSON"),
    ],
)
def test_refused_rows(tmp_path, rows, expected):
    assert expected in refused(index(tmp_path, train=rows))


@pytest.mark.parametrize(
    "info",
    [
        {"emotion": {"label2idx": {"calm": 1, "Awe": 0}, "idx2label": {"0": "Awe", "1": "calm"}}, "scene": {}},
        {"emotion": {"calm": 1, "Awe": 0}},
        {"label2idx": {"calm": 1, "Awe": 0}, "idx2label": {"0": "Awe", "1": "calm"}},
        {"calm": 1, "Awe": 0},
    ],
)
def test_info_in_every_form(tmp_path, info):
    index(tmp_path, test=[["calm", "a.jpg", ""]])
    write(tmp_path / "info.json", info)
    assert read(tmp_path, "folder").categories == ("awe", "calm")


def test_categories_of_rows_without_info(tmp_path):
    index(tmp_path, train=[["calm", "a.jpg", ""], ["Awe", "b.jpg", ""]], test=[["bored", "a.jpg", ""]])
    assert read(tmp_path, "folder").categories == ("awe", "bored", "calm")


@pytest.mark.parametrize(
    "info", ["{", [], {}, {"a": "b"}, {"label2idx": {"a": True}}, {"a": 0, "A": 1}, {"emotion": 3}]
)
def test_refused_info(tmp_path, info):
    index(tmp_path, test=[["calm", "a.jpg", ""]])
    write(tmp_path / "info.json", info)
    assert refused(tmp_path, "folder").startswith("ROOT/info.json: ")


def test_emoset_as_found_in_the_wild(tmp_path):
    """The first rows of a published index file, with the published order of emotions in info.json."""
    rows = [
        ["amusement", "image/amusement/amusement_03317.jpg", "annotation/amusement/amusement_03317.json"],
        ["awe", "image/awe/awe_08973.jpg", "annotation/awe/awe_08973.json"],
    ]
    emotions = ["amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness"]
    index(tmp_path, val=rows)
    write(tmp_path / "info.json", {"emotion": {"label2idx": {name: i for i, name in enumerate(emotions)}}})
    assert len(read(tmp_path).samples) == 2
    assert read(tmp_path).categories == CATEGORY_SETS["emoset"]
    assert read(tmp_path, "folder").categories == tuple(emotions)


def test_the_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    folders(tmp_path, *(f"train/{name}/{i}.png" for name in ("fear", "anger") for i in (2, 1, 10)))
    first = read(tmp_path)
    original = os.scandir

    class Reversed:
        def __init__(self, path):
            self.items = list(original(path))[::-1]

        def __enter__(self):
            return iter(self.items)

        def __exit__(self, *_):
            self.items = []

    monkeypatch.setattr(os, "scandir", Reversed)
    assert read(tmp_path) == first


def test_annotations_of_some_images_are_read_alone(tmp_path):
    folders(tmp_path, *(f"train/awe/{i}.jpg" for i in range(3)))
    for i in range(3):
        write(tmp_path / f"annotation/awe/{i}.json", {"scene": f"place {i}"} if i else "[")
    listed = list_dataset(DatasetConfig(name="emoset", root=str(tmp_path)), load_aspects())
    listed.read(listed.samples[1:2])
    assert listed.samples[1].answers == {"scene": "place 1"} and listed.samples.keys[1] == "train/awe/1%2Ejpg"
    with pytest.raises(AssertionError, match="has not been read"):
        assert listed.samples[2].answers
    with pytest.raises(DataError, match=r"0\.json"):
        listed.whole()
    write(tmp_path / "annotation/awe/0.json", {})
    write(tmp_path / "annotation/awe/1.json", {"scene": "changed"})
    whole = listed.whole()
    assert [sample.answers for sample in whole.samples] == [{}, {"scene": "place 1"}, {"scene": "place 2"}]
    assert whole.holdings.aspects == {"train": {"scene": 2}}


def test_some_samples_are_pickled_alone(tmp_path):
    folders(tmp_path, *(f"train/awe/{i}.jpg" for i in range(200)), "test/joy/x.jpg")
    samples = read(tmp_path, "folder").samples
    some = samples[np.array([200, 0])]
    found = pickle.loads(pickle.dumps(some))
    assert found == some and [sample.category for sample in found] == ["awe", "joy"]
    assert len(pickle.dumps(some)) < len(pickle.dumps(samples)) / 3
    assert Samples.of(list(some)) == some and len(Samples.of([])) == 0


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["a.jpg", "b.c.jpg", "ü.jpg"],
        ["a.jpg", "b.JPG"],
        ["a.jpg", "b"],
        ["a.jpg", ".jpg"],
        [".a.jpg", "b.jpg"],
        ["a\n.jpg", "b.jpg"],
        ["a.jpg\nb.jpg", "c.jpg"],
        ["a.jpg", "b.jpgx"],
        ["...", "a"],
        ["a.", "b."],
    ],
)
def test_names_are_divided_together_as_each_alone(names):
    stems, suffixes = split_names(names)
    assert list(zip(stems, suffixes, strict=True)) == [os.path.splitext(name) for name in names]


def test_annotations_of_one_directory_are_found_together_as_each_alone(tmp_path):
    notes = {stem: f"annotation/awe/{stem}.json" for stem in "abcd"}
    folders(tmp_path, "train/awe/a.jpg", "train/awe/b.jpg", "test/awe/c.jpg", "test/awe/x.jpg")
    for stem, path in notes.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(json.dumps({"scene": stem}))
    (tmp_path / "annotation/awe/readme.txt").write_text("no annotation")
    found = read(tmp_path, "folder")
    assert [s.answers.get("scene") for s in found.samples] == ["c", None, "a", "b"]
    assert any("1 annotations belong to no image: annotation/awe/d.json" in text for text in texts(found))
    assert any("annotation/awe/readme.txt" in text for text in texts(found))
    folders(tmp_path, "val/awe/a.jpg")
    with pytest.raises(InputError, match=r"annotation/awe/a\.json: would annotate both"):
        read(tmp_path, "folder")


def test_what_may_be_meant_is_said(tmp_path):
    folders(tmp_path / "a", *(f"{kind}/{name}/{n}.png" for kind in ("images", "masks") for n, name in enumerate("xy")))
    split = {"train": 1.0}
    found = read_dataset(DatasetConfig(root=str(tmp_path / "a"), split=split), load_aspects())
    assert any("hold the same directories, x, y" in text for text in texts(found))
    folders(tmp_path / "b", "joy/1.png", "fear/2.png", "annotations/3.png")
    found = read_dataset(DatasetConfig(root=str(tmp_path / "b"), split=split), load_aspects())
    assert found.categories == ("fear", "joy") and any("did you mean annotation/?" in text for text in texts(found))
    folders(tmp_path / "c", "joy/s1/1.png", "joy/s2/2.png")
    found = read_dataset(DatasetConfig(name="emotion6", root=str(tmp_path / "c"), split=split), load_aspects())
    assert {sample.category for sample in found.samples} == {"joy"}
    folders(tmp_path / "d", "images/joy/1.png", "images/fear/2.png", "stray.png", "images/stray.png")
    found = read_dataset(DatasetConfig(root=str(tmp_path / "d"), split=split), load_aspects())
    assert found.ignored == ("images/stray.png", "stray.png")
    (tmp_path / "e").mkdir()
    (tmp_path / "e/images").mkdir()
    for name in ("joy", "fear"):
        (tmp_path / "e/images" / name).symlink_to(tmp_path / "d/images" / name)
    (tmp_path / "e/images/joy").parent.joinpath("circle").symlink_to(tmp_path / "e")
    found = read_dataset(
        DatasetConfig(
            root=str(tmp_path / "e"), split=split, label_names={"joy": "joy", "fear": "fear", "circle": None}
        ),
        load_aspects(),
    )
    assert len(found.samples) == 2


@pytest.mark.parametrize("split", ["train/", "training/", ""])
def test_a_directory_is_listed_twice_at_most(tmp_path, monkeypatch, split):
    num_images = 500
    for category in ("joy", "fear", "awe"):
        (tmp_path / split / category / "deep").mkdir(parents=True)
        for number in range(num_images):
            (tmp_path / split / category / "deep" / f"{number}.jpg").touch()
    scan, listed, count = os.scandir, Counter(), Counter()

    class Counted:
        def __init__(self, path):
            self._path, self._found = path, scan(path)
            listed[os.path.basename(path)] += 1

        def __iter__(self):
            for item in self._found:
                count[os.path.basename(self._path)] += 1
                yield item

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._found.close()

    monkeypatch.setattr(os, "scandir", Counted)
    listing = list_dataset(DatasetConfig(root=str(tmp_path), split=None if split else {"train": 1.0}), {})
    assert len(listing.samples) == 3 * num_images and listed["deep"] >= 3
    # looking for the first image of a directory reads only as far as that
    assert count["deep"] <= 2 * 3 * num_images + 3 * 4


def test_a_link_that_leads_to_itself_leads_nowhere(tmp_path):
    (tmp_path / "train/joy").mkdir(parents=True)
    (tmp_path / "train/joy/a.jpg").touch()
    for place in (".", "train", "train/joy"):
        (tmp_path / place / "circle").symlink_to("circle")
    dataset = read_dataset(DatasetConfig(root=str(tmp_path)), load_aspects())
    assert [sample.key for sample in dataset.samples] == ["train/joy/a%2Ejpg"]
    assert set(dataset.ignored) == {"train/circle", "train/joy/circle"}
