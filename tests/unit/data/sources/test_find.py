"""Which kind of dataset there is, by looking."""

import pytest

from masp.config.schema import DatasetConfig
from masp.data.sources.find import find_dataset
from masp.errors import InputError


def files(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("image,label\n" if name.endswith(".csv") else "")
    return root


def find(root, **settings):
    return find_dataset(DatasetConfig(root=str(root), **settings))


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
        (["a.tar"], "*.parquet", {}, "there is no file"),
        (["0.tar"], "{0..3}.tar", {}, "there is no file"),
        (["a.tar", "b.csv"], "*", {}, "has only one kind of them"),
    ],
)
def test_refused(tmp_path, names, root, settings, message):
    files(tmp_path, *names)
    with pytest.raises(InputError) as error:
        find(f"{tmp_path}/{root}" if root else tmp_path, **settings)
    assert message in str(error.value) and "\n" not in str(error.value)
