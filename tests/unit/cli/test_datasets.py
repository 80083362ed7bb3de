"""`masp datasets`: the list of published datasets, and a look at one."""

import pytest
from PIL import Image

from masp.cli.main import main
from masp.data.named.catalog import NAMED


def test_the_list_names_every_dataset(capsys):
    assert main(["datasets"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name}: {each.title}" in out for name, each in NAMED.items())
    assert "Machajdik and Hanbury" in out and max(map(len, out.splitlines())) <= 120


def test_a_look_at_a_dataset(tmp_path, capsys):
    for n in range(4):
        path = tmp_path / ("joy", "fear")[n % 2] / f"{n}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (n, 0, 0)).save(path)
    assert main(["datasets", str(tmp_path), "split={train: 0.5, test: 0.5}"]) == 0
    out = capsys.readouterr().out
    assert "image folders, 4 images (2 train, 2 test)" in out and "sample key t" in out
    assert f"Settings: dataset.root={tmp_path} 'dataset.split={{train: 0.5, test: 0.5}}'" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "no such directory"),
        (["x", "name"], "'name' must be KEY=VALUE"),
        (["x", "nmae=fi"], "did you mean dataset.name?"),
        (["x", "name=other"], "must be one of emoset"),
    ],
)
def test_refused(arguments, message, capsys):
    assert main(["datasets", *arguments]) == 2
    assert message in capsys.readouterr().err
