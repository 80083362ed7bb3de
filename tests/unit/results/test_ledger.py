"""The ledger: nothing is lost, nothing is counted twice, nothing foreign slips in."""

import json
import multiprocessing
import os
import random
import signal
import time

import pytest

from masp.errors import DataError, FilesInUse, InputError
from masp.results.ledger import Ledgers, read_machines, read_records, slice_keys
from masp.results.ledger_file import Ledger
from masp.results.ledger_format import Record, likelihood_problem

IDENTITY = {"cache": "ab12", "scoring": "likelihood", "categories": ["fear", "joy"], "aspects": ("object",)}
KEYS = [f"test/fear/{index:03d}" for index in range(20)]


def record(key, **changes):
    fields = {"label": "fear", "scores": (-0.1, -2.25), "mean_scores": (-0.1, -1.0), "prediction": "fear"}
    return Record(key, **(fields | changes))


def ledgers(directory, **changes):
    return Ledgers(directory, **({"expected_keys": KEYS, "identity": IDENTITY} | changes))


def write(folder, name, keys, identity=IDENTITY):
    with Ledger(folder, name, identity) as ledger:
        for key in keys:
            ledger.append(record(key))
    return ledger.path


def test_records_come_back_equal_and_in_the_expected_order(tmp_path):
    write(tmp_path, "rank-0", KEYS[10:])
    write(tmp_path, "rank-1", KEYS[:10])
    assert ledgers(tmp_path).merge() == [record(key) for key in KEYS]
    assert read_records(tmp_path) == [record(key) for key in KEYS]


def test_a_second_call_appends_to_what_the_first_one_left(tmp_path):
    write(tmp_path, "rank-0", KEYS[:5])
    assert ledgers(tmp_path).missing() == KEYS[5:]
    write(tmp_path, "rank-0", KEYS[5:])
    assert ledgers(tmp_path).missing() == []
    assert len((tmp_path / "rank-0.jsonl").read_text().splitlines()) == len(KEYS) + 1


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7, 30])
def test_slices_are_disjoint_and_cover_everything(num_ranks):
    slices = [slice_keys(KEYS, rank, num_ranks) for rank in range(num_ranks)]
    assert sorted(key for keys in slices for key in keys) == KEYS
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


def test_missing_samples_are_named_ten_at_most(tmp_path):
    write(tmp_path, "rank-0", KEYS[:5])
    with pytest.raises(DataError, match="15 of 20 samples have no record") as error:
        ledgers(tmp_path).merge()
    assert KEYS[5] in str(error.value) and KEYS[14] in str(error.value) and KEYS[15] not in str(error.value)
    assert "5 more" in str(error.value) and "\n" not in str(error.value)


def test_a_doubled_record_is_an_error_even_if_it_agrees(tmp_path):
    write(tmp_path, "rank-0", KEYS)
    write(tmp_path, "rank-1", KEYS[3:4])
    for call in (Ledgers.merge, Ledgers.missing):
        with pytest.raises(DataError, match="1 samples have more than one record") as error:
            call(ledgers(tmp_path))
        assert KEYS[3] in str(error.value) and "rank-0.jsonl, rank-1.jsonl" in str(error.value)


def test_a_record_doubled_in_one_file_is_an_error(tmp_path):
    write(tmp_path, "rank-0", [*KEYS, KEYS[0]])
    with pytest.raises(DataError, match="more than one record"):
        ledgers(tmp_path).merge()


def test_a_foreign_record_is_an_error(tmp_path):
    write(tmp_path, "rank-0", [*KEYS, "test/other/1"])
    for call in (Ledgers.merge, Ledgers.missing):
        with pytest.raises(DataError, match="not evaluated: test/other/1") as error:
            call(ledgers(tmp_path))
        assert "rank-0.jsonl" in str(error.value)


@pytest.mark.parametrize("cut", [1, 2, 20, 80])
def test_a_half_written_last_line_is_dropped_and_scored_again(tmp_path, cut):
    path = write(tmp_path, "rank-0", KEYS)
    path.write_bytes(path.read_bytes()[:-cut])
    assert ledgers(tmp_path).missing() == KEYS[-1:]
    write(tmp_path, "rank-0", KEYS[-1:])
    assert ledgers(tmp_path).merge() == [record(key) for key in KEYS]


def test_a_last_line_that_is_ended_but_no_json_is_dropped_too(tmp_path):
    path = write(tmp_path, "rank-0", KEYS)
    path.write_bytes(path.read_bytes() + b'{"sample_key": "te\n')
    assert ledgers(tmp_path).missing() == []


@pytest.mark.parametrize("size", [0, 1, 10])
def test_a_half_written_header_is_written_again(tmp_path, size):
    path = write(tmp_path, "rank-0", [])
    path.write_bytes(path.read_bytes()[:size])
    assert ledgers(tmp_path).missing() == KEYS
    write(tmp_path, "rank-0", KEYS)
    assert len(ledgers(tmp_path).merge()) == len(KEYS)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"scoring": "generate"}, 'scoring is "likelihood" there and "generate" here'),
        ({"categories": ["joy", "fear"]}, 'categories is ["fear", "joy"] there and ["joy", "fear"] here'),
        ({"split": "val"}, 'split is not set there and "val" here'),
    ],
)
def test_a_ledger_of_another_evaluation_is_refused_by_field(tmp_path, changes, named):
    write(tmp_path, "rank-0", KEYS)
    other = IDENTITY | changes
    for call in (lambda: Ledger(tmp_path, "rank-1", other), lambda: ledgers(tmp_path, identity=other).merge()):
        with pytest.raises(InputError) as error:
            call()
        assert named in str(error.value) and "rank-0.jsonl" in str(error.value)
    assert not (tmp_path / "rank-1.jsonl").exists()


def test_a_score_that_is_not_finite_is_refused_before_it_is_written(tmp_path):
    with Ledger(tmp_path, "rank-0", IDENTITY) as ledger:
        with pytest.raises(DataError, match="test/a.*not finite"):
            ledger.append(record("test/a", scores=(float("nan"), 0.0)))
    assert read_records(tmp_path) == []


def _misfit(record):
    return likelihood_problem(record, ["fear", "joy"]) or (record.label != "fear" and "has another label") or None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"label": "joy"}, "has another label"),
        ({"prediction": "joy"}, "predicts 'joy', but its largest score is that of 'fear'"),
        ({"prediction": None}, "predicts null, but its largest score is that of 'fear'"),
        ({"scores": (-1.0,) * 2, "prediction": "joy"}, "predicts 'joy', but its largest score is that of 'fear'"),
        ({"scores": None}, "has no scores for 2 categories"),
        ({"scores": (-1.0,)}, "has 1 scores for 2 categories"),
        ({"mean_scores": None}, "has no mean_scores for 2 categories"),
        ({"mean_scores": (-1.0,) * 3}, "has 3 mean_scores for 2 categories"),
    ],
)
def test_a_record_that_does_not_fit_is_named_by_file_line_and_key(tmp_path, changes, problem):
    write(tmp_path, "rank-0", KEYS[:5])
    with Ledger(tmp_path, "rank-1", IDENTITY) as ledger:
        for key in KEYS[5:]:
            ledger.append(record(key, **(changes if key == KEYS[8] else {})))
    assert len(ledgers(tmp_path).merge()) == len(KEYS)
    strict = ledgers(tmp_path, problem=_misfit)
    for call in (
        strict.merge,
        strict.missing,
        strict.begin,
        lambda: strict.merge_if_complete(len),
    ):
        with pytest.raises(DataError) as error:
            call()
        assert f"rank-1.jsonl, line 5: the record of sample {KEYS[8]} {problem}; delete the file" in str(error.value)
        assert "\n" not in str(error.value)


def test_odd_texts_survive(tmp_path):
    text = 'line\nbreak \u2028 "quoted" שלום \udcff'
    with Ledger(tmp_path, "rank-0", IDENTITY) as ledger:
        ledger.append(record("test/a", scores=None, mean_scores=None, prediction=None, text=text))
    assert read_records(tmp_path)[0].text == text


def test_merge_if_complete_waits_for_the_last_one(tmp_path):
    write(tmp_path, "rank-0", KEYS[:10])
    assert ledgers(tmp_path).merge_if_complete(len) is None
    write(tmp_path, "rank-1", KEYS[10:])
    assert ledgers(tmp_path).merge_if_complete(len) == len(KEYS)


def test_results_go_where_the_ledgers_are_not_theirs_and_stay_where_they_are(tmp_path):
    gone = []

    def left(call):
        gone.clear()
        try:
            call(lambda: gone.append(True))
        except (DataError, InputError) as error:
            return type(error).__name__, bool(gone)
        return "", bool(gone)

    def calls(identity=IDENTITY):
        return (
            left(lambda discard: ledgers(tmp_path, identity=identity, discard=discard).begin()),
            left(lambda discard: ledgers(tmp_path, identity=identity, discard=discard).merge_if_complete(len)),
        )

    def unreadable(records):
        raise DataError("a map is damaged")

    assert calls() == (("", True),) * 2  # nothing is scored yet
    write(tmp_path, "rank-0", KEYS[:-1])
    assert calls() == (("", True),) * 2
    write(tmp_path, "rank-0", KEYS[-1:])
    assert calls() == (("", False),) * 2
    assert calls(IDENTITY | {"split": "val"}) == (("InputError", False),) * 2  # those of another evaluation
    assert left(lambda discard: ledgers(tmp_path, discard=discard).merge_if_complete(unreadable))[1]
    path = write(tmp_path, "rank-1", KEYS[:1])
    assert calls() == (("DataError", True),) * 2
    path.unlink()
    path = write(tmp_path, "rank-1", ["test/other/1"])
    assert calls() == (("DataError", True),) * 2
    path.write_text("no header\n" * 2)
    assert calls() == (("DataError", True),) * 2


def _score_slowly(folder, name, keys):
    with Ledger(folder, name, IDENTITY) as ledger:
        for key in keys:
            ledger.append(record(key))
            time.sleep(0.002)


def test_killed_at_any_time_loses_at_most_one_record(tmp_path):
    context = multiprocessing.get_context("fork")
    keys = [f"test/fear/{index:04d}" for index in range(2000)]
    for attempt in range(6):
        before = len(read_records(tmp_path))
        missing = ledgers(tmp_path, expected_keys=keys).missing()
        process = context.Process(target=_score_slowly, args=(tmp_path, "rank-0", missing))
        process.start()
        time.sleep(0.05 + random.Random(attempt).random() * 0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert len(read_records(tmp_path)) >= before
    missing = ledgers(tmp_path, expected_keys=keys).missing()
    assert 0 < len(missing) < len(keys)
    write(tmp_path, "rank-0", missing)
    assert [entry.sample_key for entry in ledgers(tmp_path, expected_keys=keys).merge()] == keys


def test_two_processes_never_write_one_file(tmp_path):
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_score_slowly, args=(tmp_path, "rank-0", [f"test/{i}" for i in range(3000)]))
    process.start()
    try:
        while not (tmp_path / "rank-0.jsonl").exists():
            time.sleep(0.01)
        with pytest.raises(FilesInUse, match="another process is writing"):
            Ledger(tmp_path, "rank-0", IDENTITY)
    finally:
        process.kill()
        process.join()
    write(tmp_path, "rank-0", [])  # The lock went with the process.


def test_what_another_ledger_has_meanwhile_is_not_appended(tmp_path):
    with Ledger(tmp_path, "rank-0", IDENTITY) as ours:
        assert ours.recorded() == set()
        write(tmp_path, "rank-1", KEYS[:3])
        ours.append_missing([record(key) for key in KEYS[2:5]])
        assert ours.recorded() == set(KEYS[:5])
        with open(tmp_path / "rank-1.jsonl", "ab") as file:  # what a kill leaves is no record
            file.write(json.dumps(record(KEYS[6]).to_json()).encode())
        ours.append_missing([record(key) for key in KEYS[5:8]])
        write(tmp_path, "rank-1", KEYS[8:9])  # cuts that line off and goes on
        assert ours.recorded() == set(KEYS[:9])
        (tmp_path / "rank-1.jsonl").unlink()
        ours.append_missing([record(key) for key in KEYS])
    assert ledgers(tmp_path).merge() == [record(key) for key in KEYS]


def _score_all(folder, name, keys, start):
    start.wait()
    with Ledger(folder, name, IDENTITY) as ledger:
        for position in range(0, len(keys), 7):
            ledger.append_missing([record(key) for key in keys[position : position + 7]])


def test_processes_that_score_the_same_samples_at_once_leave_one_record_each(tmp_path):
    context = multiprocessing.get_context("fork")
    keys = [f"test/fear/{index:04d}" for index in range(700)]
    start = context.Barrier(3)
    processes = [context.Process(target=_score_all, args=(tmp_path, f"rank-{r}", keys, start)) for r in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert [entry.sample_key for entry in ledgers(tmp_path, expected_keys=keys).merge()] == keys


def _merge_into(folder, results):
    results.put(ledgers(folder).merge_if_complete(lambda records: len(records)))


def test_several_processes_may_merge_at_once(tmp_path):
    write(tmp_path, "rank-0", KEYS)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_merge_into, args=(tmp_path, results)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=30) for _ in processes] == [len(KEYS)] * 4
    for process in processes:
        process.join()


def test_machines_are_noted_and_never_compared(tmp_path):
    for name, machine, keys in (("a", {"torch": 1}, KEYS[:2]), ("a", {"torch": 1}, KEYS[2:4]), ("b", {"torch": 2}, ())):
        with Ledger(tmp_path, name, IDENTITY, machine) as ledger:
            ledger.append_missing([record(key) for key in keys])
    assert (tmp_path / "a.jsonl").read_bytes().count(b"\n") == 1 + 4
    with Ledger(tmp_path, "a", IDENTITY, {"torch": 3}) as ledger:
        ledger.append_missing([record(key) for key in KEYS])
    assert read_machines(tmp_path) == [{"torch": 1}, {"torch": 3}, {"torch": 2}]
    assert ledgers(tmp_path).merge() == [record(key) for key in KEYS]
