"""Which kind of dataset there is, by looking."""

import pytest

from masp.config import load_aspects
from masp.config.schema import DatasetConfig
from masp.data.sources.find import find_dataset
from masp.errors import InputError


def files(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("image,label\n" if name.endswith(".csv") else "")
    return root


def find(root, **settings):
    return find_dataset(DatasetConfig(root=str(root), **settings), load_aspects())


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["train/joy/a.jpg"], "folders"),
        (["joy/a.jpg", "fear/b.png"], "folders"),
        (["images/joy/deep/a.jpg", "README.md"], "folders"),
        (["train.json", "image/joy/a.jpg"], "emoset"),
        (["labels.csv", "images/a.jpg"], "table"),
        (["train.tsv.csv", "joy/a.jpg"], "table"),
        (["00000.tar", "00000.parquet", "00000_stats.json"], "webdataset"),
        (["data/train-00000-of-00001.parquet", "README.md"], "parquet"),
        (["train.parquet", "test.parquet"], "parquet"),
        (["dataset_dict.json", "train/data-00000-of-00001.arrow", "train/state.json"], "arrow"),
        (["state.json", "dataset_info.json", "data-00000-of-00001.arrow"], "arrow"),
    ],
)
def test_what_is_found(tmp_path, names, kind):
    assert find(files(tmp_path, *names)).format == kind
    assert find(tmp_path, format=kind).format == kind


def test_a_stray_table_beside_folders_is_none(tmp_path):
    files(tmp_path, "train/joy/a.jpg")
    (tmp_path / "results.csv").write_text("epoch,loss\n1,2\n")
    assert find(tmp_path).format == "folders"


def test_patterns_and_files(tmp_path):
    files(tmp_path, "a/0.tar", "a/1.tar", "a/10.tar", "b/0.tar")
    assert [file.name for file in find(tmp_path / "a/*.tar").files] == ["0.tar", "1.tar", "10.tar"]
    found = find(f"{tmp_path}/a/{{0..1}}.tar")
    assert [file.name for file in found.files] == ["0.tar", "1.tar"] and found.root == tmp_path / "a"
    found = find(f"{tmp_path}/{{a,b}}/0.tar")
    assert found.root == tmp_path and [str(file.parent.name) for file in found.files] == ["a", "b"]
    assert find(tmp_path / "a/1.tar").root == tmp_path / "a"


@pytest.mark.parametrize(
    ("names", "root", "settings", "message"),
    [
        ([], "gone", {}, "no such directory"),
        ([], "", {}, "is empty; a dataset has"),
        (["x.txt"], "", {}, "holds x.txt; a dataset has"),
        (["x.txt"], "x.txt", {}, "has only one kind of them"),
        (["train.json", "test/joy/a.jpg"], "", {}, "several formats, emoset (train.json), folders"),
        (["a.csv", "b.tar"], "", {}, "several formats, webdataset (b.tar), table (a.csv); dataset.format chooses one"),
        (["a.tar"], "", {"format": "parquet"}, "holds nothing of the format parquet; but webdataset"),
        (["a.tar"], "a.tar", {"format": "table"}, "a.tar is of the format webdataset"),
        (["a.tar"], "*.parquet", {}, "no such file"),
        (["0.tar"], "{0..3}.tar", {}, "no such file"),
        (["a.tar", "b.csv"], "*", {}, "has only one kind of them"),
        (["data.zip"], "", {}, "'data.zip': unpack it first"),
        (["data.zip"], "data.zip", {}, "'data.zip': unpack it first"),
        (["train.tar.gz", "README.md"], "", {}, "'train.tar.gz': unpack it first"),
        (["labels.json", "a.png"], "", {}, "'labels.json': a table in JSON must be a .jsonl file"),
        (["labels.xlsx", "a.png"], "", {}, "'labels.xlsx': save it as a .csv table"),
    ],
)
def test_refused(tmp_path, names, root, settings, message):
    files(tmp_path, *names)
    with pytest.raises(InputError) as error:
        find(f"{tmp_path}/{root}" if root else tmp_path, **settings)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "kind", "count"),
    [
        (["train/0.tar", "test/0.tar"], "webdataset", 2),
        (["default/train/0.parquet", "default/test/0.parquet"], "parquet", 2),
        (["labels.csv", "train/a.png", "test/b.png"], "table", 1),
        (["a.csv", "old.tar/x"], "table", 1),
    ],
)
def test_files_in_directories_of_splits(tmp_path, names, kind, count):
    found = find(files(tmp_path, *names))
    assert (found.format, len(found.files)) == (kind, count)


def test_odd_names_around_a_pattern(tmp_path):
    files(tmp_path, "x[1]/{y}/train/a.csv", "x[1]/{y}/train/b.csv")
    found = find(tmp_path / "x[1]/{y}/train/*.csv")
    assert len(found.files) == 2 and found.root == tmp_path / "x[1]/{y}"  # `train` says what the split is


@pytest.mark.parametrize(
    ("pattern", "message"), [("{a", "a brace is not closed"), ("{0..300000000}.tar", "names more than 200,000 files")]
)
def test_patterns_that_are_refused(tmp_path, pattern, message):
    with pytest.raises(InputError, match=message):
        find(tmp_path / pattern)


@pytest.mark.parametrize("root", ["https://a.org/data.tar", "s3://bucket/train-{00000..00009}.tar", "file:///data"])
def test_urls_are_refused(root):
    with pytest.raises(InputError, match="a URL, of which only hf://owner/name is read; download the data"):
        find(root)
