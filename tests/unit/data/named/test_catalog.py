"""Every published dataset on a small tree of its real shape."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from masp.config import load_aspects
from masp.config.loading import load_config
from masp.data.datasets import read_dataset
from masp.data.named.catalog import NAMED
from masp.errors import InputError
from masp.taxonomy import CATEGORY_SETS, dataset_name

DIVIDED = "split={train: 0.5, test: 0.5}"


def image(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    color = (
        number * 37 % 256,
        number * 101 % 256,
        number * 163 % 256,
    )  # so different that JPEG does not make one of two
    Image.new("RGB", (8, 8), color).save(path)


def read_rows(name: str, root: Path, *settings: str):
    overrides = [f"dataset.{each}" for each in (f"name={name}", f"root={root}", *settings)]
    return read_dataset(load_config(None, ["vlm.path=x", "cache.dir=x", *overrides]).dataset, load_aspects())


def read(name: str, root: Path, *settings: str):
    dataset = read_rows(name, root, *settings)
    assert all(Path(sample.image).is_file() for sample in dataset.samples)
    return dataset


def counts(dataset) -> dict:
    return dict(Counter((sample.split, sample.category) for sample in dataset.samples))


def refused(*arguments) -> str:
    with pytest.raises(InputError) as error:
        read(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_emoset(tmp_path):
    rows = []
    for n, category in enumerate(CATEGORY_SETS["emoset"]):
        image(tmp_path / f"image/{category}/{n}.jpg", n)
        rows.append([category, f"id_{n}", f"image/{category}/{n}.jpg", f"annotation/{category}/{n}.json"])
        (tmp_path / f"annotation/{category}").mkdir(parents=True)
        (tmp_path / f"annotation/{category}/{n}.json").write_text('{"brightness": 0.4}')
    (tmp_path / "train.json").write_text(json.dumps(rows[:6]))
    (tmp_path / "test.json").write_text(json.dumps(rows[6:]))
    dataset = read("EmoSet-118K", tmp_path)
    assert Counter(s.split for s in dataset.samples) == {"train": 6, "test": 2}
    assert all(sample.answers == {"brightness": "moderate"} for sample in dataset.samples)


def test_fi(tmp_path):
    for n, category in enumerate(CATEGORY_SETS["fi"] * 4):
        image(tmp_path / f"emotion_dataset/{category}/{category}_{n}.jpg", n)
    assert "dataset.split must be given" in refused("FI", tmp_path)
    dataset = read("FI", tmp_path, DIVIDED)
    assert set(counts(dataset).values()) == {2} and dataset.categories == CATEGORY_SETS["fi"]
    for n, split in enumerate(("train", "val", "test")):
        image(tmp_path / f"FI/{split}/awe/{n}.jpg", n)
    assert counts(read("fi", tmp_path / "FI")) == {(split, "awe"): 1 for split in ("train", "val", "test")}


def test_emotion6(tmp_path):
    lines = ["[image_filename]\t[valence]\t[arousal]\t[prob. of anger]\t…"]
    for n, category in enumerate(CATEGORY_SETS["emotion6"] * 2):
        image(tmp_path / f"images/{category}/{n}.jpg", n)
        probabilities = [0.0] * 7
        probabilities[n % 6] = 0.5
        probabilities[(n + 1) % 6] += 0.25
        probabilities[6] = 0.25
        lines.append("\t".join([f"{category}/{n}.jpg", "4.2", "5.1", *map(str, probabilities)]))
    image(tmp_path / "images/joy/99.jpg", 99)
    lines.append("\t".join(["joy/99.jpg", "4", "4", *["0.0"] * 6, "1.0"]))
    (tmp_path / "ground_truth.txt").write_text("\n".join(lines) + "\n")
    dataset = read("Emotion6", tmp_path, DIVIDED)
    assert len(dataset.samples) == 13 and dataset.categories == CATEGORY_SETS["emotion6"]
    by_name = {Path(sample.image).name: sample for sample in dataset.samples}
    assert by_name["0.jpg"].category == "anger"
    assert by_name["0.jpg"].distribution == pytest.approx((2 / 3, 1 / 3, 0, 0, 0, 0))
    assert by_name["99.jpg"].category == "joy" and by_name["99.jpg"].distribution is None
    seven = "categories=[anger, disgust, fear, joy, sadness, surprise, neutral]"
    whole = {Path(s.image).name: s for s in read("emotion6", tmp_path, DIVIDED, seven).samples}
    assert whole["0.jpg"].distribution == pytest.approx((0.5, 0.25, 0, 0, 0, 0, 0.25))
    (tmp_path / "ground_truth.txt").write_text("anger/0.jpg\t1\t2\n")
    assert "ground_truth.txt line 1: must be <emotion>/<n>.jpg, valence" in refused("emotion6", tmp_path, DIVIDED)


def test_emotion6_in_folders_of_splits(tmp_path):
    image(tmp_path / "train/joy/1.jpg", 1)
    image(tmp_path / "test/fear/2.jpg", 2)
    assert counts(read("emotion6", tmp_path)) == {("train", "joy"): 1, ("test", "fear"): 1}


def test_artphoto(tmp_path):
    for n, category in enumerate(CATEGORY_SETS["artphoto"] * 2):
        image(tmp_path / f"{category}_{n:04d}.jpg", n)
    dataset = read("ArtPhoto", tmp_path, DIVIDED)
    assert set(counts(dataset).values()) == {1} and len(dataset.samples) == 16
    image(tmp_path / "boredom_1.jpg", 1)
    assert "boredom_1.jpg" in refused("ArtPhoto", tmp_path, DIVIDED)


def test_abstract(tmp_path):
    lines = ["'','Amusement','Anger','Awe','Content','Disgust','Excitement','Fear','Sad'"]
    for n in range(16):
        image(tmp_path / f"abstract_{n:04d}.jpg", n)
        votes = [1] * 8
        votes[n % 8] = 6
        lines.append(f"'abstract_{n:04d}.jpg'," + ",".join(map(str, votes)))
    image(tmp_path / "abstract_0099.jpg", 99)
    lines.append("'abstract_0099.jpg',3,3,0,0,0,0,0,0")
    (tmp_path / "ABSTRACT_groundTruth.csv").write_text("\r\n".join(lines))
    dataset = read("Abstract", tmp_path, DIVIDED)
    assert len(dataset.samples) == 16 and set(counts(dataset).values()) == {1}
    assert dataset.samples[0].distribution and max(dataset.samples[0].distribution) == pytest.approx(6 / 13)
    assert "as many votes for one category as for another" in " ".join(map(str, dataset.findings))


def test_unbiasedemo(tmp_path):
    for n, category in enumerate(CATEGORY_SETS["unbiasedemo"] * 2):
        image(tmp_path / f"images/{category}/{('dog', 'car')[n % 2]}/{n}.jpg", n)
    assert len(read("UnbiasedEmo", tmp_path, DIVIDED).samples) == 12


def test_webemo(tmp_path):
    for n in range(25):
        image(tmp_path / f"images/train/{n}/{n}.jpg", n)
        image(tmp_path / f"images/test/{n}/{n}.jpg", n + 100)
    (tmp_path / "seven.yaml").write_text("".join(f"{n}: emotion {n % 7}\n" for n in range(24)) + "24: null\n")
    dataset = read("WEBEmo", tmp_path, f"label_names={tmp_path / 'seven.yaml'}")
    assert len(dataset.categories) == 7 and len(dataset.samples) == 48
    (tmp_path / "seven.yaml").write_text("0: joy\n")
    assert "'1': dataset.label_names does not have this label" in refused(
        "WEBEmo", tmp_path, f"label_names={tmp_path / 'seven.yaml'}"
    )
    assert "dataset.label_names must say" in refused("WEBEmo", tmp_path)


def test_emotionroi(tmp_path):
    (tmp_path / "training_testing_split").mkdir()
    lists = {"training": [], "testing": []}
    for n, category in enumerate(CATEGORY_SETS["emotionroi"] * 3):
        image(tmp_path / f"images/{category}/{n}.jpg", n)
        lists["testing" if n < 6 else "training"].append(f"{category}/{n}.jpg")
    for name, lines in lists.items():
        (tmp_path / f"training_testing_split/{name}.txt").write_text("\r\n".join(lines))
    dataset = read("EmotionROI", tmp_path)
    assert Counter(s.split for s in dataset.samples) == {"train": 12, "test": 6}
    assert "/../" not in dataset.samples[0].key
    (tmp_path / "training_testing_split/testing.txt").write_text("../../etc/passwd\n")
    assert "testing.txt line 1" in refused("EmotionROI", tmp_path)


def test_twitter(tmp_path):
    for n in range(8):
        image(tmp_path / f"{n}.jpg", n)
    (tmp_path / "five_agree.txt").write_text("".join(f"{n}.jpg {n % 2}\n" for n in range(4)))
    (tmp_path / "three_agree.txt").write_text("".join(f"{n}.jpg {n % 2}\n" for n in range(8)))
    assert counts(read("Twitter I", tmp_path, DIVIDED)) == {
        (split, category): 1 for split in ("train", "test") for category in ("negative", "positive")
    }
    assert len(read("twitter1", tmp_path / "three_agree.txt", DIVIDED).samples) == 8
    (tmp_path / "five_agree.txt").write_text("0.jpg 2\n")
    assert "five_agree.txt line 1: '0.jpg 2': must be the name of an image and 0 or 1" in refused(
        "twitter1", tmp_path, DIVIDED
    )


def test_caers(tmp_path):
    for n, category in enumerate(CATEGORY_SETS["caer-s"]):
        for split in ("train", "test"):
            image(tmp_path / f"{split}/{category.title()}/{n}.png", n)
    dataset = read("CAER-S", tmp_path)
    assert len(dataset.samples) == 14 and dataset.categories == CATEGORY_SETS["caer-s"]


@pytest.mark.parametrize("name", ["Flickr", "Instagram"])
def test_flickr_and_instagram(tmp_path, name):
    for n, category in enumerate(("Positive", "negative") * 2):
        image(tmp_path / f"{category}/{n}.jpg", n)
    assert set(counts(read(name, tmp_path, DIVIDED)).values()) == {1}


def test_every_name_is_known_in_any_case():
    for name in NAMED:
        assert dataset_name(name.upper()) == dataset_name(name.title()) == name
    assert dataset_name("Unbiased Emo") == "unbiasedemo" and dataset_name("other") == "other"


def test_emoset_of_the_hub(tmp_path):
    """Its uploads: a text column `emotion` with the aspects, or a numbered `label`."""
    images = []
    for n, _ in enumerate(CATEGORY_SETS["emoset"]):
        image(tmp_path / "one.jpg", n)
        images.append({"bytes": (tmp_path / "one.jpg").read_bytes(), "path": f"{n}.jpg"})
    (tmp_path / "one.jpg").unlink()
    (tmp_path / "text/data").mkdir(parents=True)
    columns = {"image": images, "image_id": [f"id_{n}" for n in range(8)], "emotion": list(CATEGORY_SETS["emoset"])}
    aspects = {"brightness": [0.1 * n for n in range(8)], "object": [["dog"]] * 4 + [None] * 4}
    pq.write_table(pa.table(columns | aspects), tmp_path / "text/data/train-00000-of-00001.parquet")
    dataset = read_rows("EmoSet", tmp_path / "text", "columns={id: image_id}")
    assert [sample.key for sample in dataset.samples] == [f"train/id_{n}" for n in range(8)]
    assert dataset.samples[3].answers == {"brightness": "low", "object": "dog"}
    assert dataset.samples[3].category == "contentment"

    (tmp_path / "numbers").mkdir()
    features = {"label": {"names": [name.title() for name in CATEGORY_SETS["emoset"]], "_type": "ClassLabel"}}
    table = pa.table({"image": images, "label": list(range(8))})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "numbers/test.parquet")
    assert [s.category for s in read_rows("emoset", tmp_path / "numbers").samples] == list(CATEGORY_SETS["emoset"])


def ignored(dataset) -> str:
    return " ".join(str(finding) for finding in dataset.findings if finding.kind == "ignored")


@pytest.mark.parametrize(
    ("name", "file", "header"),
    [
        ("emotion6", "ground_truth.txt", "[image_filename]\t[valence]\n"),
        ("emotion6", "ground_truth.txt", ""),
        ("abstract", "ABSTRACT_groundTruth.csv", "'','Amusement','Anger'\n"),
        ("abstract", "ABSTRACT_groundTruth.csv", ""),
        ("emotionroi", "training_testing_split/training.txt", "\n"),
        ("twitter1", "five_agree.txt", ""),
    ],
)
def test_lists_without_images(tmp_path, name, file, header):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(header)
    assert refused(name, tmp_path, DIVIDED if name != "emotionroi" else "split_seed=0").endswith(
        f"{file}: lists no image"
    )


def test_abstract_with_a_column_twice(tmp_path):
    (tmp_path / "ABSTRACT_groundTruth.csv").write_text("'','Awe','Anger','awe'\n'1.jpg',1,2,3\n")
    assert "line 1: has the column 'awe' twice" in refused("abstract", tmp_path, DIVIDED)


def test_artphoto_with_litter_and_other_images(tmp_path):
    for n, name in enumerate(["awe_1.jpg", "awe_2.jpg", "fear_3.jpg", "cover.jpg"]):
        image(tmp_path / name, n)
    (tmp_path / "._awe_1.jpg").write_bytes(b"x")
    dataset = read("artphoto", tmp_path, DIVIDED)
    assert len(dataset.samples) == 3
    assert "1 of 4 files are ignored" in ignored(dataset) and "cover.jpg" in ignored(dataset)


def test_emotionroi_lists_and_images_that_differ(tmp_path):
    (tmp_path / "training_testing_split").mkdir()
    for n in range(4):
        image(tmp_path / f"images/{('joy', 'fear')[n % 2]}/{n}.jpg", n)
    (tmp_path / "training_testing_split/training.txt").write_text("joy/0.jpg\nfear/1.jpg\n")
    (tmp_path / "training_testing_split/testing.txt").write_text("joy/2.jpg\n")
    dataset = read("emotionroi", tmp_path)
    assert "1 of 4 files are ignored" in ignored(dataset) and "images/fear/3.jpg" in ignored(dataset)
    (tmp_path / "training_testing_split/testing.txt").write_text("joy/2.jpg\n./joy/0.jpg\n")
    message = refused("emotionroi", tmp_path)
    assert "testing.txt line 2: 'images/joy/0.jpg' is listed again, first in" in message
    assert message.endswith("training.txt line 1")


def test_images_that_lists_of_twitter_and_emotion6_leave_out(tmp_path):
    for n in range(4):
        image(tmp_path / f"twitter/{n}.jpg", n)
        image(tmp_path / f"six/images/joy/{n}.jpg", n)
    (tmp_path / "twitter/five_agree.txt").write_text("".join(f"{n}.jpg {n % 2}\n" for n in range(3)))
    dataset = read("twitter1", tmp_path / "twitter", DIVIDED)
    assert "1 of 4 files are ignored" in ignored(dataset) and "3.jpg" in ignored(dataset)
    lines = ["\t".join([f"joy/{n}.jpg", "4", "4", *["0", "0", "0", "1", "0", "0", "0"]]) for n in range(3)]
    (tmp_path / "six/ground_truth.txt").write_text("\n".join(lines))
    assert "images/joy/3.jpg" in ignored(read("emotion6", tmp_path / "six", DIVIDED))
