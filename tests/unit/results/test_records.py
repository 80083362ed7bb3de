"""records.h5: what was scored comes back, whole or not at all, maps included."""

import contextlib

import h5py
import numpy as np
import pytest

from masp.errors import DataError, InputError
from masp.results.attention_maps import AttentionFile, read_attention
from masp.results.ledger_format import Record
from masp.results.records import DataDigests, read_maps, read_records_file, write_aspect_records, write_emotion_records

CATEGORIES = ("fear", "joy", "quiet €")


def make_records(count=4, scored=True):
    rng = np.random.default_rng(0)
    return [
        Record(
            sample_key=f"test/{i}",
            label=CATEGORIES[i % 3],
            prediction=CATEGORIES[0] if i else None,
            scores=tuple(rng.normal(size=3).astype("f4").tolist()) if scored else None,
            mean_scores=tuple(rng.normal(size=3).astype("f4").tolist()) if scored else None,
            text=None if scored else "a\0b\udc80 €",
        )
        for i in range(count)
    ]


def test_the_datasets_that_others_read(tmp_path):
    records = make_records()
    write_emotion_records(tmp_path / "records.h5", records, CATEGORIES, (), ())
    with h5py.File(tmp_path / "records.h5") as file:
        assert [k.decode() for k in file["sample_key"]] == [r.sample_key for r in records]
        assert file["label"].asstr()[:].tolist() == [r.label for r in records]
        assert file["categories"].asstr()[:].tolist() == list(CATEGORIES)
        assert file["scores"].shape == (4, 3) and "attention" not in file
        assert file["scores"][:].tolist() == [list(r.scores) for r in records]
        assert file["mean_scores"][:].tolist() == [list(r.mean_scores) for r in records]
    found = read_records_file(tmp_path / "records.h5")
    assert found.keys == [r.sample_key for r in records] and found.categories == CATEGORIES
    assert found.predictions == [None, *["fear"] * 3]
    assert [p.name for p in tmp_path.iterdir()] == ["records.h5"]


def test_generated_lines_have_texts_and_no_scores(tmp_path):
    write_emotion_records(tmp_path / "records.h5", make_records(scored=False), CATEGORIES, (), ())
    assert np.isnan(read_records_file(tmp_path / "records.h5").scores).all()
    with h5py.File(tmp_path / "records.h5") as file:
        assert file["text"].asstr()[0] == "a\N{REPLACEMENT CHARACTER}b\\udc80 €"


def test_maps_of_any_size_go_through_the_ledgers_file_into_the_records(tmp_path):
    rng = np.random.default_rng(1)
    attended = [rng.random((2, h, w)).astype("f4") for h, w in [(2, 3), (1, 1), (4, 2), (3, 3)]]
    for half in (attended[:2], attended[2:]):  # a second call appends
        with contextlib.closing(AttentionFile(tmp_path, "rank-0")) as file:
            where = [file.append(weights) for weights in half]
        assert all(np.array_equal(read_attention(tmp_path, w), weights) for w, weights in zip(where, half, strict=True))
    write_emotion_records(tmp_path / "r.h5", make_records(), CATEGORIES, ("scene", "object"), iter(attended))
    maps = read_maps(tmp_path / "r.h5", ["test/2", "test/0", "test/9"])
    assert sorted(maps) == ["test/0", "test/2"] and list(maps["test/2"]) == ["scene", "object"]
    assert np.array_equal(maps["test/2"]["object"], attended[2][1]) and maps["test/0"]["scene"].shape == (2, 3)


def test_stage_1_has_scores_where_answers_were_compared(tmp_path):
    records = [
        Record("test/a#brightness", "low", "high", scores=(0.0, 1.0), mean_scores=(0.0, 1.0)),
        Record("test/a#object", "dog, tree", "dog", text="dog"),
    ]
    write_aspect_records(tmp_path / "records.h5", records, {"brightness": ("low", "high")})
    with h5py.File(tmp_path / "records.h5") as file:
        assert file["aspect"].asstr()[:].tolist() == ["brightness", "object"]
        assert file["answers/brightness/row"][:].tolist() == [0] and list(file["answers"]) == ["brightness"]
        assert file["answers/brightness/scores"][:].tolist() == [[0.0, 1.0]]
    with pytest.raises(InputError, match="evaluation of stage 1"):
        read_records_file(tmp_path / "records.h5")


def test_what_cannot_be_read_says_what_to_run(tmp_path):
    with pytest.raises(InputError, match="masp evaluate"):
        read_records_file(tmp_path / "none.h5")
    (tmp_path / "records.h5").write_bytes(b"no hdf5")
    with pytest.raises(DataError, match="records.h5 is damaged: .*; delete it"):
        read_records_file(tmp_path / "records.h5")
    with pytest.raises(DataError, match="/etc/passwd is damaged or not a file of MASP: .*; name a records.h5") as error:
        read_records_file("/etc/passwd")
    assert "delete" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("label", ["fear"] * 3, "lengths differ: sample_key 4, label 3"),
        ("sample_key", [1, 2, 3, 4], "sample_key is not a list of strings"),
        ("sample_key", ["a"] * 4, "sample_key occurs twice"),
        ("scores", None, "scores is not a dataset"),
        ("scores", [[0.0] * 3] * 3, "scores are float64"),
        ("scores", [["x"] * 3] * 4, "scores are object"),
        ("scores", np.zeros((4, 3), "i8"), r"scores are int64 \[4, 3\]; must be floating-point numbers \[4, 3\]"),
        ("scores", h5py.Empty("f4"), "scores claims values that the file does not hold"),
        ("categories", np.zeros((3, 3), "S2"), "categories is not a list of strings"),
        ("label", "fear", "label is not a list of strings"),
        ("prediction", ["\udcff".encode("utf-8", "surrogateescape")] * 4, "utf-8"),
    ],
)
def test_foreign_and_damaged_datasets_are_named(tmp_path, name, value, problem):
    path = tmp_path / "records.h5"
    write_emotion_records(path, make_records(), CATEGORIES, (), ())
    with h5py.File(path, "a") as file:
        del file[name]
        file.create_group(name) if value is None else file.create_dataset(name, data=value)
    with pytest.raises(DataError, match=f"{path} is damaged: .*{problem}"):
        read_records_file(path)


def _claim(file, name, **settings):
    del file[name]
    file.create_dataset(name, **settings)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda file, other: _claim(file, "scores", shape=(1 << 40, 3), dtype="f4", chunks=(1024, 3)), "claims values"),
        (lambda file, other: _claim(file, "scores", data=np.zeros((4, 3), "f4"), compression="gzip"), "claims values"),
        (
            lambda file, other: _claim(file, "label", shape=(4,), dtype="S8", external=[(other, 0, 32)]),
            "label is not a dataset in the file itself",
        ),
        (
            lambda file, other: file.move("scores", "more") or file.__setitem__("scores", h5py.SoftLink("/more")),
            "itself",
        ),
        (
            lambda file, other: file.__delitem__("label") or file.__setitem__("label", h5py.ExternalLink(other, "/x")),
            "itself",
        ),
        (lambda file, other: file.attrs.__setitem__("made_by", 3), "data_digest and made_by must be strings"),
    ],
)
def test_what_a_file_claims_or_keeps_elsewhere_is_not_read(tmp_path, change, problem):
    path, other = tmp_path / "records.h5", tmp_path / "private"
    other.write_bytes(b"a secret" * 4)
    write_emotion_records(path, make_records(), CATEGORIES, (), (), DataDigests("a", "b"))
    with h5py.File(path, "a") as file:
        change(file, str(other))
    with pytest.raises(DataError, match=problem) as error:
        read_records_file(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("version", [2, "1", [1, 1], None])
def test_another_format_is_refused(tmp_path, version):
    path = tmp_path / "records.h5"
    write_emotion_records(path, make_records(), CATEGORIES, (), ())
    with h5py.File(path, "a") as file:
        del file.attrs["format_version"]
        if version is not None:
            file.attrs["format_version"] = version
    with pytest.raises(InputError, match="format_version is .*, this version of MASP reads 1"):
        read_records_file(path)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("weights", np.zeros((13, 3), "f4"), "attention/weights are float32"),
        ("weights", np.zeros((14, 2), "i4"), "attention/weights are int32"),
        ("offsets", np.zeros(4, "i8"), "attention/offsets are int64"),
        ("offsets", np.array([0, 6, 6, 14, 14]), "do not belong to attention/grid"),
        ("offsets", np.array([0.0, 6, 7, 15, 24]), "attention/offsets are float64"),
        ("grid", np.zeros((4, 2), "i4"), "do not belong to attention/grid"),
        ("aspects", ["scene"], "attention/weights are float32"),
    ],
)
def test_damaged_maps_are_named(tmp_path, name, value, problem):
    path = tmp_path / "records.h5"
    maps = [np.ones((2, h, w), "f4") for h, w in [(2, 3), (1, 1), (2, 2), (1, 3)]]
    write_emotion_records(path, make_records(), CATEGORIES, ("scene", "object"), maps)
    with h5py.File(path, "a") as file:
        del file["attention"][name]
        file["attention"].create_dataset(name, data=value)
    with pytest.raises(DataError, match=problem):
        read_maps(path, ["test/0"])


def test_no_samples_are_damage(tmp_path):
    write_emotion_records(tmp_path / "records.h5", [], CATEGORIES, (), ())
    with pytest.raises(DataError, match="holds no sample"):
        read_records_file(tmp_path / "records.h5")


def test_a_failure_leaves_the_old_file(tmp_path):
    write_emotion_records(tmp_path / "records.h5", make_records(), CATEGORIES, (), ())
    before = (tmp_path / "records.h5").read_bytes()
    with pytest.raises(ValueError, match="reshape"):  # two scores, three categories
        records = [Record("x", "fear", "fear", scores=(0.0, 1.0))]
        write_emotion_records(tmp_path / "records.h5", records, CATEGORIES, (), ())
    assert (tmp_path / "records.h5").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
