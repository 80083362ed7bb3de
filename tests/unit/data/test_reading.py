"""Files of a dataset that are not what they seem: one line, exit code 2 or 3."""

import errno
import json
import os

import pytest

from masp.config import DatasetConfig, load_aspects
from masp.data.datasets import read_dataset
from masp.errors import MaspError


@pytest.fixture
def root(tmp_path):
    """A dataset of one image with an annotation."""
    for directory in ("train/awe", "annotation/awe"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "train/awe/a.jpg").write_bytes(b"image")
    return tmp_path


def refused(root):
    with pytest.raises(MaspError) as error:
        read_dataset(DatasetConfig(name="folder", root=str(root)), load_aspects())
    line = str(error.value)
    assert error.value.exit_code in (2, 3) and "\n" not in line and len(line) < 2000
    return line


def test_a_fifo_is_not_waited_for(root, tmp_path):
    os.mkfifo(root / "annotation/awe/a.json")
    assert refused(root).endswith("annotation/awe/a.json: cannot be read: not a regular file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.json").write_text(json.dumps([["awe", "a.jpg", "a.json"]]))
    os.mkfifo(tmp_path / "other" / "a.json")
    assert "a.json: cannot be read: not a regular file" in refused(tmp_path / "other")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 50_000,
        '{"brightness": 1e999}',
        '{"brightness": 1' + "0" * 400 + "}",
        '{"brightness": ' + "9" * 9_000 + "}",
        '{"object": ' + "[" * 900 + "]" * 900 + "}",
        '{"scene": {"a": "' + "x" * 100_000 + '"}}',
    ],
)
def test_an_annotation_that_is_odd_json(root, text):
    (root / "annotation/awe/a.json").write_text(text)
    assert "annotation/awe/a.json" in refused(root)


@pytest.mark.parametrize(
    "text",
    ["[" * 50_000, '[["awe", NaN, ""]]', json.dumps([["awe", "x" * 5_000, ""]]), json.dumps([["\ud800", "a.jpg", ""]])],
)
def test_an_index_file_that_is_odd_json(tmp_path, text):
    (tmp_path / "train.json").write_text(text)
    assert "train.json" in refused(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="names that are not UTF-8 need a file system that takes them")
def test_a_category_must_be_text(root):
    os.rename(root / "train/awe", os.fsencode(root / "train") + b"/\xff\xfe")
    assert "is not a category: must be text that names one" in refused(root)


def test_roots_that_no_file_system_answers_for(root, tmp_path, monkeypatch):
    assert "File name too long" in refused("x" * 300)
    assert "embedded null byte" in refused("x\0y")
    real = os.scandir
    lost = "train"

    def stale(path):
        if str(path).endswith(lost):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", stale)
    assert refused(root).endswith("train: cannot list this directory: Stale file handle")
    # also where directories are searched for images, which are no category without any
    deep = tmp_path / "other/images/joy/deep"
    deep.mkdir(parents=True)
    (deep / "a.jpg").touch()
    lost = "deep"
    assert refused(tmp_path / "other").endswith("deep: cannot list this directory: Stale file handle")


def test_a_key_that_is_given_twice_has_no_answer(root, tmp_path):
    (root / "annotation/awe/a.json").write_text('{"scene": "sea", "brightness": 0.5, "scene": "wood"}')
    assert refused(root).endswith("annotation/awe/a.json: is not valid JSON: 'scene' is given twice")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.json").write_text('[["awe", "a.jpg", {"a": 1, "a": 2}]]')
    assert refused(tmp_path / "other").endswith("train.json: is not valid JSON: 'a' is given twice")
