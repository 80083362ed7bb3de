"""Outputs are read back: numbers in full precision, whatever categories, aspects and names are called."""

import csv
import json

import pyarrow.parquet as pq
import pytest

from masp.errors import InputError
from masp.inference.batch import formats
from masp.inference.batch.formats import Contents, opener_of
from masp.inference.batch.rows import Row

CATEGORIES = ("quiet fear", "=joy")
WHY = {
    "explanation": "quiet fear 0.88: scene -park (+0.3)",
    "aspects": {
        "my scene": {"answer": "-park", "probability": 0.5, "contribution": 0.3, "log_probability_change": None}
    },
    "all_aspects": 0.25,
    "vision_features": None,
    "interaction": -0.05,
}
ROWS = [Row(0, None, "quiet fear", (-0.1, -2.1), WHY), Row(1, "empty file"), Row(2, None, "=joy", (-1 / 3, -0.1), WHY)]
NAMES = ["a.png", "=b\n.png", "\udcff.png"]


def write(path, contents):
    with opener_of(path)(path, contents) as writer:
        writer.write(NAMES[:2], ROWS[:2])
        writer.write(NAMES[2:], ROWS[2:])


@pytest.fixture(params=[None, ("my scene",)], ids=["plain", "explained"])
def contents(request):
    return Contents(CATEGORIES, request.param, None, '{"model": 1}')


def test_csv(contents, tmp_path):
    write(tmp_path / "o.csv", contents)
    with open(tmp_path / "o.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["image"] for row in table] == ["a.png", "'=b\\n.png", "\\udcff.png"]
    assert [row["status"] for row in table] == ["ok", "unreadable", "ok"]
    assert [row["prediction"] for row in table] == ["quiet fear", "", "'=joy"]
    assert float(table[2]["log_likelihood_quiet fear"]) == -1 / 3 and table[1]["log_likelihood_=joy"] == ""
    assert float(table[0]["probability_quiet fear"]) == pytest.approx(0.880797)
    assert [row["reason"] for row in table] == ["", "empty file", ""]
    if contents.aspects:
        assert table[0]["aspect_my scene_answer"] == "'-park" and table[0]["aspect_my scene_probability"] == "0.5"
        assert table[0]["vision_features"] == table[1]["explanation"] == "" and table[2]["interaction"] == "-0.05"


def test_json_lines(contents, tmp_path):
    write(tmp_path / "o.jsonl", Contents(CATEGORIES, contents.aspects, "season"))
    found = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [row["image"] for row in found] == NAMES and {row["target"] for row in found} == {"season"}
    assert found[1] == {
        "image": NAMES[1], "status": "unreadable", "target": "season", "prediction": None, "reason": "empty file",
    }  # fmt: skip
    assert found[2]["log_likelihoods"] == {"quiet fear": -1 / 3, "=joy": -0.1}
    assert found[0].items() >= WHY.items()


@pytest.mark.parametrize("group_rows", [1, 1000])
def test_parquet(contents, tmp_path, monkeypatch, group_rows):
    monkeypatch.setattr(formats, "_GROUP_ROWS", group_rows)
    write(tmp_path / "o.parquet", contents)
    table = pq.read_table(tmp_path / "o.parquet")
    assert table.schema.metadata[b"masp"] == b'{"model": 1}'
    found = table.to_pylist()
    assert [row["image"] for row in found] == [*NAMES[:2], "\\udcff.png"]
    assert [row["prediction"] for row in found] == ["quiet fear", None, "=joy"]
    assert [row["log_likelihood_quiet fear"] for row in found] == [-0.1, None, -1 / 3]
    assert [row["reason"] for row in found] == [None, "empty file", None]
    if contents.aspects:
        assert [row["aspects"] for row in found] == [WHY["aspects"], None, WHY["aspects"]]
        assert found[0]["all_aspects"] == 0.25 and found[0]["vision_features"] is None


def test_no_row_is_a_file_all_the_same(contents, tmp_path):
    for suffix in (".csv", ".jsonl", ".PARQUET"):
        with opener_of(tmp_path / f"o{suffix}")(tmp_path / f"o{suffix}", contents):
            pass
    assert pq.read_table(tmp_path / "o.PARQUET").num_rows == 0


def test_another_extension_is_refused(tmp_path):
    with pytest.raises(InputError, match="--output o.txt: must end in .csv, .jsonl, .parquet"):
        opener_of(tmp_path.__class__("o.txt"))
