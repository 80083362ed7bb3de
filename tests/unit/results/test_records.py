"""records.h5: what was scored comes back, whole or not at all, maps included."""

import h5py
import numpy as np
import pytest

from masp.errors import DataError, InputError
from masp.results.attention_maps import AttentionFile, read_attention
from masp.results.records import read_maps, read_records_file, write_aspect_records, write_emotion_records

CATEGORIES = ("fear", "joy", "quiet €")


def make_records(count=4, scored=True):
    rng = np.random.default_rng(0)
    return [
        {
            "sample_key": f"test/{i}", "label": CATEGORIES[i % 3], "prediction": CATEGORIES[0] if i else None,
            "scores": rng.normal(size=3).astype("f4").tolist() if scored else None,
            "mean_scores": rng.normal(size=3).astype("f4").tolist() if scored else None,
            "text": None if scored else "a\0b\udc80 €",
        }
        for i in range(count)
    ]  # fmt: skip


def test_the_datasets_that_others_read(tmp_path):
    records = make_records()
    write_emotion_records(tmp_path / "records.h5", records, CATEGORIES, (), ())
    with h5py.File(tmp_path / "records.h5") as file:
        assert [k.decode() for k in file["sample_key"]] == [r["sample_key"] for r in records]
        assert file["label"].asstr()[:].tolist() == [r["label"] for r in records]
        assert file["categories"].asstr()[:].tolist() == list(CATEGORIES)
        assert file["scores"].shape == (4, 3) and "attention" not in file
        assert file["scores"][:].tolist() == [r["scores"] for r in records]
        assert file["mean_scores"][:].tolist() == [r["mean_scores"] for r in records]
    found = read_records_file(tmp_path / "records.h5")
    assert found.keys == [r["sample_key"] for r in records] and found.categories == CATEGORIES
    assert found.predictions == [None, *["fear"] * 3]
    assert [p.name for p in tmp_path.iterdir()] == ["records.h5"]


def test_generated_lines_have_texts_and_no_scores(tmp_path):
    write_emotion_records(tmp_path / "records.h5", make_records(scored=False), CATEGORIES, (), ())
    assert np.isnan(read_records_file(tmp_path / "records.h5").scores).all()
    with h5py.File(tmp_path / "records.h5") as file:
        assert file["text"].asstr()[0] == "a\N{REPLACEMENT CHARACTER}b\\udc80 €"


def test_maps_of_any_size_go_through_the_ledgers_file_into_the_records(tmp_path):
    rng = np.random.default_rng(1)
    looks = [rng.random((2, h, w)).astype("f4") for h, w in [(2, 3), (1, 1), (4, 2), (3, 3)]]
    for half in (looks[:2], looks[2:]):  # a second call appends
        with AttentionFile(tmp_path, "rank-0") as file:
            where = [file.append(look) for look in half]
        assert all(np.array_equal(read_attention(tmp_path, w), look) for w, look in zip(where, half, strict=True))
    write_emotion_records(tmp_path / "r.h5", make_records(), CATEGORIES, ("scene", "object"), iter(looks))
    maps = read_maps(tmp_path / "r.h5", ["test/2", "test/0", "test/9"])
    assert sorted(maps) == ["test/0", "test/2"] and list(maps["test/2"]) == ["scene", "object"]
    assert np.array_equal(maps["test/2"]["object"], looks[2][1]) and maps["test/0"]["scene"].shape == (2, 3)


def test_a_damaged_map_is_named(tmp_path):
    with AttentionFile(tmp_path, "rank-0") as file:
        where = file.append(np.ones((1, 2, 2), "f4"))
    path = tmp_path / "rank-0.attention"
    for data in (path.read_bytes()[:-1], b"\1" + path.read_bytes()[1:]):
        path.write_bytes(data)
        with pytest.raises(DataError, match="rank-0.attention is damaged .* rank-0.jsonl"):
            read_attention(tmp_path, where)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_attention(tmp_path, where)


def test_stage_1_has_scores_where_answers_were_compared(tmp_path):
    records = [
        {"key": "test/a", "aspect": "brightness", "label": "low", "prediction": "high", "scores": [0.0, 1.0],
         "mean_scores": [0.0, 1.0]},
        {"key": "test/a", "aspect": "object", "label": "dog, tree", "prediction": "dog", "text": "dog"},
    ]  # fmt: skip
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
    with pytest.raises(DataError, match="/etc/passwd is damaged or no file of MASP: .*; name a records.h5") as error:
        read_records_file("/etc/passwd")
    assert "delete" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("label", ["fear"] * 3, "lengths differ: sample_key 4, label 3"),
        ("sample_key", [1, 2, 3, 4], "sample_key is no list of texts"),
        ("sample_key", ["a"] * 4, "sample_key occurs twice"),
        ("scores", None, "scores is no dataset"),
        ("scores", [[0.0] * 3] * 3, "scores are float64"),
        ("scores", [["x"] * 3] * 4, "scores are object"),
        ("label", "fear", "label is no list of texts"),
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


def test_no_samples_are_damage(tmp_path):
    write_emotion_records(tmp_path / "records.h5", [], CATEGORIES, (), ())
    with pytest.raises(DataError, match="holds no sample"):
        read_records_file(tmp_path / "records.h5")


def test_a_failure_leaves_the_old_file(tmp_path):
    write_emotion_records(tmp_path / "records.h5", make_records(), CATEGORIES, (), ())
    before = (tmp_path / "records.h5").read_bytes()
    with pytest.raises(KeyError):
        write_emotion_records(tmp_path / "records.h5", [{"sample_key": "x"}], CATEGORIES, (), ())
    assert (tmp_path / "records.h5").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
