"""Tables of images: what is read, and what is refused in which words."""

import json
import os
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from masp.config import load_aspects
from masp.config.schema import DatasetConfig
from masp.data.datasets import read_dataset
from masp.data.sources.rows import Column, ColumnBuilder
from masp.data.sources.table import lists_images, why_no_table
from masp.errors import InputError

LABELS = ("joy", "fear")


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images/sub").mkdir(parents=True)
    for n in range(6):
        Image.new("RGB", (8, 8), (n, 0, 0)).save(tmp_path / "images" / ("sub" if n % 2 else ".") / f"{n}.png")
    return tmp_path


def path(n):
    return f"sub/{n}.png" if n % 2 else f"{n}.png"


def read(root, **settings):
    return read_dataset(DatasetConfig(root=str(root), **settings), load_aspects())


def refused(root, **settings):
    with pytest.raises(InputError) as error:
        read(root, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_table_with_usual_names(images):
    lines = [
        "File_Name,Emotion,Split,brightness,object",
        '0.png,Joy,train,0.5,"[""a dog"", ""ball""]"',
        "sub/1.png,fear,test,,cat",
    ]
    (images / "labels.csv").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    dataset = read(images)
    assert [(s.key, s.category, s.answers) for s in dataset.samples] == [
        ("test/sub/1%2Epng", "fear", {"object": "cat"}),
        ("train/0%2Epng", "joy", {"object": "a dog, ball", "brightness": "moderate"}),
    ]
    assert all(os.path.isfile(sample.image) for sample in dataset.samples)
    assert dataset.categories == ("fear", "joy")


@pytest.mark.parametrize("form", [",", ";", "\t", "tsv", "jsonl"])
def test_every_form_of_a_table(images, form):
    rows = [(path(n), LABELS[n % 2], "train" if n < 4 else "test") for n in range(6)]
    if form == "jsonl":
        lines = [json.dumps(dict(zip(("image", "label", "split"), row, strict=True))) for row in rows]
    else:
        lines = [("\t" if form == "tsv" else form).join(row) for row in [("image", "label", "split"), *rows]]
    file = images / f"all.{form if form in ('tsv', 'jsonl') else 'csv'}"
    file.write_text("\n".join(lines) + "\n")
    for root in (images, file, str(images / "al*")):
        dataset = read(root)
        assert len(dataset.samples) == 6 and len(dataset.samples.in_split("test")) == 2
        assert all(os.path.isfile(sample.image) for sample in dataset.samples)


def test_tables_of_splits_and_absolute_paths(images):
    for split, numbers in (("training", (0, 1)), ("Val", (2, 3)), ("test", (4,))):
        rows = [f"{images}/images/{path(n)},{LABELS[n % 2]}" for n in numbers]
        (images / f"{split}.csv").write_text("\n".join(["path,label", *rows]))
    dataset = read(images)
    assert [sample.split for sample in dataset.samples] == ["test", "train", "train", "val", "val"]
    assert all(os.path.isfile(sample.image) for sample in dataset.samples)
    assert dataset.samples[0].key == "test/images/4%2Epng"


def test_columns_of_aspects_of_ones_own(images, tmp_path):
    (tmp_path / "aspects.yaml").write_text(
        "Weather-Type: {questions: [Q], vocabulary: [rain, fog]}\n"
        "stars: {kind: level, questions: [Q], bounds: [1, 5], words: [poor, fair, good]}\n"
        "animals: {kind: list, questions: [Q]}\n"
        "mood: {questions: [Q]}\n"
    )
    aspects = load_aspects(tmp_path / "aspects.yaml")
    rows = [
        "file,label,split,weather-type,stars,Animal,tone,emotion",
        "0.png,joy,train,Rain,3.5,cat,calm,x",
        "sub/1.png,fear,test,hail,1,dog,wild,y",
    ]
    (images / "labels.csv").write_text("\n".join(rows))
    dataset = read_dataset(DatasetConfig(root=str(images), columns={"mood": "tone"}), aspects)
    assert [sample.answers for sample in dataset.samples] == [
        {"Weather-Type": "hail", "stars": "poor", "mood": "wild"},
        {"Weather-Type": "rain", "stars": "fair", "mood": "calm"},
    ]
    (found,) = [finding for finding in dataset.findings if "column" in finding.text]
    assert found.serious and found.meant == "animals"
    assert str(found) == (
        "column 'Animal' is ignored: did you mean animals? dataset.columns.animals=Animal reads it as this aspect"
    )
    assert any(
        "Weather-Type that are not in its vocabulary (1 different); they are kept: 'hail'" in str(f)
        for f in dataset.findings
    )
    (images / "labels.csv").write_text("\n".join([rows[0], rows[1].replace("3.5", "7")]))
    with pytest.raises(InputError, match=r"labels.csv.*stars = '7': must be a number from 1 to 5, or be left out"):
        read_dataset(DatasetConfig(root=str(images)), aspects)


def test_a_table_of_the_hub_is_told_by_an_aspect_of_ones_own(tmp_path):
    """`metadata.csv` beside directories of labels is theirs, if it has a column of an aspect and none of labels."""
    for name in ("joy/a.png", "fear/b.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / name)
    (tmp_path / "data" / "metadata.csv").write_text("file_name,Weather\njoy/a.png,rain\nfear/b.png,fog\n")
    (tmp_path / "aspects.yaml").write_text("weather: {questions: [Q]}\n")
    config = DatasetConfig(root=str(tmp_path / "data"), split={"train": 1.0})
    found = read_dataset(config, load_aspects(tmp_path / "aspects.yaml")).samples
    answers = {"joy": {"weather": "rain"}, "fear": {"weather": "fog"}}
    assert {sample.category: sample.answers for sample in found} == answers
    without = read_dataset(config, load_aspects()).samples  # the table says nothing that is asked
    assert {sample.category: sample.answers for sample in without} == {"joy": {}, "fear": {}}


def test_columns_ids_and_label_names(images, tmp_path):
    rows = [f"{n % 3},{path(n)},no {n},extra" for n in range(6)]
    (images / "x.csv").write_text("\n".join(["code,bild,nr,image", *rows]))
    columns = {"image": "bild", "label": "code", "id": "nr"}
    names = {"0": "Joy", "1": "FEAR", "2": None}
    dataset = read(images, columns=columns, label_names=names, split={"train": 1.0})
    assert [(s.key, s.category) for s in dataset.samples] == [(f"train/no%20{n}", LABELS[n % 3]) for n in (0, 1, 3, 4)]
    assert "2 of 6 images have no label, or one that is left out" in " ".join(map(str, dataset.findings))
    (tmp_path / "names.yaml").write_text("0: joy\n1: fear\n2: null\n")
    again = read(images, columns=columns, label_names=str(tmp_path / "names.yaml"), split={"train": 1.0})
    assert again.samples == dataset.samples


def test_votes_are_distributions(images):
    rows = ["0.png,3,1,0", "sub/1.png,0,2,2", "2.png,0,0,0", "sub/3.png,1,0,9"]
    (images / "votes.csv").write_text("\n".join(["image,Joy,Fear,other", *rows]))
    dataset = read(images, distribution=["Joy", "Fear", "other"], split={"train": 1.0}, label_names=None)
    assert dataset.categories == ("joy", "fear", "other")
    assert [(s.category, s.distribution) for s in dataset.samples] == [
        ("joy", (0.75, 0.25, 0.0)),
        ("other", (0.1, 0.0, 0.9)),
    ]
    said = " ".join(map(str, dataset.findings))
    assert "1 of 4 images, nobody voted on" in said and "as many votes for one category as for another" in said
    fewer = read(
        images,
        distribution=["Joy", "Fear", "other"],
        split={"train": 1.0},
        label_names={"joy": "joy", "fear": "fear", "other": None},
    )
    # a category that is left out takes its votes with it, also from an image that had a tie with it
    assert [(s.category, s.distribution) for s in fewer.samples] == [
        ("joy", (0.75, 0.25)),
        ("fear", (0.0, 1.0)),
        ("joy", (1.0, 0.0)),
    ]


def test_votes_beside_labels_number_the_same_categories(images):
    rows = ["0.png,joy,3,1", "sub/1.png,fear,1,2", "2.png,awe,1,2", "sub/3.png,anger,0,2"]
    (images / "votes.csv").write_text("\n".join(["image,label,joy,fear", *rows]))
    dataset = read(images, distribution=["joy", "fear"], columns={"label": "label"}, split={"train": 1.0})
    assert dataset.categories == ("joy", "fear", "anger", "awe")
    assert [(s.category, s.distribution) for s in dataset.samples] == [
        ("joy", (0.75, 0.25, 0, 0)),
        ("awe", pytest.approx((1 / 3, 2 / 3, 0, 0))),
        ("fear", pytest.approx((1 / 3, 2 / 3, 0, 0))),
        ("anger", (0, 1, 0, 0)),
    ]


def test_several_labels_are_a_distribution(images):
    rows = [
        {"image": path(0), "label": ["fear", "joy"]},
        {"image": path(1), "label": ["joy"]},
        {"image": path(2), "label": "joy"},
    ]
    (images / "l.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = read(images, split={"train": 1.0})
    assert {s.key[6:]: (s.category, s.distribution) for s in dataset.samples} == {
        "0%2Epng": ("fear", (0.5, 0.5)),
        "sub/1%2Epng": ("joy", (0.0, 1.0)),
        "2%2Epng": ("joy", (0.0, 1.0)),
    }


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("image,label\n", {}, "these tables hold no image"),
        ('image,label\n0.png,joy\n"2.png,fear\nsub/1.png,fear\n', {}, "line 3: unexpected end of data; a quote may"),
        ('image,label\n"0.png,joy\n2.png,fear",fear\n', {}, "line 2: image = '0.png,joy\\n2.png,fear': must be on one"),
        ('image,label\n\n"0\n.png",joy\n', {}, "line 3: image = "),
        ('image,label\n0.png,"joy\nfear"\n', {}, "line 2: label = 'joy\\nfear': must be on one line"),
        ("image,label\n0.p\0ng,joy\n", {}, "line 2: holds a NUL byte"),
        ("image,label\n0.png\n", {}, "line 2: has 1 values, but there are 2 columns"),
        ("image,image\n", {}, "has the column 'image' twice"),
        ("image,feeling\n0.png,joy\n", {}, "no column of these tables seems to hold the labels"),
        ("image,label\n0.png,joy\n", {"columns": {"label": "lable"}}, "did you mean 'label'?"),
        ("image,label\nhttps://a.org/0.png,joy\n", {}, "line 2: image: 'https://a.org/0.png': a URL"),
        ("image,label\n../0.png,joy\n", {}, "must be the path of a file, relative"),
        ("image,label\n,joy\n", {}, "must be the path of an image file, not empty"),
        ("image,label\n0.png,joy\n./0.png,fear\n", {}, "line 3: '0.png' is the name of the image in"),
        ("image,label\n0.png,joy\n", {"label_names": {"fear": "fear"}}, "dataset.label_names does not have this label"),
        ("image,label\n0.png,joy\n", {"name": "emotion6", "label_names": {"joy": "fun"}}, "'fun' is not a category"),
        ("image,label\n0.png,\n", {}, "no image has a label"),
        (
            "image,label,split\n0.png,joy,somewhere\n",
            {"columns": {"split": "split"}},
            "line 2: split: 'somewhere' does not name a split",
        ),
        ("image,Label,LABEL\n0.png,joy,fear\n", {}, "have the columns 'Label' and 'LABEL', which differ only in case"),
        ("image,label,brightness\n0.png,joy,7\n", {}, "line 2: brightness = '7': must be a number from 0 to 1"),
        ("image,a,b\n0.png,1,-1\n", {"distribution": ["a", "b"]}, "line 2: b = '-1': must be a number of votes"),
        (
            "image,a,b\n0.png,1,x\n",
            {"distribution": ["a", "c"]},
            "dataset.distribution = ['a', 'c']: these tables have no column 'c'",
        ),
        ("image,label\n0.png,joy\n", {}, "dataset.split must be given"),
    ],
)
def test_refused_tables(images, text, settings, message):
    (images / "x.csv").write_text(text)
    assert message in refused(images / "x.csv", **settings)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"image": "0.png"\n', "line 1: not valid JSON"),
        ("x.jsonl", b"[1]\n", "line 1: must be an object"),
        ("x.jsonl", b'{"image": 3, "label": "joy"}\n', "must be the path of an image file, not 3"),
        (
            "x.jsonl",
            b'{"image": "0.png", "label": 3}\n',
            "line 1: label = '3': labels are numbers",
        ),
        ("x.jsonl", b"[" * 5000, "not valid JSON"),
        ("x.jsonl", b"", "holds no row"),
        ("x.csv", b"image,label\n\xff.png,joy\n", "not text in UTF-8"),
        ("x.csv", b'image,label\n"' + b"a" * (2 << 20), "longer than"),
        ("x.csv", b"", "must name the columns"),
    ],
)
def test_broken_tables(images, name, content, message):
    (images / name).write_bytes(content)
    assert message in refused(images / name)


def test_what_is_no_file(images):
    os.mkfifo(images / "x.csv")
    assert refused(images / "x.csv").endswith("neither a file nor a directory")
    (images / "y.csv").mkdir()
    assert "is empty; a dataset has" in refused(images / "y.csv")


def test_keys_that_only_later_rows_have(images):
    rows = [{"image": path(0), "label": "joy"}, {"image": path(1), "label": "fear", "split": "test", "scene": "street"}]
    (images / "l.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = read(images, split={"train": 1.0}, columns={"split": "split"})
    assert dataset.samples[0].answers | dataset.samples[1].answers == {"scene": "street"}


def test_lines_of_white_space_are_empty(images):
    (images / "x.csv").write_text("image,label\n   \n0.png,joy\n\t\n2.png,fear\n")
    (images / "x.tsv").write_text("image\tlabel\n\t\n0.png\tjoy\n")
    assert len(read(images / "x.csv", split={"train": 1.0}).samples) == 2
    assert len(read(images / "x.tsv", split={"train": 1.0}).samples) == 1


def test_which_files_are_tables_of_images(images):
    file = images / "x.csv"
    config = DatasetConfig(root=str(images))
    file.write_text("image,width\n0.png,8\n")
    assert "x.csv: no column seems to hold the labels; name it, as in" in str(why_no_table(file, config, ()))
    assert not lists_images(file, config, ())
    for more in ({"columns": {"label": "width"}}, {"distribution": ["width"]}):
        named = DatasetConfig(root=str(images), **more)
        assert why_no_table(file, named, ()) is None and lists_images(file, named, ())
    file.write_text("width,label\n8,joy\n")
    assert "no column seems to hold the paths of images" in str(why_no_table(file, config, ()))
    file.write_bytes(b"\xff\xfe")
    assert "not text in UTF-8" in str(why_no_table(file, config, ()))
    file.write_text("Image,Label\n0.png,joy\n")
    assert why_no_table(file, config, ()) is None


@pytest.mark.parametrize("label", ["-1", "1.0", "inf", "-inf", "1e3", "3"])
def test_numbers_are_no_categories(images, label):
    (images / "x.csv").write_text(f"image,label\n0.png,{label}\n")
    assert f"line 2: label = '{label}': labels are numbers; dataset.label_names must" in refused(images / "x.csv")
    names = {label.removesuffix(".0"): "joy"}
    assert read(images / "x.csv", label_names=names, split={"train": 1.0}).samples[0].category == "joy"
    by_name = read(images / "x.csv", categories=[label, "joy"], split={"train": 1.0})
    assert by_name.samples[0].category == label


def test_numbers_of_json_match_label_names(images):
    rows = [{"image": path(n), "label": label} for n, label in enumerate([1.0, 0, "1", False])]
    (images / "l.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names = {"0": "fear", "1": "joy", "False": "awe"}
    dataset = read(images, label_names=names, split={"train": 1.0})
    assert {s.image[-5]: s.category for s in dataset.samples} == {"0": "joy", "1": "fear", "2": "joy", "3": "awe"}
    (images / "l.jsonl").write_text(json.dumps(rows[3]))
    assert "label = false: labels are true and false; dataset.label_names must" in refused(images)


@pytest.mark.parametrize("text", ["nan", "None", "NULL", "n/a", "NA", "<NA>"])
def test_words_for_no_label(images, text):
    (images / "x.csv").write_text(f"image,label\n0.png,{text}\n2.png,joy\n4.png,joy\n")
    dataset = read(images / "x.csv", split={"train": 1.0})
    assert dataset.categories == ("joy",) and len(dataset.samples) == 2
    assert "1 of 3 images have no label, or one that is left out" in " ".join(map(str, dataset.findings))
    translated = read(images / "x.csv", label_names={text: "calm", "joy": "joy"}, split={"train": 1.0})
    assert translated.samples[0].category == "calm"


def test_lists_of_labels_in_text(images):
    rows = ['0.png,"[""joy"", ""fear""]"', "2.png,fear", "sub/1.png,[odd"]
    (images / "x.csv").write_text("\n".join(["image,label", *rows]))
    dataset = read(images / "x.csv", split={"train": 1.0})
    assert {s.image[-5]: s.category for s in dataset.samples} == {"0": "joy", "2": "fear", "1": "[odd"}
    assert dataset.samples[0].distribution == (0, 0.5, 0.5)


def test_values_of_lists_keep_their_types():
    column = Column.of([(1,), (True,), (1.0,), (1,), float("nan"), float("nan")])
    assert column.codes.tolist() == [0, 1, 2, 0, 3, 3]
    assert [type(value[0]) for value in column.values[:3]] == [int, bool, float]
    builder = ColumnBuilder()
    builder.append((True,))
    builder.extend(column)
    assert builder.column().codes.tolist() == [0, 1, 0, 2, 1, 3, 3]


@pytest.mark.parametrize("votes", ["1" + "0" * 400, "1e308", "1000000000001"])
def test_votes_are_finite(images, votes):
    (images / "v.jsonl").write_text(f'{{"image": "0.png", "a": {votes}, "b": {votes}}}')
    message = refused(images, distribution=["a", "b"])
    assert "line 1: a = " in message and "must be a number of votes or a probability" in message


def test_label_names_that_contradict_each_other(images):
    (images / "x.csv").write_text("image,label\n0.png,joy\n")
    message = refused(images / "x.csv", label_names={"Very_Joy": "joy", "very joy": "fear"})
    assert "'Very_Joy' and 'very joy' are the same label, but mean joy and fear" in message
    assert "dataset.label_names: is empty" in refused(images / "x.csv", label_names={})
    (images / "names.yaml").write_text("1: joy\n'1.0': fear\n")
    assert "names.yaml: '1' and '1.0' are the same label" in refused(
        images / "x.csv", label_names=f"{images}/names.yaml"
    )
    (images / "names.yaml").write_text("{}\n")
    assert "names.yaml: is empty" in refused(images / "x.csv", label_names=f"{images}/names.yaml")


def test_of_names_that_differ_in_case_the_usual_one_counts(images):
    (images / "x.csv").write_text("image,Label,label,Image\n0.png,fear,joy,no\n")
    assert read(images / "x.csv", split={"train": 1.0}).samples[0].category == "joy"


def test_a_column_that_is_only_called_like_splits(images):
    rows = [f"{path(n)},joy,{n if n else 'train'}" for n in range(6)]
    (images / "test.csv").write_text("\n".join(["image,label,fold", *rows]))
    dataset = read(images)
    assert len(dataset.samples.in_split("test")) == 6
    assert "column 'fold' is ignored, since '1' in it does not name a split" in " ".join(map(str, dataset.findings))


def test_an_empty_split_is_none(images):
    rows = [{"image": path(n), "label": "joy", "split": "test" if n else ""} for n in range(2)]
    (images / "l.jsonl").write_text("\n".join(map(json.dumps, rows)))
    message = refused(images)
    assert "dataset.split must be given: nothing in" in message and "0.png is an image" in message


def test_listed_images_that_do_not_exist(images):
    (images / "x.csv").write_text("image,label\ngone.png,joy\n0.png,joy\n2.png,fear\nsub/7.png,joy\nno/8.png,joy\n")
    (images / "data").mkdir()
    Image.new("RGB", (8, 8)).save(images / "data/gone.png")  # not where most images are
    dataset = read(images / "x.csv", split={"train": 1.0})
    (missing,) = [finding for finding in dataset.findings if finding.kind == "missing"]
    assert missing.serious and str(missing).startswith("3 of 5 listed images do not exist: gone.png, sub/7.png")
    assert {s.image for s in dataset.samples if os.path.exists(s.image)} == {
        f"{images}/images/0.png",
        f"{images}/images/2.png",
    }


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_on_disk_in_another_unicode_form(images, forms):
    listed, on_disk = (unicodedata.normalize(form, "café.png") for form in forms)
    Image.new("RGB", (8, 8), (9, 9, 9)).save(images / "images" / on_disk)
    (images / "x.csv").write_text(f"image,label\n{listed},joy\n0.png,joy\n", encoding="utf-8")
    dataset = read(images / "x.csv", split={"train": 1.0})
    assert all(os.path.isfile(sample.image) for sample in dataset.samples)
    assert not [finding for finding in dataset.findings if finding.kind == "missing"]


def test_a_number_that_is_none_is_no_label(images):
    """As pandas writes a column of whole numbers in which values are missing."""
    png = (images / "images/0.png").read_bytes()
    table = pa.table({"image": [{"bytes": png, "path": None}] * 4, "label": [0.0, float("nan"), 1.0, float("nan")]})
    pq.write_table(table, images / "x.parquet")
    dataset = read(images / "x.parquet", label_names={"0": "fear", "1": "joy"}, split={"train": 1.0})
    assert sorted(s.category for s in dataset.samples) == ["fear", "joy"]
    assert "2 of 4 images have no label, or one that is left out" in " ".join(map(str, dataset.findings))


def write_images(root, *names):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 20, 0, 0)).save(root / name)


def write_metadata(file, rows):
    """Write rows as the Hub's `metadata.csv`, `.jsonl` or `.parquet`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        file.write_text("\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("place", ["{split}", "data/{split}"])
def test_a_table_of_the_hub_in_each_split(tmp_path, suffix, place):
    for split in ("train", "validation", "test"):
        directory = tmp_path / place.format(split=split)
        write_images(directory, "a.png", "images/b.png")
        rows = [
            {"file_name": "a.png", "label": "joy", "scene": "sea"},
            {"file_name": "images/b.png", "label": "fear", "scene": "wood"},
        ]
        write_metadata(directory / f"metadata.{suffix}", rows)
    dataset = read(tmp_path)
    found = [(sample.split, sample.category, sample.answers["scene"]) for sample in dataset.samples]
    both = [("joy", "sea"), ("fear", "wood")]
    assert sorted(found) == sorted((split, *each) for split in ("train", "val", "test") for each in both)
    assert all(os.path.isfile(sample.image) for sample in dataset.samples)
    assert len({sample.image for sample in dataset.samples}) == 6 and not any(f.serious for f in dataset.findings)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_table_of_the_hub_in_the_root(tmp_path, suffix):
    write_images(tmp_path, "train/a.png", "test/b.png")
    rows = [{"file_name": "train/a.png", "label": "joy"}, {"file_name": "test/b.png", "label": "fear"}]
    write_metadata(tmp_path / f"metadata.{suffix}", rows)
    assert {(s.split, s.category) for s in read(tmp_path).samples} == {("train", "joy"), ("test", "fear")}
    # one image outside the directories of splits, and nothing is concluded from directories
    write_images(tmp_path, "c.png")
    write_metadata(tmp_path / f"metadata.{suffix}", [*rows, {"file_name": "c.png", "label": "joy"}])
    assert "dataset.split must be given" in refused(tmp_path)


def test_a_table_of_the_hub_counts_before_directories(tmp_path):
    write_images(tmp_path / "train", "sea/a.png", "wood/b.png")
    write_metadata(tmp_path / "train/metadata.csv", [{"file_name": "sea/a.png", "label": "joy"}])
    assert [(s.key, s.category) for s in read(tmp_path).samples] == [("train/train/sea/a%2Epng", "joy")]
    assert len(read(tmp_path, format="folders").samples) == 2
    (tmp_path / "train/metadata.csv").rename(tmp_path / "train/labels.csv")  # of any other name, only without folders
    assert read(tmp_path).categories == ("sea", "wood")
    assert read(tmp_path, format="table").categories == ("joy",)


def test_any_table_in_the_directory_of_a_split(tmp_path):
    for split in ("train", "valid"):
        write_images(tmp_path / split, "images/a.png")
        write_metadata(tmp_path / split / "_classes.csv", [{"filename": "a.png", "label": "joy"}])
    assert [s.key for s in read(tmp_path).samples] == ["train/train/a%2Epng", "val/valid/a%2Epng"]
    assert all(os.path.isfile(sample.image) for sample in read(tmp_path).samples)
    assert [s.key for s in read(tmp_path / "valid/_classes.csv").samples] == ["val/valid/a%2Epng"]


def test_aspects_in_a_table_of_the_hub_and_categories_in_directories(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / split, "joy/deep/a.png", "Fear/b.png")
        rows = [{"file_name": "joy/deep/a.png", "brightness": 0.5}, {"file_name": "Fear/b.png", "brightness": 0.1}]
        write_metadata(tmp_path / split / "metadata.csv", rows)
    found = {(s.split, s.category, s.answers["brightness"]) for s in read(tmp_path).samples}
    both = [("joy", "moderate"), ("fear", "very low")]
    assert found == {(split, *each) for split in ("train", "test") for each in both}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"file_name": "../../a.png", "label": "joy"}], "inside it"),
        ([{"file_name": "..", "label": "joy"}], "inside it"),
        ([{"file_name": ".", "label": "joy"}], "inside it"),
        ([{"file_name": "a.png", "text": "joy"}], "metadata.csv: no column seems to hold the labels"),
        ([{"file_name": "a.png", "scene": "sea"}], "metadata.csv: no column seems to hold the labels"),
    ],
)
def test_tables_of_the_hub_that_are_refused(tmp_path, rows, message):
    write_images(tmp_path / "train", "a.png")
    write_metadata(tmp_path / "train/metadata.csv", rows)
    assert message in refused(tmp_path)


def test_a_table_of_the_hub_without_labels_is_named(tmp_path):
    for split, column in (("train", "label"), ("test", "caption")):
        write_images(tmp_path / split, "a.png")
        write_metadata(tmp_path / split / "metadata.csv", [{"file_name": "a.png", column: "joy"}])
    assert "has other columns than" in refused(tmp_path) and "test/metadata.csv" in refused(tmp_path)
    assert len(read(f"{tmp_path}/train/metadata.csv").samples) == 1


def test_an_image_beside_the_directory_of_its_table(tmp_path):
    write_images(tmp_path, "images/a.png")
    write_metadata(tmp_path / "train/metadata.csv", [{"file_name": "../images/a.png", "label": "joy"}])
    (sample,) = read(tmp_path).samples
    assert sample.image == f"{tmp_path}/images/a.png" and sample.split == "train"


@pytest.mark.parametrize(
    ("joy", "fear", "expected"),
    [
        (
            [1.0, float("nan")],
            [0.0, 1.0],
            "row 1: joy = nan: must be a number of votes or a probability, from 0 to 1,000",
        ),
        ([1, -1], [0, 2], "row 1: joy = -1: must be a number of votes or a probability"),
        ([1.0, float("inf")], [0.0, 1.0], "row 1: joy = inf: must be"),
        ([0, 0], [0, None], "by these columns all 2 images have none; the first one is "),
        ([0, 3], [0, 3], "by these columns all 2 images are tied or have none; the first one is "),
        ([1, 0, None], [3, 0, None], [("fear", (0.25, 0.75))]),
        ([-0.0, 0.5], [0.25, None], [("fear", (0.0, 1.0)), ("joy", (1.0, 0.0))]),
    ],
)
def test_votes_in_parquet_files(images, joy, fear, expected):
    data = [(images / "images/0.png").read_bytes()] * len(joy)
    pq.write_table(pa.table({"image": data, "joy": joy, "fear": fear}), images / "train.parquet")
    settings = {"distribution": ["joy", "fear"]}
    if isinstance(expected, str):
        assert expected in refused(images, **settings)
    else:
        dataset = read(images, **settings)
        assert [(sample.category, sample.distribution) for sample in dataset.samples] == expected
        left_out = len(joy) - len(expected)
        assert [finding.count for finding in dataset.findings if finding.kind == "labels"] == [left_out][:left_out]


@pytest.mark.parametrize(("each", "is_odd"), [(1, True), (2, False)])
def test_labels_that_are_probably_something_else(images, each, is_odd):
    rows = [f"{path(n % 6)},{n},caption {n // each},train\n" for n in range(48)]
    (images / "all.csv").write_text("image,id,label,split\n" + "".join(rows))
    findings = [finding for finding in read(images, columns={"id": "id"}).findings if finding.kind == "labels"]
    assert [finding.serious for finding in findings] == [True] * is_odd
    assert not is_odd or "the 48 images have 48 different labels in column 'label'" in findings[0].text
    (images / "all.csv").write_text("image,id,label,split\n" + rows[0].replace("caption", "word " * 60))
    assert "line 2: label: 'word" in refused(images) and "must have at most 255 characters, not 301" in refused(images)


def test_columns_without_a_name(images):
    """Spreadsheets leave them at the end, pandas puts one in front."""
    (images / "all.csv").write_text(",image,label,split,,\n0,0.png,joy,train,,\n1,sub/1.png,fear,test,x,\n")
    assert len(read(images).samples) == 2
    (images / "all.csv").write_text(",file,what,,\n0,0.png,joy,,\n")
    assert refused(images / "all.csv").endswith("as in dataset.columns.label=what; there are file, what")


def test_images_that_do_not_exist_are_reported_for_parquet_files_too(images):
    os.rename(images / "images/0.png", images / "images/cafe\u0301.png")
    names = ["images/caf\u00e9.png", "images/2.png", "images/gone.png"]
    pq.write_table(pa.table({"image": names, "label": ["joy", "fear", "joy"]}), images / "train.parquet")
    dataset = read(images)
    assert [os.path.isfile(sample.image) for sample in dataset.samples] == [True, True, False]
    (finding,) = (each for each in dataset.findings if each.kind == "missing")
    assert (finding.count, finding.examples) == (1, ("images/gone.png",))
