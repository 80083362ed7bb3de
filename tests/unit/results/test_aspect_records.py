"""The records of stage 1: what was answered comes back with its aspect and scores, whole or not at all."""

import h5py
import numpy as np
import pytest

from masp.errors import DataError, InputError
from masp.results.aspect_records import read_aspect_records, write_aspect_records
from masp.results.ledger_format import Record
from masp.results.records import ContentDigest, read_records_file, write_target_records

RECORDS = [
    Record("test/a#brightness", "low", "high", scores=(0.0, 1.5), mean_scores=(0.0, 0.75)),
    Record("test/a#object", "dog, tree", "dog", text="Dog\nand"),
    Record("test/b#brightness", "high", "high", scores=(-2.0, -1.0), mean_scores=(-1.0, -0.5)),
]
ANSWERS = {"brightness": ("low", "high"), "colorfulness": ("low", "high")}


@pytest.fixture
def path(tmp_path):
    write_aspect_records(tmp_path / "records.h5", RECORDS, ANSWERS)
    return tmp_path / "records.h5"


def test_the_datasets_that_others_read(path):
    with h5py.File(path) as file:
        assert file["aspect"].asstr()[:].tolist() == ["brightness", "object", "brightness"]
        assert file["answers/brightness/row"][:].tolist() == [0, 2]
        assert list(file["answers"]) == ["brightness", "colorfulness"]
        assert file["answers/brightness/scores"][:].tolist() == [[0.0, 1.5], [-2.0, -1.0]]


def test_what_was_written_is_read(path):
    found = read_aspect_records(path)
    assert len(found) == 3 and found.keys == ["test/a", "test/a", "test/b"]
    assert found.aspects == ["brightness", "object", "brightness"] and found.labels == ["low", "dog, tree", "high"]
    assert found.predictions == ["high", "dog", "high"] and found.texts == ["", "Dog\nand", ""]
    assert list(found.compared) == ["brightness", "colorfulness"]
    brightness = found.compared["brightness"]
    assert brightness.answers == ("low", "high") and brightness.rows.tolist() == [0, 2]
    assert brightness.scores.tolist() == [[0.0, 1.5], [-2.0, -1.0]]
    assert brightness.mean_scores.tolist() == [[0.0, 0.75], [-1.0, -0.5]]
    assert found.compared["colorfulness"].scores.shape == (0, 2)


def test_records_of_emotions_are_something_else(path, tmp_path):
    with pytest.raises(InputError, match="evaluation of stage 1"):
        read_records_file(path)
    emotions = tmp_path / "e" / "records.h5"
    emotions.parent.mkdir()
    write_target_records(emotions, [Record("test/a", "joy", "joy", scores=(0.0,), mean_scores=(0.0,))], ["joy"], (), ())
    with pytest.raises(InputError, match="an evaluation of stage 2, not of stage 1"):
        read_aspect_records(emotions)
    with pytest.raises(InputError, match="no such file; run `masp evaluate`"):
        read_aspect_records(tmp_path / "none.h5")


def reseal(path):
    """Give the file the digest of its content."""
    digest = ContentDigest()
    with h5py.File(path, "a") as file:
        file.visititems(lambda name, item: digest.add(name, item[:]) if isinstance(item, h5py.Dataset) else None)
        file.attrs["digest"] = np.bytes_(f"2:{digest.of({})}")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("aspect", np.array([b"brightness"] * 2), "lengths differ: sample_key 3, aspect 2"),
        ("aspect", np.array([b"brightness"] * 3), r"answers/brightness/row are not the records of 'brightness'"),
        ("answers/brightness/row", np.array([0, 1]), "answers/brightness/row are not the records"),
        ("answers/brightness/row", np.array([0, 2], "i4"), "answers/brightness/row is int32; must be int64"),
        ("answers/brightness/scores", np.zeros((2, 3), "f4"), "scores has the shape"),
        ("answers/brightness/categories", np.zeros(0, "S3"), "answers/brightness/categories holds no answer"),
        ("answers/more", np.zeros(2), "it holds no answers/more/row"),
        ("answers", np.zeros(2), "answers must be a group"),
        ("sample_key", np.zeros(0, "S3"), "lengths differ"),
        ("aspect", np.array([b"object", b"object", b"brightness"]), "are not the records"),
    ],
)
def test_a_file_of_the_right_digest_and_the_wrong_shape_is_damage(path, name, value, problem):
    with h5py.File(path, "a") as file:
        if name in file:
            del file[name]
        file.create_dataset(name, data=value)
    reseal(path)
    with pytest.raises(DataError, match=f"{path} is damaged: .*{problem}"):
        read_aspect_records(path)


def test_an_aspect_of_an_image_occurs_once(tmp_path):
    write_aspect_records(tmp_path / "records.h5", [RECORDS[1], RECORDS[1]], {})
    with pytest.raises(DataError, match="an aspect of a sample_key occurs twice"):
        read_aspect_records(tmp_path / "records.h5")


def test_a_changed_value_is_not_that_of_the_digest(path):
    with h5py.File(path, "a") as file:
        file["answers/brightness/scores"][0, 0] = 0.5
    with pytest.raises(DataError, match="its content is not that of its digest"):
        read_aspect_records(path)
