"""What is said about a dataset: every way in which files, names and labels are often not what their owner believes."""

import hashlib
import json
import logging
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from masp.config import DatasetConfig, load_aspects
from masp.data.datasets import read_dataset
from masp.data.findings import (
    Contents,
    Finding,
    Holdings,
    Ignored,
    close_to,
    content_findings,
    coverage_findings,
    ignored_findings,
    key_findings,
    log_findings,
    look_alike,
    meant_aspect,
    meant_by,
)
from masp.errors import DataError
from tests.unit.data.test_datasets import ANNOTATION, folders, index, read, refused, texts, write

ASPECTS = tuple(load_aspects())
NFC, NFD = "café", unicodedata.normalize("NFD", "café")


def of_kind(dataset, kind: str) -> list[Finding]:
    return [finding for finding in dataset.findings if finding.kind == kind]


# What is ignored


def test_most_images_ignored_is_a_warning_with_the_number(tmp_path):
    folders(tmp_path, "train/awe/a.png", "train/fear/a.png", "test/awe/a.png", "test/fear/a.png")
    folders(tmp_path, *(f"train/{i}.png" for i in range(150)), *(f"test/fear/.{i}.png" for i in range(4)))
    folders(tmp_path, *(f"train/fear/{i}.image" for i in range(5)), "train/fear/.a.png")
    (ignored,) = of_kind(read(tmp_path), "ignored")
    assert ignored.serious and ignored.count == 160
    assert ignored.text == (
        "160 of 164 files are ignored, 4 are used (150 in a split but in none of its category directories, 5 whose "
        "extension is not that of an image, 5 hidden (the name starts with a dot); 4 of 6 in test, 156 of 158 in train)"
    )


def test_files_beside_images_are_no_cause_for_alarm(tmp_path):
    folders(
        tmp_path, "train/awe/0.jpg", "train/awe/0.txt", "train/awe/0.json", "train/awe/README.md", "train/awe/x.NPY"
    )
    (ignored,) = of_kind(read(tmp_path), "ignored")
    assert not ignored.serious and ignored.count == 4
    assert ignored.text == "4 files are not images by their extension, and ignored"


@pytest.mark.parametrize(
    "litter", [".DS_Store", "Thumbs.db", "__MACOSX/a.png", "@eaDir/a.png", "._a.png", ".git/a.png"]
)
def test_what_systems_leave_behind_is_not_mentioned(tmp_path, litter):
    folders(tmp_path, "train/awe/a.png", f"train/awe/{litter}", f"train/{litter}", litter)
    assert of_kind(read(tmp_path), "ignored") == of_kind(read(tmp_path), "names") == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [("validation", "val"), ("Valid", "val"), ("training", "train"), ("Test_", "test"), ("TESTING", "test")],
)
def test_a_split_under_another_name(tmp_path, name, meant):
    split = "train" if meant != "train" else "test"
    folders(tmp_path, f"{split}/awe/a.png", f"{name}/awe/b.png", f"{name}/awe/c.png")
    (found,) = of_kind(read(tmp_path), "names")
    assert (found.text, found.serious) == (f"{name}/ is ignored (2 files): did you mean {meant}/?", True)
    (tmp_path / split).rename(tmp_path / "awe")
    if name == "Test_":
        assert refused(tmp_path).endswith("; if it is a split, rename it to test/")
    else:  # without a split that is called as it should, other words for one count
        assert {s.split for s in read(tmp_path).samples} == {meant}


def test_annotations_under_another_name(tmp_path):
    folders(tmp_path, "train/awe/a.png")
    write(tmp_path / "annotations/awe/a.json", ANNOTATION)
    assert of_kind(read(tmp_path), "names")[0].text.endswith(
        "annotations/ is ignored (1 files): did you mean annotation/?"
    )


def test_images_that_no_index_lists_and_listed_ones_that_are_not_there(tmp_path):
    index(tmp_path, train=[["awe", f"image/{i}.jpg", ""] for i in range(3)])
    folders(tmp_path, "image/0.jpg", "image/x.jpg", "image/y.jpg", "image/notes.txt", "image/.z.jpg")
    found = texts(read(tmp_path))
    assert "2 of 5 files are ignored, 3 are used (2 that no index file lists): image/x.jpg, image/y.jpg" in found
    assert "2 of 3 listed images do not exist: image/1.jpg, image/2.jpg" in found


# Unicode


@pytest.mark.parametrize(("directory", "stem"), [(NFC, NFD), (NFD, NFC), (NFC, NFC)])
def test_annotations_are_found_in_any_unicode_form(tmp_path, directory, stem):
    folders(tmp_path, f"train/{NFC}/{NFC}.jpg", f"test/{NFD}/{NFD}.x.jpg")
    write(tmp_path / f"annotation/{directory}/{stem}.json", ANNOTATION)
    write(tmp_path / f"annotation/{directory}/{stem}.x.json", ANNOTATION)
    dataset = read(tmp_path, "folder")
    assert dataset.categories == (NFC,)
    assert all(sample.answers["scene"] == "beach" and Path(sample.image).is_file() for sample in dataset.samples)
    # Keys are the bytes of the names: those of existing caches stay valid.
    assert len({s.key for s in dataset.samples}) == 2 and "e%CC%81" in dataset.samples[0].key


def test_directories_that_differ_only_in_their_unicode_form_are_one_category(tmp_path):
    folders(tmp_path, f"train/{NFC}/a.jpg", f"train/{NFD}/a.jpg", f"train/{NFD}/b.jpg")
    dataset = read(tmp_path, "folder")
    assert dataset.categories == (NFC,) and len(dataset.samples) == len({s.key for s in dataset.samples}) == 3
    assert "train has the category 'café' in two directories" in of_kind(dataset, "names")[0].text
    assert of_kind(dataset, "names")[1].count == 1  # a.jpg is there twice
    write(tmp_path / f"annotation/{NFD}/a.json", ANNOTATION)
    assert "would annotate both" in refused(tmp_path, "folder")


def test_index_files_in_another_unicode_form_than_the_disk(tmp_path):
    index(tmp_path, train=[[NFD, f"{NFC}.jpg", f"{NFC}.json"]], test=[[NFC, f"{NFD}2.jpg", ""]])
    folders(tmp_path, f"{NFD}.jpg", f"{NFC}2.jpg")
    write(tmp_path / f"{NFD}.json", ANNOTATION)
    dataset = read(tmp_path, "folder")
    assert dataset.categories == (NFC,) and all(Path(s.image).is_file() for s in dataset.samples)
    assert dataset.samples[1].answers["scene"] == "beach"
    assert not of_kind(dataset, "missing") and not of_kind(dataset, "ignored")


def test_categories_of_the_configuration_are_compared_in_one_form(tmp_path):
    folders(tmp_path, f"train/{NFC}/a.jpg")
    assert read(tmp_path, "folder", [NFD]).categories == (NFC,)


def test_a_key_in_two_forms_is_refused(tmp_path):
    folders(tmp_path, "train/awe/a.jpg")
    write(tmp_path / "annotation/awe/a.json", json.dumps({NFC: 1, NFD: 2}))
    assert "twice, in two Unicode forms; leave one out" in refused(tmp_path, kind=DataError)


@pytest.mark.parametrize("other", ["ｊｏｙ", "jo\u200by", "joy\ufeff", "\u00adjoy"])
def test_categories_that_read_the_same(tmp_path, other):
    folders(tmp_path, "train/joy/a.jpg", f"test/{other}/a.jpg")
    assert any(f.serious and "read the same and are different" in f.text for f in read(tmp_path, "folder").findings)
    assert refused(tmp_path, "emotion6").endswith("; did you mean 'joy'?")


def test_names_that_only_share_letters_do_not_read_the_same():
    assert look_alike("कि", ["के", "का"]) == [] and look_alike("é", ["e"]) == []


@pytest.mark.parametrize(("name", "meant"), [("sad", "sadness"), ("joyful", "joy"), ("disgusted", "disgust")])
def test_a_wrong_category_names_the_one_that_is_probably_meant(tmp_path, name, meant):
    folders(tmp_path, f"train/{name}/a.jpg")
    assert refused(tmp_path, "emotion6").endswith(f"did you mean {meant!r}?") or name == "joyful"
    index(tmp_path / "index", train=[[name, "a.jpg", ""]])
    assert refused(tmp_path / "index", "emotion6").endswith(f"did you mean {meant!r}?") or name == "joyful"


# Annotations


@pytest.mark.parametrize(
    ("key", "aspect"),
    [
        ("Scene", "scene"),
        ("colourfulness", "colorfulness"),
        ("facial expression", "facial_expression"),
        ("facialExpression", "facial_expression"),
        ("human-action", "human_action"),
        ("objects", "object"),
        ("expression", "facial_expression"),
        ("ｓｃｅｎｅ", "scene"),
        ("Brightness ", "brightness"),
        ("brigthness", "brightness"),
        ("color", "colorfulness"),
        ("emotion", ""),
        ("image_id", ""),
        ("label", ""),
        ("", ""),
    ],
)
def test_keys_that_are_nearly_an_aspect(key, aspect):
    assert close_to(key, ASPECTS) == meant_aspect(key, ASPECTS) == aspect


def test_misspelled_keys_are_warned_of():
    (found,) = key_findings({("Colour", "colorfulness"): 3})
    assert found.serious and found.count == 3 and found.meant == "colorfulness"
    assert found.text == "3 annotations have the key 'Colour', which is ignored: did you mean colorfulness?"


@pytest.mark.parametrize(
    ("key", "aspect"),
    [
        ("Weather", "Weather-Type"),  # a part of it
        ("weather_type", "Weather-Type"),
        ("Age", "age"),
        ("ages", "age"),
        ("image", ""),  # similar to `age` by its letters, and what it says is known
        ("page", ""),
        ("image_id", ""),
        ("emotion", ""),  # a part of `emotional_tone`, and EmoSet's own key
        ("emotional tone", "emotional_tone"),
        ("emotionaltone", "emotional_tone"),
    ],
)
def test_keys_that_are_nearly_an_aspect_of_ones_own(key, aspect):
    assert meant_aspect(key, ("Weather-Type", "age", "emotional_tone")) == aspect


def test_answers_beyond_the_vocabulary_are_kept_and_said(tmp_path):
    folders(tmp_path, *(f"train/awe/{i}.jpg" for i in range(6)))
    weather = ["rain", "Fog ", "hail", "hail", "acid_rain", ""]
    sky = [["sun"], ["sun", "moon"], ["ufo", "sun"], [], ["kite", "ufo"], ["moon"]]
    for i in range(6):
        write(tmp_path / f"annotation/awe/{i}.json", {"weather": weather[i], "sky": sky[i], "mood": 0.5})
    (tmp_path / "aspects.yaml").write_text(
        "weather: {questions: [Q], vocabulary: [rain, fog]}\n"
        "sky: {kind: list, questions: [Q], vocabulary: [sun, moon]}\n"
        "mood: {kind: level, questions: [Q], bounds: [0, 1], words: [sad, glad]}\n"
    )
    dataset = read_dataset(DatasetConfig(root=str(tmp_path)), load_aspects(tmp_path / "aspects.yaml"))
    assert [dict(s.answers).get("weather") for s in dataset.samples][2:5] == ["hail", "hail", "acid rain"]
    found = [f for f in dataset.findings if "vocabulary" in f.text]
    text = "{} images are annotated with answers to {} that are not in its vocabulary (2 different); they are kept"
    assert [str(f) for f in found] == [
        f"{text.format(2, 'sky')}: 'ufo', 'kite'",
        f"{text.format(3, 'weather')}: 'hail', 'acid rain'",
    ]
    assert [(f.kind, f.count, f.serious) for f in found] == [("aspects", 2, False), ("aspects", 3, False)]


def test_misspelled_keys_are_counted_where_the_aspect_is_missing(tmp_path):
    folders(tmp_path, *(f"train/awe/{i}.jpg" for i in range(3)))
    for i, annotation in enumerate(
        [{"Scene": "sea"}, {"Scene": "sea", "scene": "sea"}, {"Scene": "lake", "scene": ""}]
    ):
        write(tmp_path / f"annotation/awe/{i}.json", annotation)
    dataset = read(tmp_path)
    text = "2 annotations have the key 'Scene', which is ignored: did you mean scene?"
    assert text in texts(dataset)
    assert meant_by("scene", dataset.findings) == f" ({text})" and meant_by("object", dataset.findings) == ""


def test_annotations_without_image(tmp_path):
    folders(tmp_path, "train/awe/a.jpg")
    for name in ("awe/a.json", "awe/b.json", "Joyful/c.json", "awe/d.xml", "awe/deep/e.json", "f.json"):
        write(tmp_path / "annotation" / name, ANNOTATION)
    found = texts(read(tmp_path))
    assert "2 annotations belong to no image: annotation/Joyful/c.json, annotation/awe/b.json" in found
    assert any(text.startswith("3 entries of annotation/ are not <emotion>/<name>.json") for text in found)


# Categories and aspects


def test_what_a_split_lacks():
    holdings = Holdings(
        {"train": {"awe": 3, "joy": 1}, "test": {"awe": 1, "fear": 2}},
        {"train": {"scene": 2}, "test": {"scene": 1, "object": 1}},
    )
    found = {str(f): f.serious for f in coverage_findings(holdings, ("awe", "fear", "joy", "anger"), ASPECTS)}
    assert found == {
        "no image has the category: anger": False,
        "train has no image of the category that test has: fear": True,
        "test has no image of the category that train has: joy": False,
        "no image is annotated with 4 aspects: facial_expression, human_action, brightness, colorfulness": False,
        "no training image is annotated with the aspect that other splits have: object": True,
    }


def test_a_whole_dataset_has_no_findings(tmp_path):
    folders(tmp_path, *(f"{split}/{c}/{split}.jpg" for split in ("train", "test") for c in ("joy", "fear")))
    everything = ANNOTATION | {"facial_expression": "happy", "human_action": "yoga", "scene": "beach"}
    for name in ("joy/train", "joy/test", "fear/train", "fear/test"):
        write(tmp_path / f"annotation/{name}.json", everything)
    dataset = read(tmp_path, "folder")
    assert dataset.findings == ()
    assert dataset.holdings.table()[:3] == [
        "category              train      test",
        "fear                      1         1",
        "joy                       1         1",
    ]


# Contents


def test_the_same_bytes_in_several_places():
    def at(digest, split, category, name):
        return digest, split, category, f"{split}/{category}/{name}"

    def found_in(contents):
        digests, splits, categories, keys = zip(*contents, strict=True)
        digests = np.stack([np.frombuffer(hashlib.sha256(digest.encode()).digest(), "u1") for digest in digests])
        names = sorted(set(splits))
        numbers = np.array([names.index(split) for split in splits], dtype="u1")
        codes = np.array([ord(category[0]) for category in categories])
        return content_findings(Contents(digests, numbers, codes, names, keys.__getitem__))

    contents = [
        at("1", "train", "awe", "a"),
        at("1", "test", "awe", "b"),
        at("2", "train", "awe", "c"),
        at("2", "train", "fear", "d"),
        at("3", "train", "awe", "e"),
        at("3", "train", "awe", "f"),
        at("3", "train", "awe", "g"),
        at("4", "test", "awe", "h"),
    ]
    found = found_in(contents)
    assert found == found_in(contents[::-1])
    assert found_in(contents[-1:]) == []
    assert [(f.kind, f.count, f.serious, f.examples) for f in found] == [
        ("duplicates", 1, True, ("test/awe/b = train/awe/a",)),
        ("labels", 1, True, ("train/awe/c = train/fear/d",)),
        ("duplicates", 2, False, ("train/awe/e = train/awe/f = train/awe/g",)),
    ]
    assert "1 in test and train" in found[0].text


def test_an_index_that_gives_an_image_two_categories(tmp_path):
    index(tmp_path, train=[["awe", "a.jpg", ""]], test=[["fear", "a.jpg", ""]])
    (found,) = of_kind(read(tmp_path), "labels")
    assert found.serious and "row 1 says 'fear' where" in found.text


def test_warnings_come_last_and_one_to_a_line(caplog):
    findings = ignored_findings([Ignored("a\nb.txt", "other file"), Ignored("c", "no split", 9)], {"train": 1})
    with caplog.at_level(logging.INFO):
        log_findings(reversed(findings), logging.getLogger("masp"))
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        some = [Finding("annotations", "a", 1), Finding("labels", "b", 1), Finding("annotations", "c", 1, serious=True)]
        log_findings(some, logging.getLogger("masp"), again=True)
    assert [record.getMessage() for record in caplog.records] == ["dataset: b", "dataset: c"]
