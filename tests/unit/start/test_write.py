"""The file is written whole, where nothing is, or not at all."""

import os

import pytest

from masp.errors import InputError
from masp.start.choices import choose
from masp.start.write import check_target, write_config
from tests.unit.start.test_choices import VLM, data
from tests.unit.start.test_machine import CPU

__all__ = ["data"]


def test_what_exists_is_not_overwritten(data, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    with pytest.raises(InputError, match="exists already, and is not overwritten"):
        write_config(path, choose(str(data), [VLM], "mine", CPU), CPU)
    assert path.read_text() == "mine" and os.listdir(tmp_path) == ["mine.yaml"]


@pytest.mark.parametrize("name", ["nowhere/mine.yaml", "file/mine.yaml"])
def test_the_directory_must_be_there(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--output .*/mine.yaml: (there is no directory|cannot)"):
        check_target(tmp_path / name)
