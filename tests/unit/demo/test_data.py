"""When the demo's images are drawn, and what is printed about it."""

import pytest

from masp.config import load_config
from masp.demo.data import draw_demo_data, make_demo_data
from masp.demo.tiny_vlm import VLM_DIR
from masp.errors import InputError


def config_of(root, vlm=VLM_DIR):
    return load_config(None, [f"vlm.path={vlm}", f"dataset.root={root}", "cache.dir=x", "seed=5"])


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr("masp.demo.data.NUM_TRAIN", 2)
    monkeypatch.setattr("masp.demo.data.NUM_TEST", 1)


def test_images_are_drawn_once(tmp_path, capsys):
    root = tmp_path / "world"
    make_demo_data(str(root), 2, 1, seed=5, num_val=1)
    assert capsys.readouterr().out == f"demo data: {root}: 4 images\n"
    images = {path: path.read_bytes() for path in root.rglob("*.png")}
    assert len(images) == 4
    make_demo_data(str(root), 2, 1, seed=5, num_val=1)
    assert capsys.readouterr().out == f"demo data: {root}: 4 images, there already\n"
    assert images == {path: path.read_bytes() for path in root.rglob("*.png")}
    with pytest.raises(InputError, match="does not contain this dataset"):
        make_demo_data(str(root), 2, 1, seed=6)


def test_a_run_with_the_demo_vlm_gets_missing_images(tmp_path, few):
    draw_demo_data(config_of(tmp_path / "world"))
    assert len(list((tmp_path / "world").rglob("*.png"))) == 3


def test_images_that_are_there_and_other_vlms_are_left_alone(tmp_path, few):
    (tmp_path / "mine").mkdir()
    draw_demo_data(config_of(tmp_path / "mine"))
    draw_demo_data(config_of(tmp_path / "none", vlm=tmp_path))
    assert not list((tmp_path / "mine").iterdir()) and not (tmp_path / "none").exists()
