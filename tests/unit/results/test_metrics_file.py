"""What evaluations leave their numbers in is read back equal, and what is damaged in it is left out and named."""

import json
from dataclasses import asdict, replace

import pytest

from masp.errors import DataError, InputError
from masp.results.ledger_format import Record
from masp.results.metrics import CalibrationBin, compute_metrics
from masp.results.metrics_file import (
    DatasetRow,
    MetricsFile,
    ProbeFile,
    VariantRow,
    read_datasets,
    read_metrics,
    read_probe,
    read_summary,
    write_metrics,
    write_object,
    write_rows,
)

RECORDS = [Record(str(i), "ab"[i % 2], "ab"[i % 3 % 2], (0.5, 0.1), (0.2, 0.1)) for i in range(9)]
METRICS = compute_metrics(RECORDS, ("a", "b"))
HUGE = 10**400
DAMAGE = [
    ("calibration", [{}]), ("calibration", [{"from": 0, "to": 1, "num_samples": 1}]), ("accuracy_ci95", "x"),
    ("accuracy_ci95", [0.1, HUGE]), ("confusion", 5), ("confusion", [[1, "x"]]), ("confusion", [[1], [1, 2]]),
    ("confusion", [[HUGE]]), ("per_category", {"a": 1}), ("time", 1e30), ("time", HUGE), ("macro_f1", float("nan")),
    ("categories", 7), ("notes", 3), ("nll", "x"), ("nll", HUGE), ("brier", float("inf")), ("coverage", "x"),
    ("num_unparsable", HUGE), ("num_samples", -1), ("num_samples", 1.5), ("lineage", {"a": [float("nan")]}),
    ("category_map", {"a": 1}), ("confusion_columns", ["x" * 5000, 3]), ("accuracy", True), ("accuracy", 1.01),
    ("stage", ["stage2"]), ("kind", "other"),
]  # fmt: skip


def ids(value):
    return str(value)[:20]


def write(path, value):
    path.write_text(json.dumps(value))
    return path


def test_metrics_come_back_equal(tmp_path):
    more = {"stage": "stage2", "notes": ["n"], "category_map": {"c": "a"}, "lineage": {"x": {"y": [1, None]}}}
    text = METRICS.to_json() | more | {"a_key_of_a_later_version": 1}
    problems = []
    found = read_metrics(write(tmp_path / "metrics.json", text), problems)
    assert problems == [] and (found.stage, found.notes, found.lineage) == ("stage2", ("n",), more["lineage"])
    for name in ("accuracy", "confusion", "per_category", "calibration", "categories", "accuracy_ci95", "nll"):
        assert getattr(found, name) == getattr(METRICS, name), name
    assert isinstance(found.calibration[0], CalibrationBin)


@pytest.mark.parametrize(("key", "value"), DAMAGE, ids=ids)
def test_what_is_damaged_is_left_out_and_named(tmp_path, key, value):
    path = tmp_path / "metrics.json"
    problems = []
    found = read_metrics(write(path, METRICS.to_json() | {key: value}), problems)
    whole = read_metrics(write(path, METRICS.to_json()), [])
    assert asdict(found) == asdict(whole) | {key: None}
    assert (
        len(problems) == 1
        and problems[0].startswith(f"{path}: {key}: ")
        and ("must " in problems[0] or "missing" in problems[0])
    )
    assert "\n" not in problems[0] and len(problems[0]) < 500 + len(str(path))
    # the same within an aspect of stage 1
    problems = []
    per_aspect = {"object": 3, "scene": METRICS.to_json() | {key: value}, "sky": METRICS.to_json()}
    aspects = read_metrics(write(path, {"per_aspect": per_aspect}), problems).per_aspect
    assert list(aspects) == ["scene", "sky"] and asdict(aspects["scene"]) == asdict(found)
    assert problems[0] == f"{path}: per_aspect: object must be an object"
    assert problems[1].startswith(f"{path}: scene: {key}: ")


def test_aspects_that_are_not_an_object(tmp_path):
    path = write(tmp_path / "metrics.json", {"per_aspect": [1]})
    problems = []
    assert read_metrics(path, problems) == MetricsFile() and problems == [f"{path}: per_aspect: must be an object"]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b"1" * 5000], ids=ids)
def test_what_is_not_an_object_is_refused(tmp_path, text):
    path = tmp_path / "metrics.json"
    path.write_bytes(text)
    for read in (read_metrics, read_datasets, read_summary):
        with pytest.raises(DataError, match="(not a JSON object|not valid JSON: .+); delete it") as error:
            read(path, [])
        assert "\n" not in str(error.value) and len(str(error.value)) < 300 + len(str(path))


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a regular file"):
        read_metrics(tmp_path, [])


def test_tables_come_back_equal(tmp_path):
    row = DatasetRow(9, 3, 1 / 3, (0.1, 0.6), 0.25, None, {"a": "b"}, "test", "on/x/metrics.json")
    found = read_datasets(write(tmp_path / "datasets.json", {"x": row.to_json(), "y": 3}), [])
    assert found == {"x": row} and list(row.to_json()) == [
        "num_samples", "num_correct", "accuracy", "accuracy_ci95", "macro_f1", "category_map", "split", "metrics"
    ]  # fmt: skip
    summary = {"masp": {"accuracy": 0.5, "accuracy_ci95": [0.4, 0.6], "num_samples": 9}, "seed": 1}
    assert read_summary(write(tmp_path / "summary.json", summary), []) == {"masp": VariantRow(0.5, (0.4, 0.6), 9)}


@pytest.mark.parametrize("value", ["x", float("nan"), HUGE, 2, True], ids=ids)
def test_damaged_rows_are_left_out_and_named(tmp_path, value):
    path = write(tmp_path / "table.json", {"far": {"accuracy": 0.5, "accuracy_ci95": [0.1, value]}})
    for read in (read_datasets, read_summary):
        problems = []
        row = read(path, problems)["far"]
        assert row.accuracy == 0.5 and row.accuracy_ci95 is None
        assert len(problems) == 1 and problems[0].startswith(f"{path}: far: accuracy_ci95: ")


def test_a_changed_byte_of_what_evaluations_write_is_damage(tmp_path):
    """Nothing that is read as a number changes without notice; what is not read, such as spaces, may."""
    metrics, rows, probe = (tmp_path / name for name in ("metrics.json", "datasets.json", "linear_probe.json"))
    write_metrics(metrics, METRICS.to_json() | {"notes": ["é \udcff"], "lineage": {"records": "0" * 64}})
    write_rows(rows, {"x": {"accuracy": 0.5, "num_samples": 9}, "y": {"accuracy": 0.25}})
    write_object(probe, ProbeFile(9, 3, 1 / 3, (0.1, 0.6), 20, 30, "0" * 64))

    def values(read, path):
        problems = []
        return (read(path, problems), problems) if read != read_probe else read(path)

    for path, read in ((metrics, read_metrics), (rows, read_datasets), (probe, read_probe)):
        whole, expected, found = path.read_bytes(), values(read, path), 0
        assert expected == values(read, path) and (read == read_probe or expected[1] == [])
        for place in range(0, len(whole), max(1, len(whole) // 400)):
            data = bytearray(whole)
            data[place] ^= 1 << place % 7
            path.write_bytes(data)
            try:
                changed = values(read, path)
            except DataError as error:
                found += 1
                assert "\n" not in str(error)
                continue
            if read == read_datasets and changed != expected:
                found += 1
                assert changed[1] and all(row in expected[0].values() for row in changed[0].values()), place
            else:
                assert changed == expected or without_digest(changed) == without_digest(expected), place
        assert found > 50


def without_digest(found):
    """Where the name of the digest itself is what changed, its value is read as part of the lineage."""
    return (replace(found[0], lineage=None), found[1]) if isinstance(found, tuple) else found
