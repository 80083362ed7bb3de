"""A run's tables as files agree with its metrics and records."""

import csv
import json
import math

import numpy as np
import pytest

from masp.errors import InputError
from masp.files.sealed import sealed
from masp.report.page import write_report
from masp.results.aspect_metrics import compute_aspect_metrics
from masp.results.aspect_records import write_aspect_records
from masp.results.breakdown import SplitCounts, ValueGroups
from masp.results.ledger_format import Record
from masp.results.metrics import compute_metrics
from masp.results.records import write_target_records

CATEGORIES = ("=joy", "fear_1")


@pytest.fixture
def run(tmp_path):
    """An evaluation of 4 of the 6 images of a split, with everything that is beside metrics."""
    rows = [("=joy", (0.0, -1.0)), ("=joy", (-1.0, 0.0)), ("fear_1", (-3.0, 0.0)), ("fear_1", (-2.0, 0.0))]
    records = [
        Record(f"test/%3Dx/{i}%2Ejpg", label, CATEGORIES[int(np.argmax(scores))], scores)
        for i, (label, scores) in enumerate(rows)
    ]
    groups = ValueGroups(("scene",))
    is_right = np.array([record.label == record.prediction for record in records])
    groups.add("scene", ("a & b",), np.zeros(len(records), dtype=int), is_right)
    metrics = compute_metrics(records, CATEGORIES)
    wilson = [0.1, 0.9]
    row = {
        "template": 1, "order": 1, "question": "<q>?", "accuracy": 0.75, "accuracy_ci95": wilson, "macro_f1": 0.7,
        "nll": 0.5, "agreement": 1.0,
    }  # fmt: skip
    table = {
        "num_samples": 4, "rows": {"first": row}, "mean": 0.75, "spread": 0.0, "lowest": 0.75, "highest": 0.75,
        "agreement_of_pairs": 1.0, "agreement_of_all": 1.0,
    }  # fmt: skip
    split = SplitCounts(4, num_quarantined=2)
    found = {
        **metrics.to_json(), **split.to_json(), **split.shares(4, metrics.num_correct),
        "majority_class": {"category": "=joy", "split": "train", "share": 0.5, "accuracy": 0.5,
                           "accuracy_ci95": wilson},
        "temperature_scaling": {"temperature": 2.0, "fitted_on": "val", "num_fitted": 9, "at_limit": False,
                                "scaled": {"nll": 0.4, "brier": 0.3, "ece": 0.1}, "reason": None},
        "by_value": groups.to_json(), "num_values": groups.num_values(), "remark": "it <never> predicts",
    }  # fmt: skip
    directory = tmp_path / "run" / "evaluate"
    directory.mkdir(parents=True)
    (directory / "metrics.json").write_text(json.dumps(found))
    (directory / "prompts.json").write_bytes(sealed(table))
    write_target_records(directory / "records.h5", records, CATEGORIES, (), ())
    return tmp_path / "run"


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_every_table_is_written_and_records_have_a_line_per_image(run, tmp_path):
    write_report(run, tables=tmp_path / "tables")
    names = {path.name for path in (tmp_path / "tables").iterdir()}
    tables = ("metrics", "categories", "confusion", "calibration", "aspect-values", "prompts", "yardsticks")
    assert names == {"records.csv", *(f"{n}.{s}" for n in tables for s in ("csv", "tex"))}
    head, *lines = read(tmp_path / "tables" / "records.csv")
    assert head == [
        "sample_key", "image", "label", "prediction", "correct", "probability", "label_probability",
        "probability =joy", "probability fear_1", "score =joy", "score fear_1",
    ]  # fmt: skip
    first = dict(zip(head, lines[1], strict=True))
    assert (first["image"], first["label"], first["prediction"], first["correct"]) == (
        "test/=x/1.jpg", "'=joy", "fear_1", "0"
    )  # fmt: skip
    assert float(first["label_probability"]) == pytest.approx(1 / (1 + math.e))
    assert len(lines) == 4 and {len(line) for line in lines} == {len(head)}


def test_numbers_are_those_of_the_metrics(run, tmp_path):
    write_report(run, tables=tmp_path / "tables")
    metrics = json.loads((run / "evaluate" / "metrics.json").read_text())
    found = {row[0]: row[1:] for row in read(tmp_path / "tables" / "metrics.csv")[1:]}
    assert [float(value) for value in found["accuracy"]] == [metrics["accuracy"], *metrics["accuracy_ci95"]]
    assert float(found["accuracy_of_split"][0]) == 0.5 and found["num_in_split"] == ["6", "", ""]
    assert [float(value) for value in found["nll"]] == pytest.approx([metrics["nll"], *metrics["nll_ci95"]])
    assert found["nll at that temperature"][0] == "0.4"
    assert read(tmp_path / "tables" / "confusion.csv")[1:] == [["'=joy", "1", "1"], ["fear_1", "0", "2"]]
    assert read(tmp_path / "tables" / "aspect-values.csv")[1][:5] == ["scene", "a & b", "4", "3", "0.75"]
    assert r"scene & a \& b & 4 & 3 & 0.750" in (tmp_path / "tables" / "aspect-values.tex").read_text()


def test_distributions_of_the_data_are_shown_where_there_are_any(run, tmp_path):
    path = run / "evaluate" / "metrics.json"
    before = write_report(run, tables=tmp_path / "before").read_text()
    assert "KL divergence" not in before and "distribution" not in (tmp_path / "before" / "records.csv").read_text()
    scores = [(0.0, -1.0), (-1.0, 0.0), (-3.0, 0.0), (-2.0, 0.0)]
    records = [
        Record(f"test/%3Dx/{i}%2Ejpg", CATEGORIES[i // 2], CATEGORIES[int(np.argmax(own))], own)
        for i, own in enumerate(scores)
    ]
    votes = np.array([[0.9, 0.1], [0.6, 0.4], [0.0, 0.0], [0.0, 1.0]])
    found = compute_metrics(records, CATEGORIES, distributions=votes).to_json()["distributions"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"distributions": found}))
    write_target_records(run / "evaluate" / "records.h5", records, CATEGORIES, (), (), None, votes)
    page = write_report(run, tables=tmp_path / "tables").read_text()
    for title in ("Expected accuracy", "KL divergence", "Jensen–Shannon divergence", "Cosine similarity"):
        assert title in page
    assert "of a rater, at most 83.3%; on 3 images that have one" in page
    rows = {name: values for name, *values in read(tmp_path / "tables" / "metrics.csv")}
    assert [float(value) for value in rows["kl_divergence"]] == pytest.approx(
        [found["kl_divergence"], *found["kl_divergence_ci95"]]
    )
    assert rows["num_with_distribution"][0] == "3"
    head, *lines = read(tmp_path / "tables" / "records.csv")
    assert head[-2:] == ["distribution =joy", "distribution fear_1"]
    assert [line[-2:] for line in lines] == [["0.9", "0.1"], ["0.6", "0.4"], ["", ""], ["0.0", "1.0"]]


def test_the_page_says_what_was_not_scored_and_what_a_guess_gives(run):
    page = write_report(run).read_text()
    assert "every sample of the split scored" not in page and "6 in the split, 50.0" in page
    assert "6 in all, 2 in quarantine. With those counted as wrong, the accuracy is 50.0%." in page
    assert "the largest category of train" in page and "it &lt;never&gt; predicts" in page
    assert "divided by the temperature 2.000, fitted on 9 images of val" in page
    assert "a &amp; b *" in page.replace("</bdi>", "") and "&lt;q&gt;?" in page
    whole = json.loads((run / "evaluate" / "metrics.json").read_text())
    split = SplitCounts(4)
    (run / "evaluate" / "metrics.json").write_text(json.dumps(whole | split.to_json() | split.shares(4, 3)))
    (run / "evaluate" / "prompts.json").write_text("{")
    page = write_report(run).read_text()
    assert "every sample of the split scored exactly once" in page and "not on this page" in page


def test_tables_that_cannot_be_written_are_one_line(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"^--tables {tmp_path / 'file'}: cannot be written"):
        write_report(run, tables=tmp_path / "file")


def test_answers_about_aspects_have_a_line_each(run, tmp_path):
    beside = run / "evaluate-stage1"
    beside.mkdir()
    record = Record("test/a#object", "dog", "dog", text="dog")
    write_aspect_records(beside / "records.h5", [record], {})
    write_report(run, tables=tmp_path / "tables")
    assert [line[2] for line in read(tmp_path / "tables" / "records-stage1.csv")] == ["aspect", "object"]
    metrics = compute_aspect_metrics([record], ["object"], {}, 1)
    (beside / "metrics.json").write_text(json.dumps(metrics.to_json()))
    write_report(beside, tables=tmp_path / "alone")
    assert {path.name for path in (tmp_path / "alone").glob("records*")} == {"records-stage1.csv"}
