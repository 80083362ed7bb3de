"""Where the labels of a target come from, and what is refused in one line."""

import json

import numpy as np
import pytest

from masp.config import load_config
from masp.data.answer_table import AnswerTable
from masp.data.datasets import dataset_of
from masp.data.keys import sample_key
from masp.data.target.find_labels import DatasetImages, find_labels, label_dataset
from masp.data.target.labels import NONE
from masp.errors import InputError
from tests.images import make_dataset

KEYS = ["test/joy/a%2Ejpg", "train/fear/b%2Ejpg", "train/joy/a%2Ejpg", "train/joy/c%20d%2Ejpg"]
ANSWERS = [{"scene": "beach"}, {"scene": "street", "object": "cat, dog"}, {"scene": "beach"}, {}]


def images(answers=ANSWERS, distribution=None):
    category = np.array([0, 1, 0, 0])
    return DatasetImages(KEYS, ("joy", "fear"), category, distribution, lambda: AnswerTable.of(answers), "cache.dir: c")


def config(*overrides):
    return load_config(None, ["vlm.path=v", "dataset.root=d", "cache.dir=c", "aspects=[object]", *overrides])


def found(*overrides, of=None):
    return find_labels(config(*overrides), of or images())


def refused(*overrides, of=None):
    with pytest.raises(InputError) as error:
        found(*overrides, of=of)
    assert "\n" not in str(error.value)
    return str(error.value)


def table(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return f"target.labels={path}"


def names(labels):
    return [labels.name(row) for row in range(len(labels.category))]


def test_nothing_said_means_the_labels_of_the_dataset():
    assert found() is None and found("target.name=season") is None


def test_answers_to_an_aspect_are_labels():
    labels = found("target.name=place", "target.labels=scene")
    assert labels.categories == ("beach", "street") and names(labels) == ["beach", "street", "beach", ""]
    assert labels.category.dtype == np.int32 and labels.category[3] == NONE and labels.distribution is None
    [finding] = labels.findings
    assert str(finding) == "target place: 1 of 4 images are left out: 1 have no label" and not finding.serious


def test_categories_restrict_and_order():
    labels = found("target.categories=[Fear, joy]")
    assert labels.categories == ("fear", "joy") and names(labels) == ["joy", "fear", "joy", "joy"]
    assert labels.findings == ()
    answers = [{"scene": name} for name in ("beach", "street", "beach", "sea")]
    labels = found("target.labels=scene", "target.categories=[sea,street]", of=images(answers))
    assert labels.categories == ("sea", "street") and names(labels) == ["", "street", "", "sea"]
    [finding] = labels.findings
    assert finding.text == (
        "target emotion: 2 of 4 images are left out: 2 have a label that is not in target.categories"
    )
    answers[3] = {}
    refused_line = refused("target.labels=scene", "target.categories=[sea,street]", of=images(answers))
    assert refused_line.startswith("target.categories = ") and "no image has the label 'sea'" in refused_line


def test_why_images_are_left_out_is_said_for_each_reason_and_loudly_if_they_are_most():
    answers = [{"scene": name} for name in ("beach", "street", "sea")] + [{}]
    [finding] = found("target.labels=scene", "target.categories=[beach,sea]", of=images(answers)).findings
    assert finding.text.endswith(
        "2 of 4 images are left out: 1 have no label and 1 have a label that is not in target.categories"
    )
    assert not finding.serious
    many = DatasetImages(
        [f"train/{n}" for n in range(5)], ("joy", "fear"), np.zeros(5, dtype=int), None,
        lambda: AnswerTable.of([{"scene": "a"}, {"scene": "b"}, {}, {}, {}]), "cache.dir: c",
    )  # fmt: skip
    assert found("target.labels=scene", of=many).findings[0].serious


def test_an_aspect_that_is_target_and_aspect_at_once_is_said_loudly():
    aspects = ["target.name=place", "target.labels=scene", "aspects=[object,scene,brightness]"]
    last = found(*aspects).findings[-1]
    assert last.serious and last.text.startswith(
        "target place: its labels are the answers to aspect scene, which is in aspects too: "
    )
    assert last.text.endswith("leave it out with aspects=[object,brightness]")
    for without in (["checkpoint.aspect=none"], ["aspects=[object]"]):
        assert not any(finding.serious for finding in found(*aspects, *without).findings)


def test_distributions_are_kept_only_for_the_labels_of_the_dataset():
    votes = np.array([[0.9, 0.1], [0.2, 0.8], [0, 0], [0.5, 0.5]])
    labels = found("target.categories=[fear,joy]", of=images(distribution=votes))
    assert labels.distribution.tolist() == votes[:, ::-1].tolist()
    assert found("target.labels=scene", of=images(distribution=votes)).distribution is None


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_table_with_keys(tmp_path, suffix):
    rows = [(KEYS[3], "Winter"), (KEYS[0], "summer"), (KEYS[1], "")]
    if suffix == ".jsonl":
        lines = [json.dumps({"key": key, "label": label or None, "who": 1}) for key, label in rows]
    else:
        separator = {".csv": ",", ".tsv": "\t"}[suffix]
        lines = [separator.join(("who", "label", "key")), *(separator.join(("1", b, a)) for a, b in rows)]
    labels = found("target.name=season", table(tmp_path / f"t{suffix}", *lines))
    assert labels.categories == ("summer", "winter") and names(labels) == ["summer", "", "", "winter"]


def test_a_table_with_paths(tmp_path):
    lines = ["image,label", "./joy/c d.jpg,winter", "fear\\b.jpg,very_hot"]
    labels = found(table(tmp_path / "t.csv", *lines))
    assert names(labels) == ["", "very hot", "", "winter"]


def test_a_path_that_several_splits_have_is_ambiguous(tmp_path):
    line = refused(table(tmp_path / "t.csv", "image,label", "joy/a.jpg,winter", "fear/b.jpg,summer"))
    assert "t.csv line 2: image = 'joy/a.jpg': several images have this path; put the split in front, as in" in line
    lines = ["image,label", "train/joy/a.jpg,winter", "fear/b.jpg,summer", "test/joy/a.jpg,summer"]
    assert names(found(table(tmp_path / "t.csv", *lines))) == ["summer", "summer", "winter", ""]


def test_a_path_in_another_unicode_form(tmp_path):
    keys = [sample_key("train", "caf\u00e9.jpg"), sample_key("train", "a.jpg")]
    own = DatasetImages(keys, ("joy", "fear"), np.array([0, 1]), None, lambda: AnswerTable.of([{}, {}]), "cache.dir: c")
    labels = found(table(tmp_path / "t.csv", "image,label", "cafe\u0301.jpg,winter", "a.jpg,summer"), of=own)
    assert names(labels) == ["winter", "summer"]


def test_rows_that_name_no_image_are_counted_and_refused_only_if_all_are(tmp_path):
    lines = ["key,label", f"{KEYS[0]},winter", f"{KEYS[1]},summer", "train/gone,winter", "train/too,winter"]
    labels = found(table(tmp_path / "t.csv", *lines))
    first = labels.findings[0]
    assert str(first) == (f"2 of 4 rows of {tmp_path / 't.csv'} name no image that can be read: train/gone, train/too")
    line = refused(table(tmp_path / "u.csv", "key,label", "joy/a.jpg,winter", "fear/b.jpg,summer"))
    assert line == (
        f"target.labels: {tmp_path / 'u.csv'}: none of its 2 rows names an image in cache.dir: c, such as 'joy/a.jpg'; "
        "key must be as in 'test/joy/a%2Ejpg'"
    )
    assert "image must be as in 'joy/a.jpg'" in refused(table(tmp_path / "v.csv", "image,label", "a.jpg,winter"))
    assert "none of its 0 rows" in refused(table(tmp_path / "w.csv", "key,label"))


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            ["file,label", "a,b"],
            "must have the columns key (sample keys) or image (paths in the dataset), and label",
        ),
        (["key,emotion", "a,b"], "and label; has 'key, emotion'"),
        (["key,label", f"{KEYS[0]},a", f"{KEYS[0]},b"], "has the label 'b', but 'a' in line 2; an image has one label"),
        (["key,label", ",a"], "line 2: key: must name an image, not empty"),
        (["key,label", f"{KEYS[0]},3"], "line 2: label = '3': must be the words of one category"),
        (["key,label", f"{KEYS[0]},a", f"{KEYS[1]},A"], "'a' alone, but a target needs two or more categories"),
        (["key,label", f"{KEYS[0]},", f"{KEYS[1]},n/a"], "no label, but a target needs two or more categories"),
        (["key,label", f"{KEYS[0]},a,b"], "line 2: has 3 values, but there are 2 columns"),
    ],
)
def test_bad_tables(tmp_path, lines, reason):
    line = refused(table(tmp_path / "t.csv", *lines))
    assert reason in line and str(tmp_path / "t.csv") in line


def test_values_of_jsonl_that_are_no_words(tmp_path):
    for value in (3, True, ["a", "b"], 1.5):
        line = refused(table(tmp_path / "t.jsonl", json.dumps({"key": KEYS[0], "label": value})))
        assert "line 1: label = " in line and "must be the words of one category" in line
    assert "must name an image, not 7" in refused(table(tmp_path / "u.jsonl", json.dumps({"key": 7, "label": "a"})))


def test_the_same_label_twice_for_an_image_is_one_label(tmp_path):
    lines = ["key,label", f"{KEYS[0]},a", f"{KEYS[0]}, A ", f"{KEYS[1]},b", f"{KEYS[1]},"]
    assert names(found(table(tmp_path / "t.csv", *lines))) == ["a", "b", "", ""]


def test_none_is_a_label_where_categories_say_so(tmp_path):
    lines = ["key,label", f"{KEYS[0]},none", f"{KEYS[1]},rain", f"{KEYS[2]},nan"]
    assert names(found(table(tmp_path / "t.csv", *lines), "target.categories=[none,rain]")) == ["none", "rain", "", ""]


def test_numbers_are_labels_where_categories_say_so(tmp_path):
    lines = ["key,label", f"{KEYS[0]},1", f"{KEYS[1]},2", f"{KEYS[2]},3"]
    line = refused(table(tmp_path / "t.csv", *lines), "target.categories=['1','2']")
    assert "line 4: label = '3'" in line
    assert names(found(table(tmp_path / "u.csv", *lines[:3]), "target.categories=['1','2']")) == ["1", "2", "", ""]


def test_no_such_table(tmp_path):
    assert refused(f"target.labels={tmp_path / 'no.csv'}") == (
        f"{tmp_path / 'no.csv'}: cannot be read: No such file or directory"
    )


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["target.labels=scne"], "nor a table (.csv, .tsv, .jsonl); did you mean 'scene'?"),
        (["target.labels=labels.txt"], "'labels.txt': not an aspect that images in cache.dir: c are annotated with ("),
        (["target.labels=object"], "its answers name several things at once"),
        (
            ["target.labels=scene", "target.categories=[beach,stret]"],
            "no image has the label 'stret'; did you mean 'st",
        ),
        (["target.categories=[joy,sad]"], "no image has the label 'sad'"),
    ],
)
def test_bad_settings(overrides, reason):
    assert reason in refused(*overrides)


@pytest.mark.parametrize("categories", ["[]", "[joy]", "[joy,Joy]", "[joy,'_']"])
def test_categories_that_are_not_two_or_more_are_refused_with_the_settings(categories):
    with pytest.raises(InputError, match=r"target.categories = .*: must name two or more different categories"):
        config(f"target.categories={categories}")


def test_a_dataset_and_a_cache_of_it_get_the_same_labels(tmp_path):
    root = make_dataset(tmp_path / "data")
    notes = sorted((root / "annotation").rglob("*.json"))
    for number, path in enumerate(notes):
        path.write_text(json.dumps({"scene": ("beach", "street")[number % 2], "brightness": number % 11 / 10}))
    dataset = dataset_of(config(f"dataset.root={root}"))
    settings = config("target.name=place", "target.labels=scene")
    seen, labels = label_dataset(settings, dataset)
    assert seen.categories == ("beach", "street") and len(seen.samples) == len(dataset.samples)
    for before, after in zip(dataset.samples, seen.samples, strict=True):
        assert after.category == before.answers.get("scene", "") and after.answers == before.answers
    order = np.random.default_rng(0).permutation(len(dataset.samples))
    shuffled = find_labels(settings, DatasetImages.of(type(dataset)(
        dataset.name, dataset.root, dataset.categories, dataset.samples[order],
    )))  # fmt: skip
    keys = dataset.samples.keys
    assert shuffled.digest([keys[place] for place in order]) == labels.digest(keys)
    assert label_dataset(config(), dataset) == (dataset, None)
