"""The ledger: nothing is lost, nothing is counted twice, nothing foreign slips in."""

import contextlib
import multiprocessing
import os
import random
import signal
import time

import pytest

from masp.errors import DataError, FilesInUse, InputError
from masp.results.ledger import Ledgers, read_records
from masp.results.ledger_file import Ledger
from masp.results.ledger_format import Record, encode_line, likelihood_problem
from masp.results.ledgers.slices import Slice

IDENTITY = {"cache": "ab12", "scoring": "likelihood", "categories": ["fear", "joy"], "aspects": ("object",)}
KEYS = [f"test/fear/{index:03d}" for index in range(20)]


def record(key, **changes):
    fields = {"label": "fear", "scores": (-0.1, -2.25), "mean_scores": (-0.1, -1.0), "prediction": "fear"}
    return Record(key, **(fields | changes))


def ledgers(directory, **changes):
    return Ledgers(directory, **({"images": KEYS, "identity": IDENTITY} | changes))


def merge(directory, **changes):
    return list(ledgers(directory, **changes).merge())


def missing(directory, **changes):
    with ledgers(directory, **changes).begin() as scoring:
        return [key for keys in scoring.missing.values() for key in keys]


def append_lines(path, *values):
    """Lines as a process would write them that checks nothing."""
    with open(path, "ab") as file:
        file.write(b"".join(map(encode_line, values)))


def write(folder, name, keys, identity=IDENTITY):
    with Ledger(folder, name, identity) as ledger:
        for key in keys:
            ledger.append(record(key))
    return ledger.path


def test_records_come_back_equal_and_in_the_expected_order(tmp_path):
    write(tmp_path, "rank-0", KEYS[10:])
    write(tmp_path, "rank-1", KEYS[:10])
    assert merge(tmp_path) == [record(key) for key in KEYS]
    assert read_records(tmp_path) == [record(key) for key in KEYS]


def test_a_second_call_appends_to_what_the_first_one_left(tmp_path):
    write(tmp_path, "rank-0", KEYS[:5])
    assert missing(tmp_path) == KEYS[5:]
    write(tmp_path, "rank-0", KEYS[5:])
    assert missing(tmp_path) == []
    assert len((tmp_path / "rank-0.jsonl").read_text().splitlines()) == len(KEYS) + 1


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7, 30])
def test_slices_are_disjoint_and_cover_everything(num_ranks):
    slices = [Slice(rank, num_ranks).of(KEYS) for rank in range(num_ranks)]
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
    for call in (Ledgers.merge, Ledgers.begin):
        with pytest.raises(DataError, match="1 samples have more than one record") as error:
            call(ledgers(tmp_path))
        assert KEYS[3] in str(error.value) and "rank-0.jsonl, rank-1.jsonl" in str(error.value)


def test_a_record_doubled_in_one_file_is_an_error(tmp_path):
    write(tmp_path, "rank-0", [*KEYS, KEYS[0]])
    with pytest.raises(DataError, match="more than one record"):
        ledgers(tmp_path).merge()


def test_a_foreign_record_is_an_error(tmp_path):
    write(tmp_path, "rank-0", [*KEYS, "test/other/1"])
    for call in (Ledgers.merge, Ledgers.begin):
        with pytest.raises(DataError, match="not evaluated: test/other/1") as error:
            call(ledgers(tmp_path))
        assert "rank-0.jsonl" in str(error.value)


@pytest.mark.parametrize("cut", [1, 2, 20, 80])
def test_a_half_written_last_line_is_dropped_and_scored_again(tmp_path, cut):
    path = write(tmp_path, "rank-0", KEYS)
    path.write_bytes(path.read_bytes()[:-cut])
    assert missing(tmp_path) == KEYS[-1:]
    write(tmp_path, "rank-0", KEYS[-1:])
    assert merge(tmp_path) == [record(key) for key in KEYS]


def test_a_last_line_that_is_ended_but_no_json_is_dropped_too(tmp_path):
    path = write(tmp_path, "rank-0", KEYS)
    path.write_bytes(path.read_bytes() + b'{"sample_key": "te\n')
    assert missing(tmp_path) == []


@pytest.mark.parametrize("size", [0, 1, 10])
def test_a_half_written_header_is_written_again(tmp_path, size):
    path = write(tmp_path, "rank-0", [])
    path.write_bytes(path.read_bytes()[:size])
    assert missing(tmp_path) == KEYS
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
    theirs = ledgers(tmp_path, identity=other)
    for call in (lambda: theirs.begin(Slice(1, 2)), theirs.merge, lambda: theirs.merge_if_complete(len)):
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
        ({"scores": None}, "has mean_scores without scores"),
        ({"scores": None, "mean_scores": None}, "has no scores for 2 categories"),
        ({"scores": (-1.0,), "mean_scores": (-1.0,)}, "has 1 scores for 2 categories"),
        ({"scores": (-1.0,)}, "has 2 mean_scores for 1 scores"),
        ({"mean_scores": None}, "has no mean_scores for 2 categories"),
        ({"mean_scores": (-1.0,) * 3}, "has 3 mean_scores for 2 scores"),
        ({"scores": (0.5, -2.0)}, "has a log-likelihood of 0.5 in 'scores'; must be at most 0"),
        ({"mean_scores": (-0.1, 2.0)}, "has a log-likelihood of 2 in 'mean_scores'; must be at most 0"),
        ({"mean_scores": (-7.0, -1.0)}, "has a mean_score of -7, below its sum of -0.1"),
    ],
)
def test_a_record_that_does_not_fit_is_named_by_file_line_and_key(tmp_path, changes, problem):
    write(tmp_path, "rank-0", KEYS[:5])
    path = write(tmp_path, "rank-1", [])
    append_lines(path, *(record(key, **(changes if key == KEYS[8] else {})).to_json() for key in KEYS[5:]))
    strict = ledgers(tmp_path, problem=_misfit)
    for call in (strict.merge, strict.begin, lambda: strict.merge_if_complete(len)):
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
        left = missing(tmp_path, images=keys)
        process = context.Process(target=_score_slowly, args=(tmp_path, "rank-0", left))
        process.start()
        time.sleep(0.05 + random.Random(attempt).random() * 0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert len(read_records(tmp_path)) >= before
    left = missing(tmp_path, images=keys)
    assert 0 < len(left) < len(keys)
    write(tmp_path, "rank-0", left)
    assert [entry.sample_key for entry in ledgers(tmp_path, images=keys).merge()] == keys


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


def score(directory, rank, size, num=None, keys=KEYS):
    """Score a slice, or the first images of what is missing in it; returns these."""
    with ledgers(directory, images=keys).begin(Slice(rank, size)) as scoring:
        images = list(scoring.missing)[:num]
        for image in images:
            scoring.append([record(image)])
    return images


@pytest.mark.parametrize("sizes", [(1, 3, 2), (3, 1), (2, 4, 3), (5, 5), (7, 2, 1)])
def test_a_stopped_evaluation_goes_on_with_any_number_of_ranks(tmp_path, sizes):
    """Each division scores half of what its ranks find missing; the last one all of it."""
    scored = []
    for size in sizes:
        for rank in range(size):
            left = [key for key in KEYS if key not in scored]
            found = missing(tmp_path) if rank == 0 and size == 1 else left
            assert found == left
            half = None if size == sizes[-1] else 1 + len(KEYS) // size // 2
            scored += score(tmp_path, rank, size, half)
            assert len(set(scored)) == len(scored)
    assert sorted(scored) == KEYS and merge(tmp_path) == [record(key) for key in KEYS]


def test_images_of_a_live_process_are_left_to_it(tmp_path):
    with ledgers(tmp_path).begin(Slice(0, 2)) as ours:
        assert list(ours.missing) == KEYS[::2] and ours.num_records == 10
        context = multiprocessing.get_context("fork")
        with context.Pool(1) as pool:
            assert pool.apply(score, (tmp_path, 1, 3)) == [KEYS[i] for i in range(1, 20, 3) if i % 2]
            assert pool.apply(score, (tmp_path, 1, 2)) == [KEYS[i] for i in range(1, 20, 2) if i % 3 != 1]
            assert pool.apply(score, (tmp_path, 2, 4)) == []
        ours.append([record(key) for key in KEYS[:6:2]])
        assert not ours.is_done
    assert ledgers(tmp_path).merge_if_complete(len, ours) is None
    assert missing(tmp_path) == KEYS[6::2]
    score(tmp_path, 0, 1)
    assert ledgers(tmp_path).merge_if_complete(len) == 20


def test_whoever_comes_last_merges_and_nobody_else(tmp_path):
    merged = []
    for rank in (2, 0, 1):
        with ledgers(tmp_path).begin(Slice(rank, 3)) as scoring:
            scoring.append([record(key) for key in scoring.missing])
        merged.append(ledgers(tmp_path).merge_if_complete(len, scoring))
    assert merged == [None, None, 20]


def test_the_last_record_may_come_from_any_division(tmp_path):
    """A killed process of one division leaves two samples; one rank of another, whose slice holds them, merges."""
    score(tmp_path, 0, 1, 17)
    score(tmp_path, 1, 4, 1)
    assert sorted(missing(tmp_path)) == [KEYS[18], KEYS[19]]
    score(tmp_path, 0, 2)
    with ledgers(tmp_path).begin(Slice(1, 2)) as scoring:
        scoring.append([record(key) for key in scoring.missing])
    assert ledgers(tmp_path).merge_if_complete(len, scoring) == 20


@pytest.mark.parametrize("damage", ["gone", "torn", "flipped", "of another evaluation"])
def test_the_log_may_be_lost(tmp_path, damage):
    score(tmp_path, 0, 3)
    score(tmp_path, 1, 3, 3)
    log = tmp_path / "slices.log"
    if damage == "gone":
        log.unlink()
    elif damage == "of another evaluation":
        log.write_bytes(encode_line({"slices": 1, "identity": {"split": "val"}}))
    else:
        data = bytearray(log.read_bytes())
        data = data[:-5] if damage == "torn" else data.replace(b"begun", b"bfgun", 1)
        log.write_bytes(data)
    assert len(missing(tmp_path)) == 20 - 7 - 3
    score(tmp_path, 0, 2), score(tmp_path, 1, 2)
    assert ledgers(tmp_path).merge_if_complete(len) == 20


def test_a_ledger_that_was_removed_after_it_was_done_is_scored_again(tmp_path):
    for rank in range(2):
        with ledgers(tmp_path).begin(Slice(rank, 2)) as scoring:
            scoring.append([record(key) for key in scoring.missing])
        ledgers(tmp_path).merge_if_complete(len, scoring)
    (tmp_path / "rank-1.jsonl").unlink()
    assert ledgers(tmp_path).merge_if_complete(len) is None
    assert missing(tmp_path) == KEYS[1::2]


def test_a_ledger_that_another_division_left_before_there_was_a_log_is_known(tmp_path):
    """rank-0 of three, then rank-0 of two, whose slice is another one, and then the other rank of two."""
    write(tmp_path, "rank-0", KEYS[::3])
    assert score(tmp_path, 0, 2) == [key for key in KEYS[::2] if key not in KEYS[::3]]
    assert score(tmp_path, 1, 2) == [key for key in KEYS[1::2] if key not in KEYS[::3]]


def test_what_is_read_of_other_ledgers_is_read_once(tmp_path, monkeypatch):
    import masp.results.ledgers.index as index

    monkeypatch.setattr(index, "_MIN_TAIL", 1)
    write(tmp_path, "rank-0", KEYS[:8])
    seen = []
    problem = lambda record: seen.append(record.sample_key)  # noqa: E731
    for rank in (1, 2):
        with ledgers(tmp_path, problem=problem).begin(Slice(rank, 3)) as scoring:
            assert list(scoring.missing) == KEYS[8 + (rank - 8) % 3 :: 3]
    assert seen == KEYS[:8]
    write(tmp_path, "rank-0", KEYS[8:10])
    assert missing(tmp_path, problem=problem)[0] == KEYS[10]
    assert (tmp_path / ".rank-0.index").exists()
    # a rank's own ledger is read whole; another one's index grows by what is new
    seen.clear()
    with ledgers(tmp_path, problem=problem).begin(Slice(1, 3)):
        assert seen == KEYS[8:10]
    (tmp_path / "rank-0.jsonl").unlink()
    assert missing(tmp_path) == KEYS


def test_a_record_that_does_not_fit_is_not_written(tmp_path):
    with ledgers(tmp_path, problem=_misfit).begin() as scoring:
        for changes, problem in (
            ({"label": "joy"}, "has another label"),
            ({"scores": (float("nan"), -1.0)}, "has a number in 'scores' that is not finite"),
            ({"prediction": "joy"}, "predicts 'joy', but its largest score is that of 'fear'"),
        ):
            with pytest.raises(DataError, match=f"^sample 'test/fear/000': its record {problem}.*; it is not written$"):
                scoring.append([record(KEYS[1]), record(KEYS[0], **changes)])
    assert read_records(tmp_path) == []


def _score_all(folder, size, keys, start, result):
    start.wait()
    for rank in range(size):
        with contextlib.suppress(FilesInUse), ledgers(folder, images=keys).begin(Slice(rank, size)) as scoring:
            for image in scoring.missing:
                scoring.append([record(image)])
            result.put(len(scoring.missing))


def test_processes_of_several_divisions_at_once_leave_one_record_each(tmp_path):
    context = multiprocessing.get_context("fork")
    keys = [f"test/fear/{index:04d}" for index in range(700)]
    start, result = context.Barrier(3), context.Queue()
    sizes = (1, 2, 3)
    processes = [context.Process(target=_score_all, args=(tmp_path, size, keys, start, result)) for size in sizes]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    score(tmp_path, 0, 1, keys=keys)
    assert [entry.sample_key for entry in ledgers(tmp_path, images=keys).merge()] == keys


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
            ledger.append(*map(record, keys))
    assert (tmp_path / "a.jsonl").read_bytes().count(b"\n") == 1 + 4
    with Ledger(tmp_path, "a", IDENTITY, {"torch": 3}) as ledger:
        ledger.append(*map(record, KEYS[4:]))
    table = ledgers(tmp_path).merge()
    assert table.machines == [{"torch": 1}, {"torch": 3}, {"torch": 2}]
    assert list(table) == [record(key) for key in KEYS]
