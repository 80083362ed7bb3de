"""Records as CSV: every line is what its record says."""

import csv
import math

import pytest

from masp.errors import DataError, InputError
from masp.report.paper.record_tables import write_aspect_table, write_target_table
from masp.results.aspect_records import write_aspect_records
from masp.results.ledger_format import Record
from masp.results.metrics_file import write_metrics
from masp.results.records import write_target_records


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_line_per_image(tmp_path):
    records = [
        Record("test/%3Dx/1%2Ejpg", "joy", "=fear", scores=(-1.0, 0.0), mean_scores=(-1.0, 0.0)),
        Record("test/b", "joy", None, text="no category"),
    ]
    write_target_records(tmp_path / "records.h5", records, ("joy", "=fear"), (), ())
    first, second = read(write_target_table(tmp_path / "r.csv", tmp_path / "records.h5"))
    assert (first["image"], first["label"], first["prediction"], first["correct"]) == (
        "test/=x/1.jpg",
        "joy",
        "'=fear",
        "0",
    )
    assert float(first["label_probability"]) == pytest.approx(1 / (1 + math.e)) and first["score joy"] == "-1.0"
    assert (second["prediction"], second["correct"], second["probability"], second["score joy"]) == ("", "0", "", "")


def test_a_line_per_annotated_aspect(tmp_path):
    records = [
        Record("test/a%2Ejpg#brightness", "low", "high", scores=(0.0, 1.0), mean_scores=(0.0, 0.5)),
        Record("test/a%2Ejpg#object", "dog, tree", "=dog", text="=Dog"),
        Record("test/b#brightness", "high", "high", scores=(-3.0, -1.0), mean_scores=(-1.0, -0.5)),
    ]
    write_aspect_records(tmp_path / "records.h5", records, {"brightness": ("low", "high")})
    rows = read(write_aspect_table(tmp_path / "r.csv", tmp_path / "records.h5"))
    assert [(row["sample_key"], row["image"], row["aspect"], row["correct"]) for row in rows] == [
        ("test/a%2Ejpg", "test/a.jpg", "brightness", "0"),
        ("test/a%2Ejpg", "test/a.jpg", "object", "0"),
        ("test/b", "test/b", "brightness", "1"),
    ]
    assert float(rows[0]["probability"]) == pytest.approx(math.e / (1 + math.e))
    assert float(rows[0]["probability"]) + float(rows[0]["label_probability"]) == pytest.approx(1)
    assert [row["score"] for row in rows] == ["1.0", "", "-1.0"]
    assert [row["label_score"] for row in rows] == ["0.0", "", "-1.0"]
    written = rows[1]
    assert (written["prediction"], written["text"], written["probability"]) == ("'=dog", "'=Dog", "")
    assert float(written["token_f1"]) == pytest.approx(2 / 3) and rows[0]["token_f1"] == ""


def test_records_of_another_evaluation_make_no_table(tmp_path):
    scored = [Record("test/b", "joy", "joy", scores=(0.0,), mean_scores=(0.0,))]
    answered = [Record("a#object", "dog", "dog", text="dog")]
    write_metrics(tmp_path / "metrics.json", {"accuracy": 1.0, "lineage": {"records": "0" * 64}})
    write_target_records(tmp_path / "records.h5", scored, ["joy"], (), ())
    with pytest.raises(DataError, match="not the file that metrics.json beside it was written with"):
        write_target_table(tmp_path / "r.csv", tmp_path / "records.h5")
    write_aspect_records(tmp_path / "records.h5", answered, {})
    with pytest.raises(DataError, match="not the file that metrics.json beside it was written with"):
        write_aspect_table(tmp_path / "r.csv", tmp_path / "records.h5")


def test_what_cannot_be_read_or_written_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        write_aspect_table(tmp_path / "r.csv", tmp_path / "none.h5")
    (tmp_path / "records.h5").write_bytes(b"no hdf5")
    with pytest.raises(DataError, match=r"records.h5 is damaged"):
        write_aspect_table(tmp_path / "r.csv", tmp_path / "records.h5")
    write_aspect_records(tmp_path / "records.h5", [Record("a#object", "dog", "dog", text="dog")], {})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^--tables .*file: r.csv cannot be written"):
        write_aspect_table(tmp_path / "file" / "r.csv", tmp_path / "records.h5")
    assert not (tmp_path / "r.csv").exists()
