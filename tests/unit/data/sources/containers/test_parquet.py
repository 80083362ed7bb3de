"""Parquet files: columns of all rows without the images, and images by row group."""

import contextlib
import errno
import json
import multiprocessing
import os
import pickle
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from masp.data.image_files import cells
from masp.data.images import UnreadableImage, image_size, load_image, read_image_file
from masp.data.sources.containers import arrow_columns
from masp.data.sources.containers.parquet import ParquetSource
from masp.errors import InputError
from masp.files.regular import UnsuitableFile
from tests.unit.data.sources.containers.made import image, refused

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = ["amusement", "awe", "fear"]


def labels(names=NAMES, **more):
    features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}} | more
    return {"huggingface": json.dumps({"info": {"features": features}})}


def table(numbers, **columns):
    """Images with labels, as the hub has them."""
    images = [{"bytes": image(n), "path": f"{n}.png"} for n in numbers]
    label = pa.array([n % 3 for n in numbers], pa.int64())
    return pa.table({"image": pa.array(images, STRUCT), "label": label, **columns}).replace_schema_metadata(labels())


def write(root, name, content, **options):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, **options)
    return path


def source(root):
    return ParquetSource(root, sorted(root.rglob("*.parquet")))


@pytest.fixture
def root(tmp_path):
    """Seven images in two files with several row groups."""
    write(tmp_path, "data/train-00000-of-00001.parquet", table(range(5)), row_group_size=2)
    write(tmp_path, "data/validation-00000-of-00001.parquet", table(range(5, 7)), row_group_size=1)
    return tmp_path


def test_what_the_files_say(root):
    header = source(root).header()
    assert header.columns == ("image", "label") and header.image_columns == ("image",)
    assert header.label_names == {"label": tuple(NAMES)} and not header.rows_are_images


def test_rows(root):
    rows = source(root).read(["label"], "image", None)
    assert [rows.columns["label"][n] for n in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert rows.identities[:2] == [f"data/train-00000-of-00001/0000000{n}" for n in range(2)]
    assert rows.identities[5] == "data/validation-00000-of-00001/00000000"
    assert [rows.split_names[n] for n in (0, 4, 5)] == ["train", "train", "validation"]
    assert rows.where(5) == f"{root}/data/validation-00000-of-00001.parquet row 0"
    assert [rows.blocks.names[n] for n in rows.blocks.numbers] == [
        *(f"data/train-00000-of-00001#{n}" for n in (0, 0, 1, 1, 2)),
        *(f"data/validation-00000-of-00001#{n}" for n in (0, 1)),
    ]
    for number in (6, 0, 3, 5, 1):
        assert rows.places[number].read() == image(number)
        assert load_image(rows.places[number]).size == image_size(rows.places[number]) == (3, 2)


def test_places_travel(root):
    rows = source(root).read([], "image", None)
    part = pickle.loads(pickle.dumps(rows.places.part(np.array([6, 4]))))
    assert [part[n].read() for n in range(2)] == [image(6), image(4)]
    cell = pickle.loads(pickle.dumps(rows.places[2]))
    assert cell == rows.places[2] and cell.name == "row 2" and len(pickle.dumps(cell)) < 1000
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map(type(cell).read, [cell, rows.places[6]]) == [image(2), image(6)]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())])
def test_images_may_be_bytes(tmp_path, kind):
    content = pa.table({"img": pa.array([image(1), image(2), image(1)], pa.binary()).cast(kind)})
    write(tmp_path, "a.parquet", content)
    assert source(tmp_path).header().image_columns == ("img",)
    rows = source(tmp_path).read([], "img", None)
    assert [rows.places[n].read() for n in range(3)] == [image(1), image(2), image(1)]
    assert rows.split_names is None


def test_images_may_be_files(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(image(1))
    struct = [{"bytes": None, "path": "images/1.png"}, {"bytes": None, "path": "../secret"}, {"bytes": None}, None]
    write(tmp_path, "a.parquet", pa.table({"image": pa.array(struct, STRUCT), "file": ["images/./1.png"] * 4}))
    places = source(tmp_path).read([], "image", None).places
    assert places[0].read() == image(1)
    for number, words in ((1, "names '../secret'"), (2, "holds no image"), (3, "holds no image")):
        with pytest.raises(UnsuitableFile, match=words):
            places[number].open()
        with pytest.raises(UnreadableImage, match=words):
            load_image(places[number])
    rows = source(tmp_path).read([], "file", None)
    assert rows.paths == [f"{tmp_path}/images/1.png"] * 4 and rows.places is None
    write(tmp_path, "a.parquet", pa.table({"file": ["a.png", "/etc/passwd"]}))
    line = refused(lambda: source(tmp_path).read([], "file", None))
    assert "a.parquet row 1: column 'file' = '/etc/passwd': must be the path of a file, relative" in line


def test_kinds_of_values(tmp_path):
    from datetime import date
    from decimal import Decimal

    words = ["joy", None, "awe"]
    columns = {
        "text": pa.array(words),
        "large": pa.array(words, pa.large_string()),
        "view": pa.array(words, pa.string_view()),
        "coded": pa.array(words).dictionary_encode(),
        "flag": [True, None, False],
        "number": pa.array([0.5, None, 1.0], pa.float16()),
        "small": pa.array([3, None, 250], pa.uint8()),
        "tags": [["a", "b"], None, []],
        "votes": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int64(), 2)),
        "deep": [[["a"], []], None, [None, ["b", None]]],
        "nothing": pa.nulls(3),
        "day": [date(2026, 1, 2), None, None],
        "price": [Decimal("1.50"), None, None],
        "raw": [b"\xc3\xa4", None, b"x"],
        "image": pa.array([None] * 3, STRUCT),
    }
    write(tmp_path, "a.parquet", pa.table(columns))
    names = [name for name in columns if name != "image"]
    found = source(tmp_path).read(names, "image", None).columns
    values = {name: [column[row] for row in range(3)] for name, column in found.items()}
    for name in ("text", "large", "view", "coded"):
        assert values[name] == words
    assert values["flag"] == [True, None, False] and values["number"] == [0.5, None, 1.0]
    assert values["small"] == [3, None, 250] and values["tags"] == [("a", "b"), None, ()]
    assert values["votes"] == [(1, 2), None, (3, 4)]
    assert values["deep"] == [(("a",), ()), None, (None, ("b", None))]
    assert values["nothing"] == [None] * 3 and values["day"] == ["2026-01-02", None, None]
    assert values["price"] == ["1.50", None, None] and values["raw"] == ["ä", None, "x"]


def test_values_are_kept_once(tmp_path):
    write(tmp_path, "a.parquet", table(range(4), word=["a", "b", "a", "b"]), row_group_size=1)
    column = source(tmp_path).read(["word"], "image", None).columns["word"]
    assert list(column.values) == ["a", "b"] and column.codes.tolist() == [0, 1, 0, 1]


def test_lists_of_labels_have_names(tmp_path):
    feature = {"names": ["x", "y"], "_type": "ClassLabel"}
    for form in ({"feature": feature, "_type": "Sequence"}, {"feature": feature, "_type": "List"}, [feature]):
        content = table(range(1), tags=pa.array([[0, 1]])).replace_schema_metadata(labels(tags=form))
        write(tmp_path, "a.parquet", content)
        assert source(tmp_path).header().label_names["tags"] == ("x", "y")


def test_identities_of_a_column(tmp_path):
    write(tmp_path, "a.parquet", table(range(3), id=["x", "y", "z"], n=[3, 1, 2], half=[0.5, 1, 2]))
    assert source(tmp_path).read([], "image", "id").identities == ["x", "y", "z"]
    assert source(tmp_path).read([], "image", "n").identities == ["3", "1", "2"]
    assert "row 0: column 'half' = 0.5: must name the image" in refused(
        lambda: source(tmp_path).read([], "image", "half")
    )
    write(tmp_path, "b.parquet", table(range(3), id=["u", "x", None], n=[4, 5, 6], half=[0.5, 1, 2]))
    assert "b.parquet row 2: column 'id' = null" in refused(lambda: source(tmp_path).read([], "image", "id"))
    write(tmp_path, "b.parquet", table(range(2), id=["u", "x"], n=[4, 5], half=[0.5, 1]))
    line = refused(lambda: source(tmp_path).read([], "image", "id"))
    assert f"b.parquet row 1: column 'id' = 'x' names {tmp_path}/a.parquet row 0, too" in line


def test_files_must_have_the_same_columns(root):
    other = root / "data/validation-00000-of-00001.parquet"
    pq.write_table(table(range(2), more=["a", "b"]), other)
    assert f"{root}/data/train-00000-of-00001.parquet: lacks the column 'more', which {other} has" in refused(
        source(root).header
    )
    pq.write_table(table(range(2)).drop_columns("label"), other)
    assert f"{other}: lacks the column 'label'" in refused(source(root).header)
    pq.write_table(table(range(2)).set_column(1, "label", pa.array(["a", "b"])), other)
    assert f"{other}: column 'label' has text, in" in refused(source(root).header)
    pq.write_table(table(range(2)).replace_schema_metadata(labels(NAMES[::-1])), other)
    assert "the names of the numbers in column 'label' are ('fear', 'awe', 'amusement'), in" in refused(
        source(root).header
    )
    pq.write_table(table(range(2)).set_column(1, "label", pa.nulls(2)), other)  # nothing is known in this file
    assert source(root).read(["label"], "image", None).columns["label"].codes.tolist()[-2:] == [-1, -1]


def test_what_is_not_a_parquet_file(tmp_path):
    path = tmp_path / "a.parquet"
    for content, words in (
        (b"", "is empty"),
        (b"PAR1", "damaged, or not a parquet file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "fetch it with `git lfs pull`"),
        (b"\x1f\x8b123456", "is compressed; decompress it with `gzip -d`"),
        (b"anything", "is not a parquet file (it starts with b'anything')"),
    ):
        path.write_bytes(content)
        line = refused(source(tmp_path).header)
        assert line.startswith(f"{path}: ") and words in line
    path.unlink()
    path.mkdir()
    assert "not a regular file" in refused(source(tmp_path).header)
    path.rmdir()
    os.mkfifo(path)
    assert "not a regular file" in refused(source(tmp_path).header)
    assert "No such file" in refused(ParquetSource(tmp_path, [tmp_path / "b.parquet"]).header)
    assert "holds no file NAME.parquet" in refused(lambda: ParquetSource(tmp_path, []))
    assert "must be a file below" in refused(lambda: ParquetSource(tmp_path / "x", [tmp_path / "b.parquet"]))


def test_pyarrow_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow_columns.importlib.util, "find_spec", lambda name: None)
    line = refused(lambda: ParquetSource(tmp_path, [tmp_path / "a.parquet"]))
    assert line.endswith("needs pyarrow; install it with `pip install pyarrow`")


def test_no_rows(tmp_path):
    write(tmp_path, "a.parquet", table(range(0)))
    rows = source(tmp_path).read(["label"], "image", None)
    assert len(rows) == 0 and len(rows.columns["label"]) == 0 and not len(rows.blocks.numbers)


def test_a_file_that_changes(root):
    opened = source(root)
    rows = opened.read([], "image", None)
    assert rows.places[0].read() == image(0)
    path = root / "data/train-00000-of-00001.parquet"
    pq.write_table(table(range(10, 15)), path, row_group_size=2)
    with pytest.raises(OSError) as error:
        rows.places[2].open()
    assert error.value.errno == errno.ESTALE
    assert "has changed while it was read" in refused(lambda: opened.read([], "image", None))


def test_text_must_be_utf8(tmp_path):
    words = pa.array([b"a"] * 5 + [b"\xff\xfe", b"b"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), len(words), words.buffers())
    write(tmp_path, "a.parquet", table(range(7), word=broken))
    assert "a.parquet row 5: column 'word' is damaged" in refused(
        lambda: source(tmp_path).read(["word"], "image", None)
    )
    write(tmp_path, "a.parquet", table(range(2), word=["x", "y" * (1 << 20) + "z"]))
    assert "row 1: column 'word' is damaged: 'yyyy" in refused(lambda: source(tmp_path).read(["word"], "image", None))
    write(tmp_path, "a.parquet", table(range(1), word=pa.array([{"a": 1}])))
    assert "a.parquet: column 'word' has struct<a: int64>; must have text, numbers" in refused(
        lambda: source(tmp_path).read(["word"], "image", None)
    )
    assert "column 'label' has integers: the column of the images must" in refused(
        lambda: source(tmp_path).read([], "label", None)
    )


def test_few_groups_and_files_are_kept(tmp_path, monkeypatch):
    count = cells.MAX_OPEN_FILES + 3
    for number in range(count):
        write(tmp_path, f"{number:02d}.parquet", table(range(number, number + 2)))
    monkeypatch.setattr(cells, "MAX_CACHED_BYTES", 300)
    monkeypatch.setattr(cells, "_groups", cells._Groups())
    places = source(tmp_path).read([], "image", None).places
    before = len(os.listdir("/proc/self/fd"))
    for row in [*range(2 * count), 0]:
        assert places[row].read() == image(row // 2 + row % 2)
    assert len(os.listdir("/proc/self/fd")) <= before + cells.MAX_OPEN_FILES
    assert 1 <= len(cells._groups._groups) < 4


def test_large_row_groups_are_refused(tmp_path, monkeypatch):
    write(tmp_path, "a.parquet", table(range(4)))
    monkeypatch.setattr("masp.data.sources.containers.parquet.MAX_CHUNK_BYTES", 100)
    line = refused(lambda: source(tmp_path).read([], "image", None))
    assert "row group 0 has" in line and "row_group_size=1000" in line


def test_pages_that_claim_too_much_are_not_decoded(tmp_path, monkeypatch):
    """Pages that zstd makes a thousand times larger, in a column of text and in the one of the images."""
    content = pa.table({"image": [image(1)] * 9, "big": [b"\0" * 100_000] * 9, "word": ["x" * 100_000] * 9})
    path = tmp_path / "a.parquet"
    pq.write_table(content, path, compression="zstd", use_dictionary=False)
    monkeypatch.setattr("masp.data.image_files.parquet_pages.MAX_CHUNK_BYTES", 1 << 19)
    monkeypatch.setattr(cells, "_groups", cells._Groups())
    assert "its pages claim more than" in refused(lambda: source(tmp_path).read(["word"], "image", None))
    assert source(tmp_path).read([], "image", None).places[3].read() == image(1)
    with pytest.raises(UnreadableImage, match="row group 0 is damaged: its pages claim more than"):
        load_image(source(tmp_path).read([], "big", None).places[0])


def test_values_that_a_dictionary_repeats_are_decoded_a_few_at_a_time(tmp_path, monkeypatch):
    images = [image(1), image(2)] * 50
    write(tmp_path, "a.parquet", pa.table({"image": images, "path": ["a/b"] * 100}))
    monkeypatch.setattr(cells, "MAX_CHUNK_BYTES", 1000)
    monkeypatch.setattr(cells, "_groups", cells._Groups())
    places = source(tmp_path).read([], "image", None).places
    with pytest.raises(UnreadableImage, match="its images take more than"):
        load_image(places[0])


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", "PLAIN"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_encodings(tmp_path, encoding, version):
    content = pa.table({"image": [image(n) for n in range(600)], "word": [f"word {n}" for n in range(600)]})
    options = {"column_encoding": encoding, "use_dictionary": False, "data_page_version": version}
    write(tmp_path, "a.parquet", content, **options, data_page_size=300)
    rows = source(tmp_path).read(["word"], "image", None)
    assert rows.columns["word"][599] == "word 599" and rows.places[300].read() == image(300)


def test_damaged_images_are_told_from_disks_that_fail(tmp_path):
    path = write(tmp_path, "a.parquet", table(range(4)), compression="zstd", use_dictionary=False, row_group_size=2)
    group = pq.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = group.data_page_offset
    content[start + 40 : start + group.total_compressed_size - 5] = os.urandom(group.total_compressed_size - 45)
    path.write_bytes(content)
    places = source(tmp_path).read(["label"], "image", None).places
    assert places[1].read() == image(1)
    for _ in range(2):
        with pytest.raises(UnreadableImage, match="row group 1 is damaged"):
            load_image(places[2])


@pytest.mark.parametrize("options", [{}, {"compression": "zstd", "row_group_size": 3, "data_page_version": "2.0"}])
def test_a_changed_byte_is_one_line_or_another_value(tmp_path, options):
    columns = {"word": [f"word {n % 4}" for n in range(12)], "tags": [["a", "b"][: n % 3] for n in range(12)]}
    path = write(tmp_path, "a.parquet", table(range(12), **columns), **options)
    whole, dice, num_refused = path.read_bytes(), random.Random(7), 0
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(dice.choice((1, 1, 8))):
            start = dice.choice((4, footer))
            content[dice.randrange(start, len(content))] = dice.choice((0, 1, 127, 255, dice.randrange(256)))
        if dice.random() < 0.1:
            del content[dice.randrange(len(content)) :]
        path.write_bytes(content)
        try:
            opened = source(tmp_path)
            header = opened.header()
            known = [name for name in ("label", "word", "tags") if name in header.columns]
            rows = opened.read(known, next(iter(header.image_columns), None), None)
        except InputError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            num_refused += 1
            continue
        for row in range(len(rows)):
            with contextlib.suppress(UnreadableImage):
                read_image_file(rows.places[row])
    assert 20 < num_refused < 150


def test_the_process_survives_a_footer_that_ends_arrow(tmp_path):
    """Arrow's Python interface to the metadata of a column ends the process where a histogram has another length."""
    path = write(tmp_path, "a.parquet", table(range(12), tags=[["a"]] * 12))
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    # The elements of lists are made to be never null, which the histogram of their levels contradicts.
    changed = whole[footer:].replace(b"\x25\x02\x18\x07element", b"\x25\x00\x18\x07element")
    assert changed != whole[footer:]
    path.write_bytes(whole[:footer] + changed)
    line = refused(lambda: source(tmp_path).read(["tags"], "image", None))
    assert "damaged, or not a parquet file that can be read" in line
