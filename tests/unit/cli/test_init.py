"""`masp init` on the command line: what it prints, and what it refuses, in one line."""

import pytest

from masp.cli.main import main
from masp.config import load_config
from tests.unit.start.test_choices import VLM
from tests.unit.start.test_look import make


def test_it_prints_what_it_found_and_what_comes_next(tmp_path, capsys, monkeypatch):
    make(tmp_path / "data", {"joy": 20, "fear": 20})
    path = tmp_path / "my run.yaml"
    assert main(["init", str(tmp_path / "data"), "--output", str(path), VLM, "aspects=[]"]) == 0
    out = capsys.readouterr().out
    assert "image folders, 40 images, dataset.name=folder" in out and "joy" in out
    assert "labels: 2 categories in 22 training images: fear, joy" in out and "machine: " in out
    assert out.endswith(f"wrote {path}; next: masp run --config '{path}'\n")
    assert load_config(path).output_dir == "outputs/my run"


@pytest.mark.parametrize(
    ("layout", "arguments", "words"),
    [
        (None, ["data"], "no such directory"),
        ({}, ["data"], "is empty; a dataset has image folders"),
        ({"joy": 20}, ["data"], "all 20 images have the category 'joy'"),
        ({"joy": 1, "fear": 1}, ["data"], "no category has more than 1 image"),
        ({"joy": 20, "fear": 20}, ["data", "stage1.num_epoch=1"], "did you mean stage1.num_epochs?"),
        ({"joy": 20, "fear": 20}, ["data", "seed"], "must be key=value"),
        ({"joy": 20, "fear": 20}, ["seed=1"], "DATA must come first: 'seed=1' is a setting"),
        ({"joy": 20, "fear": 20}, [], "the following arguments are required: DATA"),
        ({"joy": 20, "fear": 20}, ["data", "--output=nowhere/c.yaml"], "there is no directory nowhere"),
        ({"joy": 20, "fear": 20}, ["data", "--output=old.yaml"], "old.yaml: exists already"),
        ({"joy": 20, "fear": 20}, ["data", "--output="], "exists already"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(layout, arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.yaml").write_text("old")
    if layout is not None:
        (tmp_path / "data").mkdir()
        make(tmp_path / "data", layout)
    before = sorted(tmp_path.iterdir())
    try:
        code = main(["init", "--output", "c.yaml", *arguments])
    except SystemExit as end:
        code = end.code
    notes = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert code == 2 and len(notes) == 1 and notes[0].startswith("error: ") and words in notes[0], notes
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "old.yaml").read_text() == "old"
