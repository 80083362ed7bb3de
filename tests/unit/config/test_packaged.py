"""MASP's own files are found from any directory; those of the working directory take precedence."""

import os
from pathlib import Path

import pytest

from masp.config.packaged import find_packaged
from masp.errors import InputError
from masp.runtime.log import setup
from tests.runs import REPOSITORY


def test_files_of_the_working_directory_come_first(tmp_path, monkeypatch, capsys):
    setup(rank=0)
    monkeypatch.chdir(tmp_path)
    own = find_packaged("configs/train.yaml")
    assert own == str(REPOSITORY / "configs" / "train.yaml")
    assert capsys.readouterr().err == f"note: configs/train.yaml does not exist; using MASP's own {own}\n"
    find_packaged("configs/train.yaml")
    assert capsys.readouterr().err == ""
    for path in (
        "train.yaml",
        "configs",
        "configs/none.yaml",
        "configs/../setup.py",
        "/configs/train.yaml",
        "",
        "org/m",
    ):
        assert find_packaged(path) == path
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "train.yaml").write_text("")
    assert find_packaged("configs/train.yaml") == "configs/train.yaml"
    (tmp_path / "mine").mkdir()
    assert find_packaged("configs/train.yaml", "mine") == own
    assert find_packaged("../configs/train.yaml", "mine") == os.path.join("mine", "../configs/train.yaml")


def test_the_old_place_of_the_demos_vlm_is_known():
    assert find_packaged("masp/data/demo/vlm") == str(REPOSITORY / "masp" / "demo" / "tiny_vlm" / "weights")


def test_a_path_that_cannot_be_examined_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="configs/n+ cannot be examined: File name too long$"):
        find_packaged(f"configs/{'n' * 300}")
    loop = Path("configs")
    loop.symlink_to(loop)
    with pytest.raises(InputError, match="^configs/train.yaml cannot be examined: Too many levels of symbolic links$"):
        find_packaged("configs/train.yaml")
