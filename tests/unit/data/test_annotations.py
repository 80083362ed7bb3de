"""Reading annotations: processes give what threads give, and the first damaged file is the one that is named."""

import json

import pytest

from masp.config import load_aspects
from masp.data import annotations
from masp.data.annotations import read_annotations
from masp.errors import DataError, InputError

PATHS = ["0.json", None, "1.json", "gone.json", "2.json"]


@pytest.fixture
def root(tmp_path):
    for number, text in enumerate([{"scene": "sea"}, {"Scene": "sea", "x": 1}, {"scene": "sea", "object": ["dog"]}]):
        (tmp_path / f"{number}.json").write_text(json.dumps(text))
    return f"{tmp_path}/"


def answers(root, paths):
    found = [
        [c.answers[n] if n >= 0 else None for n in c.numbers]
        for c in read_annotations(root, [""] * len(paths), paths, load_aspects())
    ]
    return [each for chunk in found for each in chunk]


def test_equal_answers_are_listed_once_and_missing_files_have_none(root):
    (chunk,) = read_annotations(root, ["x"] * 6, ["0.json", *PATHS], load_aspects())
    assert chunk.numbers == [0, 0, -1, 1, -1, 2]
    assert chunk.answers == [(("scene",), ("sea",)), ((), ()), (("object", "scene"), ("dog", "sea"))]
    assert chunk.misspelled == {("Scene", "scene"): 1}


def test_processes_find_the_same(root, tmp_path, monkeypatch):
    expected = answers(root, PATHS * 3)
    monkeypatch.setattr(annotations, "_MANY", 3)
    monkeypatch.setattr(annotations, "_PROCESS_CHUNK", 4)
    assert answers(root, PATHS * 3) == expected
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match="x: cannot be read"):
        answers(root, [*PATHS, "x"])


@pytest.mark.parametrize("many", [3, 1000])
def test_the_first_damaged_file_is_named(root, monkeypatch, many):
    monkeypatch.setattr(annotations, "_MANY", many)
    monkeypatch.setattr(annotations, "_PROCESS_CHUNK", 2)
    for name in ("1.json", "2.json"):
        with open(root + name, "w") as file:
            file.write("[")
    with pytest.raises(DataError, match="1.json: is not valid JSON"):
        answers(root, PATHS)
