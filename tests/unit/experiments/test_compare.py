"""Paired comparisons: right numbers, and nothing is compared that is not the same."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from masp.cli.settings import is_setting
from masp.errors import DataError, InputError
from masp.experiments.compare import PairTest, compare, compare_pair, markdown, names_of
from masp.results.ledger_format import Record
from masp.results.metrics_file import write_metrics
from masp.results.records import DataDigests, read_records_file, write_target_records

CATEGORIES = ("fear", "joy")


def make_run(folder, right, labels=None, prefix="test", data=None):
    """A run whose predictions are right where `right` says."""
    labels = labels or [CATEGORIES[i % 2] for i in range(len(right))]
    records = [
        Record(
            f"{prefix}/{i}", label, label if hit else CATEGORIES[1 - CATEGORIES.index(label)], (0.0, 0.0), (0.0, 0.0)
        )
        for i, (label, hit) in enumerate(zip(labels, right, strict=True))
    ]
    (folder / "evaluate").mkdir(parents=True)
    # the order of the samples is nobody's business
    write_target_records(folder / "evaluate" / "records.h5", records[::-1], CATEGORIES, (), (), data)
    return str(folder)


def test_mcnemar_and_differences_by_hand():
    first = np.array([True] * 10 + [False] * 9 + [True] * 1)
    second = np.array([True] * 10 + [True] * 9 + [False] * 1)
    found = compare_pair(first, second)
    assert (found.only_first, found.only_second, found.difference) == (1, 9, pytest.approx(0.4))
    assert found.mcnemar_p == pytest.approx(2 * (1 + 10) / 2**10)  # two sides of a fair coin
    low, high = found.difference_ci95
    assert 0.1 < low < 0.4 < high < 0.7
    assert compare_pair(first, first) == PairTest(0.0, (0.0, 0.0), 0, 0, 1.0)


def test_the_bootstrap_of_the_counts_is_that_of_the_samples():
    rng = np.random.default_rng(3)
    first, second = rng.random(200) < 0.6, rng.random(200) < 0.7
    draws = rng.integers(200, size=(4000, 200))
    plain = np.percentile((second[draws].mean(1) - first[draws].mean(1)), (2.5, 97.5))
    assert compare_pair(first, second).difference_ci95 == pytest.approx(plain, abs=0.01)


def test_three_runs_make_three_pairs_a_table_and_a_picture(tmp_path):
    right = np.random.default_rng(0).random((3, 60)) < [[0.5], [0.7], [0.9]]
    runs = [make_run(tmp_path / name, hits) for name, hits in zip(("a|b", "<b>", "c$_$"), right, strict=True)]
    result = compare(runs, tmp_path / "out")
    assert [(p.first, p.second) for p in result.pairs] == [("a|b", "<b>"), ("a|b", "c$_$"), ("<b>", "c$_$")]
    assert [run.accuracy for run in result.runs.values()] == pytest.approx(right.mean(1))
    assert result.pairs[1].test.difference == pytest.approx(right[2].mean() - right[0].mean())
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == json.loads(json.dumps(result.to_json()))
    text = (tmp_path / "out" / "compare.md").read_text()
    assert text == markdown(result) and "a\\|b" in text and "<b>" not in text
    with Image.open(tmp_path / "out" / "compare.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 300 and len(picture.getcolors(2**24)) > 10


def test_other_samples_and_other_labels_are_refused(tmp_path):
    run = make_run(tmp_path / "run", [True] * 4)
    for name, other, problem in (
        ("fewer", make_run(tmp_path / "fewer", [True] * 3), "1 of run are not in .*, such as test/3"),
        ("split", make_run(tmp_path / "split", [True] * 4, prefix="val"), "4 of run are not in"),
        ("labels", make_run(tmp_path / "labels", [True] * 4, labels=["joy"] * 4), "test/0 is 'fear' in run and 'joy'"),
    ):
        with pytest.raises(InputError, match=problem) as error:
            compare([run, other], tmp_path / "out")
        assert name in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_other_pictures_of_the_same_names_are_refused(tmp_path):
    def run(name, digest, made_by="vlm"):
        return make_run(tmp_path / name, [True] * 4, data=DataDigests(digest * 64, made_by))

    first, same, other = run("first", "a"), run("same", "a"), run("other", "b")
    assert compare([first, same], tmp_path / "out").notes == ()
    with pytest.raises(InputError, match="not on the same images: data_digest is a{12} in first and b{12} in other"):
        compare([first, other], tmp_path / "out")
    for name, found, why in (
        ("older", make_run(tmp_path / "older", [True] * 4), "older .* before digests"),
        ("another VLM", run("vlm", "b", "other"), "made differently"),
        ("live", run("live", "a", ""), "live .* was evaluated live"),
    ):
        result = compare([first, found], tmp_path / "out")
        assert len(result.notes) == 1 and re.search(why, result.notes[0]), name
        assert "Note: whether the images are the same" in markdown(result)


def test_records_beside_the_metrics_of_another_evaluation_are_refused(tmp_path):
    runs = [make_run(tmp_path / name, [True] * 4) for name in "ab"]
    metrics = tmp_path / "b" / "evaluate" / "metrics.json"
    own = read_records_file(metrics.with_name("records.h5")).digest
    write_metrics(metrics, {"accuracy": 1.0, "lineage": {"records": own}})
    compare(runs, tmp_path / "out")
    write_metrics(metrics, {"accuracy": 1.0, "lineage": {"records": "0" * 64}})
    with pytest.raises(DataError, match="b/evaluate/records.h5: not the file that metrics.json beside it was written"):
        compare(runs, tmp_path / "out")


def test_runs_that_were_not_evaluated_alike_are_remarked_on(tmp_path):
    runs = [make_run(tmp_path / name, [True] * 4) for name in "abc"]
    asked = {"scoring": "likelihood", "question": "Which emotion?", "category_map": {}}
    for run, differs in zip(runs, ({}, {}, {"scoring": "generate", "category_map": {"joy": "fear"}}), strict=True):
        write_metrics(Path(run) / "evaluate" / "metrics.json", {"accuracy": 1.0, **asked, **differs, "lineage": {}})
    assert not [note for note in compare(runs[:2], tmp_path / "out").notes if "alike" in note]
    notes = [note for note in compare(runs, tmp_path / "out").notes if "alike" in note]
    assert [note.partition(", so")[0] for note in notes] == [
        "these runs were not evaluated alike: scoring is 'likelihood' in a, but 'generate' in c",
        "these runs were not evaluated alike: category_map is {} in a, but {'joy': 'fear'} in c",
    ]
    assert "scoring is 'likelihood' in a" in (tmp_path / "out" / "compare.md").read_text()


def test_an_output_that_cannot_be_written(tmp_path):
    runs = [make_run(tmp_path / name, [True] * 4) for name in "ab"]
    (tmp_path / "out" / "compare.json").mkdir(parents=True)
    for folder in (tmp_path / "out", tmp_path / "a" / "evaluate" / "records.h5" / "x"):
        with pytest.raises(InputError, match=f"--output {folder}: cannot be written"):
            compare(runs, folder)


def test_runs_that_cannot_be_compared(tmp_path):
    run = make_run(tmp_path / "run", [True] * 4)
    with pytest.raises(InputError, match="name two or more"):
        compare([run], tmp_path)
    with pytest.raises(InputError, match="masp evaluate"):
        compare([run, str(tmp_path / "none")], tmp_path)
    with pytest.raises(InputError, match="given twice"):
        compare([run, run], tmp_path)
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match="metrics.json is not a records.h5; name the directory of the run"):
        compare([run, str(tmp_path / "metrics.json")], tmp_path)
    (tmp_path / "link").symlink_to(run)
    for same in ("run/evaluate", "run/evaluate/records.h5", "link"):
        with pytest.raises(InputError, match="given twice"):
            compare([run, str(tmp_path / same)], tmp_path)


def test_names_that_are_no_utf8_are_printed_to_a_strict_terminal(tmp_path):
    runs = [make_run(tmp_path / name, [True] * 4) for name in ("a", "n\udcff")]
    command = [sys.executable, "-m", "masp.cli", "compare", *runs, "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"})
    assert done.returncode == 0 and b"udcff" in done.stdout, done


def test_a_missing_picture_with_an_equals_sign_is_no_setting():
    assert not is_setting("a=b.png") and is_setting("vlm.path=x.png") and is_setting("nothing=1")


def test_names_are_as_long_as_they_must_be():
    assert names_of(["/x/a/run", "/x/b/run"]) == ["a/run", "b/run"]
    assert names_of(["/x/a", "/x/b"]) == ["a", "b"]
