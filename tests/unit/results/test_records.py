"""records.h5: what was scored comes back, whole or not at all, maps included."""

import contextlib

import h5py
import numpy as np
import pytest

from masp.errors import DataError, InputError
from masp.results.attention_maps import AttentionFile, read_attention
from masp.results.ledger_format import Record
from masp.results.records import DataDigests, read_maps, read_records_file, write_target_records

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
    write_target_records(tmp_path / "records.h5", records, CATEGORIES, (), ())
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
    write_target_records(tmp_path / "records.h5", make_records(scored=False), CATEGORIES, (), ())
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
    write_target_records(tmp_path / "r.h5", make_records(), CATEGORIES, ("scene", "object"), iter(attended))
    maps = read_maps(tmp_path / "r.h5", read_records_file(tmp_path / "r.h5"), ["test/2", "test/0", "test/9"])
    assert sorted(maps) == ["test/0", "test/2"] and list(maps["test/2"]) == ["scene", "object"]
    assert np.array_equal(maps["test/2"]["object"], attended[2][1]) and maps["test/0"]["scene"].shape == (2, 3)


def test_what_cannot_be_read_says_what_to_run(tmp_path):
    with pytest.raises(InputError, match="masp evaluate"):
        read_records_file(tmp_path / "none.h5")
    (tmp_path / "records.h5").write_bytes(b"no hdf5")
    with pytest.raises(DataError, match="records.h5 is damaged: .*; delete it"):
        read_records_file(tmp_path / "records.h5")
    with pytest.raises(DataError, match="/etc/passwd is damaged: .*; or not a records.h5 that") as error:
        read_records_file("/etc/passwd")
    assert "delete" not in str(error.value)


def replace(path, name, value):
    """Give a dataset another value, whatever the digest says; None makes a group of it."""
    with h5py.File(path, "a") as file:
        del file[name]
        file.create_group(name) if value is None else file.create_dataset(name, data=value)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("label", np.array([b"fear"] * 3), "lengths differ: sample_key 4, label 3"),
        ("label", np.array([b"fear"] * 4), "its content is not that of its digest"),
        ("label", ["fear"] * 4, "label is object; must be strings of fixed length"),
        ("sample_key", [1, 2, 3, 4], "sample_key is int64; must be strings of fixed length"),
        ("scores", None, "scores is not a dataset"),
        ("scores", [[0.0] * 3] * 3, "scores is float64; must be float32"),
        ("scores", np.zeros((4, 3), "f4"), "its content is not that of its digest"),
        ("mean_scores", np.zeros((4, 3), "f4"), "its content is not that of its digest"),
        ("scores", np.zeros((4, 2), "f4"), "scores has the shape"),
        ("categories", np.zeros((3, 3), "S2"), "categories has the shape"),
        ("categories", np.zeros(0, "S2"), "it holds no category"),
        ("label", "fear", "label is object"),
    ],
)
def test_foreign_and_damaged_datasets_are_named(tmp_path, name, value, problem):
    path = tmp_path / "records.h5"
    write_target_records(path, make_records(), CATEGORIES, (), ())
    replace(path, name, value)
    with pytest.raises(DataError, match=f"{path} is damaged: .*{problem}"):
        read_records_file(path)


def test_a_key_that_occurs_twice_is_damage(tmp_path):
    write_target_records(tmp_path / "records.h5", [make_records()[0]] * 2, CATEGORIES, (), ())
    with pytest.raises(DataError, match="a sample_key occurs twice"):
        read_records_file(tmp_path / "records.h5")


@pytest.mark.parametrize("num_flips", [100, pytest.param(1500, marks=pytest.mark.full)])
def test_every_flipped_bit_is_found_or_harmless(tmp_path, num_flips):
    path = tmp_path / "records.h5"
    maps = [np.ones((1, 2, 3), "f4") / 6] * 4
    write_target_records(path, make_records(), CATEGORIES, ("scene",), maps, DataDigests("a" * 64, "b" * 64))
    whole = path.read_bytes()
    records = read_records_file(path)

    def read():
        found = read_records_file(path)
        values = {name: column.tolist() for name, column in found.columns.items()}
        maps = read_maps(path, found, [found.keys[0]])
        return values, found.categories, found.scores.tolist(), found.aspects, found.data, found.digest, repr(maps)

    expected, found = read(), 0
    assert records.digest == expected[5]
    for place in [*range(0, len(whole), max(1, len(whole) // num_flips))]:
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            assert read() == expected, place
        except DataError as error:
            assert str(error).count("\n") == 0
            found += 1
    assert found > num_flips // 20


def _claim(file, name, **settings):
    del file[name]
    file.create_dataset(name, **settings)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda file, other: _claim(file, "scores", shape=(4, 3), dtype="f4", chunks=(4, 3)),
            "scores claims .* bytes; the file holds 0",
        ),
        (
            lambda file, other: _claim(file, "label", shape=(4,), dtype="S8", external=[(other, 0, 32)]),
            "the values of label are in another file",
        ),
        (
            lambda file, other: file.move("scores", "more") or file.__setitem__("scores", h5py.SoftLink("/more")),
            "it holds no scores",
        ),
        (
            lambda file, other: file.__delitem__("label") or file.__setitem__("label", h5py.ExternalLink(other, "/x")),
            "it holds no label",
        ),
        (lambda file, other: file.attrs.__setitem__("made_by", 3), "its made_by must be a string"),
    ],
)
def test_what_a_file_claims_or_keeps_elsewhere_is_not_read(tmp_path, change, problem):
    path, other = tmp_path / "records.h5", tmp_path / "private"
    other.write_bytes(b"a secret" * 4)
    write_target_records(path, make_records(), CATEGORIES, (), (), DataDigests("a", "b"))
    with h5py.File(path, "a") as file:
        change(file, str(other))
    with pytest.raises(DataError, match=problem) as error:
        read_records_file(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("version", [4, "1", [1, 1], None])
def test_another_format_is_refused(tmp_path, version):
    path = tmp_path / "records.h5"
    write_target_records(path, make_records(), CATEGORIES, (), ())
    with h5py.File(path, "a") as file:
        del file.attrs["format_version"]
        if version is not None:
            file.attrs["format_version"] = version
    with pytest.raises(DataError, match="its format_version is .*, its digest is one of 2"):
        read_records_file(path)
    with h5py.File(path, "a") as file:
        file.attrs["digest"] = np.bytes_("4:" + "0" * 64)
    with pytest.raises(InputError, match="format_version is .*, this version of MASP reads up to 3"):
        read_records_file(path)


def test_files_of_the_previous_version_are_refused_with_what_to_run(tmp_path):
    path = tmp_path / "records.h5"
    with h5py.File(path, "w") as file:
        file.attrs["format_version"] = 1
        file.create_dataset("sample_key", data=["test/0"])
    with pytest.raises(InputError, match="format 1 of an earlier version, .* run the same `masp evaluate` again"):
        read_records_file(path)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("weights", np.zeros((13, 3), "f4"), "attention/weights has the shape"),
        ("weights", np.zeros((14, 2), "i4"), "attention/weights is int32"),
        ("weights", np.zeros((14, 2), "f4"), "the attention maps of sample 0 are not those of their checksum"),
        ("offsets", np.zeros(4, "i8"), "attention/offsets has the shape"),
        ("offsets", np.array([0, 6, 6, 14, 14]), "do not belong to attention/grid"),
        ("offsets", np.array([0.0, 6, 7, 15, 24]), "attention/offsets is float64"),
        ("grid", np.zeros((4, 2), "i4"), "do not belong to attention/grid"),
        ("crc32", np.zeros(4, "u4"), "its content is not that of its digest"),
        ("aspects", ["scene"], "attention/aspects is object"),
    ],
)
def test_damaged_maps_are_named(tmp_path, name, value, problem):
    path = tmp_path / "records.h5"
    maps = [np.ones((2, h, w), "f4") for h, w in [(2, 3), (1, 1), (2, 2), (1, 3)]]
    write_target_records(path, make_records(), CATEGORIES, ("scene", "object"), maps)
    replace(path, f"attention/{name}", value)
    with pytest.raises(DataError, match=problem):
        read_maps(path, read_records_file(path), ["test/0"])


def test_no_samples_are_damage(tmp_path):
    write_target_records(tmp_path / "records.h5", [], CATEGORIES, (), ())
    with pytest.raises(DataError, match="holds no sample"):
        read_records_file(tmp_path / "records.h5")


def test_a_failure_leaves_the_old_file(tmp_path):
    write_target_records(tmp_path / "records.h5", make_records(), CATEGORIES, (), ())
    before = (tmp_path / "records.h5").read_bytes()
    with pytest.raises(ZeroDivisionError):
        maps = (1 / 0 for _ in make_records())
        write_target_records(tmp_path / "records.h5", make_records(), CATEGORIES, ("scene",), maps)
    assert (tmp_path / "records.h5").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
