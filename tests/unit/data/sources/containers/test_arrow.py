"""What `datasets` saves: the files that it names, images by their places in them, and damaged files."""

import json
import os
import pickle
import random

import numpy as np
import pyarrow as pa
import pytest

from masp.config.schema import DatasetConfig
from masp.data.datasets import list_dataset
from masp.data.image_files.stored import Section
from masp.data.images import UnreadableImage, load_image
from masp.data.sources.containers.arrow import ArrowSource
from masp.errors import InputError
from masp.files.regular import UnsuitableFile
from tests.unit.data.sources.containers.made import image, refused

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {"label": {"names": ["awe", "fear"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}


def table(numbers, **columns):
    images = [{"bytes": image(n), "path": f"{n}.png"} for n in numbers]
    return pa.table({"image": pa.array(images, STRUCT), "label": [n % 2 for n in numbers], **columns})


def write(path, content, rows=2, **options):
    with pa.OSFile(str(path), "wb") as file:
        with pa.ipc.new_stream(file, content.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
            writer.write_table(content, max_chunksize=rows)


def save(directory, *tables, split=None, features=FEATURES, **options):
    """Write a dataset of a file per table."""
    directory.mkdir(parents=True, exist_ok=True)
    names = [f"data-{number:05d}-of-{len(tables):05d}.arrow" for number in range(len(tables))]
    for name, content in zip(names, tables, strict=True):
        write(directory / name, content, **options)
    state = {"_data_files": [{"filename": name} for name in names], "_split": split, "_fingerprint": "0"}
    (directory / "state.json").write_text(json.dumps(state))
    (directory / "dataset_info.json").write_text(json.dumps({"features": features, "description": ""}))
    return directory


@pytest.fixture
def root(tmp_path):
    """Two splits, the first one in two files."""
    save(tmp_path / "training", table(range(3)), table(range(3, 5)), split="train")
    save(tmp_path / "test", table(range(5, 7)))
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["training", "test"]}))
    return tmp_path


def test_rows(root):
    source = ArrowSource(root)
    header = source.header()
    assert header.columns == ("image", "label") and header.image_columns == ("image",)
    assert header.label_names == {"label": ("awe", "fear")}
    rows = source.read(["label"], "image", None)
    assert [rows.columns["label"][n] for n in range(7)] == [0, 1, 0, 1, 0, 1, 0]
    assert rows.identities[3] == "training/data-00001-of-00002/00000000"
    assert [rows.split_names[n] for n in (0, 4, 5)] == ["training", "training", "test"]
    assert rows.where(4) == f"{root}/training/data-00001-of-00002.arrow row 1" and rows.blocks is None
    assert [rows.places[n].read() for n in range(7)] == [image(n) for n in range(7)]
    assert isinstance(rows.places[0], Section) and load_image(rows.places[6]).size == (3, 2)
    part = pickle.loads(pickle.dumps(rows.places.part(np.array([6, 1]))))
    assert [part[n].read() for n in range(2)] == [image(6), image(1)]


def test_the_order_is_that_of_the_state(tmp_path):
    save(tmp_path, table(range(2)), table(range(2, 4)), split="validation")
    state = json.loads((tmp_path / "state.json").read_text())
    state["_data_files"].reverse()
    (tmp_path / "state.json").write_text(json.dumps(state))
    rows = ArrowSource(tmp_path).read([], "image", None)
    assert rows.places[0].read() == image(2) and rows.split_names[3] == "validation"


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_images_that_rows_do_not_hold(tmp_path, kind):
    struct = pa.struct([("bytes", kind), ("path", pa.large_string())])
    images = [
        {"bytes": None, "path": "images/a.png"},
        {"bytes": image(1), "path": None},
        None,
        {"bytes": None, "path": "/a.png"},
    ]
    save(tmp_path, pa.table({"image": pa.array(images * 2, struct)}), rows=3)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(image(9))
    places = ArrowSource(tmp_path).read([], "image", None).places
    for part, numbers in ((places, (4, 5, 6, 7)), (places.part(np.array([7, 6, 5, 4])), (3, 2, 1, 0))):
        assert part[numbers[0]].read() == image(9) and part[numbers[1]].read() == image(1)
        with pytest.raises(UnsuitableFile, match="holds no image"):
            part[numbers[2]].open()
        with pytest.raises(UnreadableImage, match="row 7: cannot read this image: names '/a.png'; must be"):
            load_image(part[numbers[3]])


def test_columns_as_in_parquet_files(tmp_path):
    words = pa.array(["x", "y", "x"])
    columns = {"word": words.dictionary_encode(), "tags": [["a"], None, []], "file": ["1.png", "2.png", "3.png"]}
    save(tmp_path, table(range(3), **columns), features=None)
    rows = ArrowSource(tmp_path).read(["word", "tags"], "file", "file")
    assert [rows.columns["word"][n] for n in range(3)] == ["x", "y", "x"]
    assert [rows.columns["tags"][n] for n in range(3)] == [("a",), None, ()]
    assert rows.paths[1] == f"{tmp_path}/2.png" and rows.identities == ["1.png", "2.png", "3.png"]


def test_names_of_labels_may_be_in_the_files(tmp_path):
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    save(tmp_path, table(range(3)).replace_schema_metadata(metadata))
    (tmp_path / "dataset_info.json").unlink()
    assert ArrowSource(tmp_path).header().label_names == {"label": ("awe", "fear")}


def test_descriptions_that_are_not_valid(root):
    path = root / "dataset_dict.json"
    for text, words in (
        ("[]", "must be a JSON object"),
        ("{", "is not valid JSON"),
        ('{"splits": []}', "must be a list of different names"),
        ('{"splits": ["../test"]}', "must be names in this directory"),
        ('{"splits": ["no"]}', "no/state.json: cannot be read: No such file"),
    ):
        path.write_text(text)
        assert words in refused(ArrowSource(root).header)
    path.unlink()
    assert "state.json: cannot be read: No such file or directory; a dir" in refused(ArrowSource(root).header)
    state = root / "test/state.json"
    for text, words in (
        ('{"_data_files": []}', "must be a list of files"),
        ('{"_data_files": [{"filename": "/etc/passwd"}]}', "must be names in this directory"),
        ('{"_data_files": [{"filename": "a.arrow"}], "_indices_data_files": [1]}', "load and save it"),
    ):
        state.write_text(text)
        assert words in refused(ArrowSource(root / "test").header)


def found(root):
    return list_dataset(DatasetConfig(root=str(root)), {}).whole()


@pytest.mark.parametrize("lost", [[], ["state.json"], ["dataset_dict.json"], ["dataset_dict.json", "state.json"]])
def test_descriptions_that_are_missing(root, lost):
    """A directory that was copied without them, and the cache of `load_dataset`, which never has them."""
    for path in [path for name in lost for path in root.rglob(name)]:
        path.unlink()
    (root / "training/cache-0123456789abcdef.arrow").write_text("what map() left")
    dataset = found(root)
    assert [(s.key, s.category) for s in dataset.samples] == [
        ("test/test/data-00000-of-00001/00000000", "fear"),
        ("test/test/data-00000-of-00001/00000001", "awe"),
        ("train/training/data-00000-of-00002/00000000", "awe"),
        ("train/training/data-00000-of-00002/00000001", "fear"),
        ("train/training/data-00000-of-00002/00000002", "awe"),
        ("train/training/data-00001-of-00002/00000000", "fear"),
        ("train/training/data-00001-of-00002/00000001", "awe"),
    ]


def test_files_by_their_names(root):
    assert len(found(root / "training/data-00001-of-00002.arrow").samples) == 2
    (root / "training/state.json").write_text('{"_data_files": [{"filename": "a.arrow"}], "_indices_data_files": [1]}')
    assert "load and save it" in refused(lambda: found(root / "training/data-00001-of-00002.arrow"))


def test_a_file_that_the_others_count_is_missing(root):
    (root / "training/state.json").unlink()
    (root / "training/data-00000-of-00002.arrow").unlink()
    (finding,) = (each for each in found(root).findings if each.kind == "missing")
    assert finding.serious and "1 more should be there" in finding.text
    assert finding.examples == ("training/data-00000-of-00002",)


def test_what_is_not_a_whole_stream(tmp_path):
    save(tmp_path, table(range(5)))
    path = tmp_path / "data-00000-of-00001.arrow"
    whole = path.read_bytes()

    def line(content):
        path.write_bytes(content)
        return refused(lambda: ArrowSource(tmp_path).read(["label"], "image", None))

    assert "is cut short: it ends after 4 messages" in line(whole[:-8])
    assert "damaged, or not an arrow file" in line(whole[:-300])
    assert "7 bytes come after its end" in line(whole + b"another")
    assert "is empty" in line(b"") and "is not an arrow file" in line(b"something")
    assert "is a Feather file" in line(b"ARROW1\0\0")
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in refused(ArrowSource(tmp_path).header)


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_files_are_refused_before_anything_is_decompressed(tmp_path, codec):
    save(tmp_path, table(range(5)), compression=codec)
    assert "its values are compressed; save it without" in refused(ArrowSource(tmp_path).header)
    words = pa.table({"image": [image(1)], "word": pa.array(["x"]).dictionary_encode()})
    save(tmp_path, words, compression=codec)
    assert "its values are compressed; save it without" in refused(ArrowSource(tmp_path).header)


def test_a_changed_byte_is_one_line_or_another_value(tmp_path):
    words = pa.array(["x", "y", "z"] * 2)
    columns = {"word": words, "coded": words.dictionary_encode(), "tags": [["a"], None, ["b", "c"]] * 2}
    save(tmp_path, table(range(6), **columns), features=None)
    path = tmp_path / "data-00000-of-00001.arrow"
    whole, dice, num_refused = path.read_bytes(), random.Random(3), 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(dice.choice((1, 1, 8))):
            content[dice.randrange(len(content))] = dice.choice((0, 1, 127, 255, dice.randrange(256)))
        if dice.random() < 0.2:
            del content[dice.randrange(len(content)) :]
        path.write_bytes(content)
        try:
            source = ArrowSource(tmp_path)
            rows = source.read(source.header().columns[1:], "image", None)
        except InputError as error:
            assert "\n" not in str(error) and path.name in str(error)
            num_refused += 1
        else:
            for number in range(len(rows)):
                place = rows.places[number]
                assert place.num_bytes is None or place.offset + place.size <= len(content)
    assert 50 < num_refused < 300
