"""Distances between distributions: against closed forms, scipy, and a computation by hand."""

import json
import math
import tracemalloc

import numpy as np
import pytest
from scipy.spatial.distance import cosine, jensenshannon
from scipy.special import softmax
from scipy.stats import entropy

from masp.results.ledger_format import Record
from masp.results.metrics import compute_metrics
from masp.results.metrics_file import read_metrics, write_metrics
from masp.results.probabilities.distributions import (
    MEASURES,
    asked_distributions,
    largest_expected_accuracy,
    log_softmax,
    measure_distributions,
    summarize,
)
from masp.results.records import WITH_DISTRIBUTIONS, read_records_file, write_target_records

CATEGORIES = ("anger", "awe", "fear", "joy")


def drawn(count=300, seed=0):
    """Votes of ten raters, scores, and predictions; every seventh sample has no votes."""
    random = np.random.default_rng(seed)
    votes = random.multinomial(10, (0.4, 0.3, 0.2, 0.1), size=count) / 10
    votes[::7] = 0
    scores = -random.gamma(2.0, 2.0, size=(count, 4))
    return votes, scores, scores.argmax(axis=1)


def records(scores, predictions=None):
    best = scores.argmax(axis=1) if predictions is None else predictions
    return [
        Record(f"test/{n:05d}", CATEGORIES[n % 4], CATEGORIES[best[n]], tuple(row), tuple(row / 2))
        for n, row in enumerate(scores.tolist() if predictions is not None else scores)
    ]


def test_the_measures_are_those_of_scipy():
    votes, scores, predictions = drawn()
    found = measure_distributions(votes, predictions, lambda rows: scores[rows])
    rows = np.flatnonzero(votes.any(axis=1))
    q = softmax(scores, axis=1)
    assert [len(found[name]) for name in MEASURES] == [len(rows)] * 4 and 0 < len(rows) < len(votes)
    for place, row in enumerate(rows):
        assert found["kl_divergence"][place] == pytest.approx(entropy(votes[row], q[row]))
        assert found["js_divergence"][place] == pytest.approx(jensenshannon(votes[row], q[row]) ** 2)
        assert found["cosine_similarity"][place] == pytest.approx(1 - cosine(votes[row], q[row]))
        assert found["expected_accuracy"][place] == pytest.approx(votes[row][predictions[row]])


def test_by_hand_and_at_the_ends():
    """Equal; disjoint but for a probability that is rounded to 0; certain."""
    votes = np.array([[0.5, 0.5], [1.0, 0.0], [1.0, 0.0]])
    scores = np.array([[-1.0, -1.0], [-1000.0, 0.0], [0.0, -1000.0]])
    found = measure_distributions(votes, np.array([0, 1, 0]), lambda rows: scores[rows])
    assert found["kl_divergence"].tolist() == pytest.approx([0, 1000.0, 0])  # no floor: ln q is -1000
    assert found["js_divergence"].tolist() == pytest.approx([0, math.log(2), 0])
    assert found["cosine_similarity"].tolist() == pytest.approx([1, 0, 1])
    assert found["expected_accuracy"].tolist() == [0.5, 0.0, 1.0]
    assert np.exp(log_softmax(scores)).sum(axis=1).tolist() == pytest.approx([1, 1, 1])
    assert largest_expected_accuracy(votes) == pytest.approx(2.5 / 3)


def test_a_sum_that_is_a_little_off_changes_nothing():
    votes = np.array([[0.7, 0.3]])
    for factor in (1 - 1e-6, 1 + 1e-6):
        found = measure_distributions(votes * factor, np.array([0]), lambda rows: np.log([[0.7, 0.3]]))
        assert found["kl_divergence"][0] == pytest.approx(0, abs=1e-12) and found["cosine_similarity"][0] <= 1
        assert found["expected_accuracy"][0] == pytest.approx(0.7, abs=1e-12)


def test_a_prediction_of_no_category_agrees_with_no_rater():
    votes = np.array([[0.25, 0.75]] * 4)
    found = measure_distributions(votes, np.array([2, -1, 1, 0]), None)
    assert found["expected_accuracy"].tolist() == [0, 0, 0.75, 0.25] and list(found) == ["expected_accuracy"]


def test_intervals_hold_the_means_and_narrow_with_the_samples():
    widths = []
    for count in (100, 1000):
        votes, scores, predictions = drawn(count)
        measured = measure_distributions(votes, predictions, lambda rows, scores=scores: scores[rows])
        found = summarize(measured, largest_expected_accuracy(votes), seed=1)
        assert [name for name, _, _ in found.rows()] == list(MEASURES)
        for name, value, (low, high) in found.rows():
            assert low < value < high, name
            error = measured[name].std() / math.sqrt(found.num_samples)
            assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
        widths.append(found.kl_divergence_ci95[1] - found.kl_divergence_ci95[0])
    assert widths[0] / widths[1] == pytest.approx(math.sqrt(10), rel=0.3)
    empty = measure_distributions(np.zeros((3, 2)), np.zeros(3, dtype=int), None)
    assert summarize(empty, 0.0) is None


def test_categories_that_mean_another_or_are_left_out():
    votes = np.array([[0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.5]])
    same = {category: category for category in CATEGORIES}
    assert asked_distributions(votes, CATEGORIES, same, CATEGORIES) is votes
    means = {"anger": "negative", "fear": "negative", "joy": "positive"}  # awe is left out
    found = asked_distributions(votes, CATEGORIES, means, ("positive", "negative", "neutral"))
    assert found == pytest.approx(np.array([[0.5, 0.5, 0], [0, 0, 0], [0.5, 0.5, 0]]))
    reordered = asked_distributions(votes, CATEGORIES, same, CATEGORIES[::-1])
    assert reordered == pytest.approx(votes[:, ::-1])


def test_they_are_part_of_the_metrics_only_where_there_are_any(tmp_path):
    votes, scores, _ = drawn(50)
    rows = records(scores)
    without = compute_metrics(rows, CATEGORIES)
    found = compute_metrics(rows, CATEGORIES, distributions=votes)
    assert without.distributions is None and "distributions" not in without.to_json()
    assert compute_metrics(rows, CATEGORIES, distributions=np.zeros((50, 4))).distributions is None
    values = found.to_json()["distributions"]
    assert values["num_samples"] == int(votes.any(axis=1).sum())
    assert {**found.to_json(), "distributions": None} == {**without.to_json(), "distributions": None}
    write_metrics(tmp_path / "metrics.json", {**found.to_json(), "lineage": {}})
    problems: list[str] = []
    assert read_metrics(tmp_path / "metrics.json", problems).distributions == found.distributions and not problems


def test_generated_answers_have_no_probabilities():
    votes, _, _ = drawn(8)
    rows = [Record(f"test/{n}", CATEGORIES[n % 4], None if n % 2 else "awe", text="x") for n in range(8)]
    found = compute_metrics(rows, CATEGORIES, distributions=votes).distributions
    assert [name for name, _, _ in found.rows()] == ["expected_accuracy"] and found.kl_divergence is None
    agreed = [votes[n][1] if n % 2 == 0 else 0.0 for n in range(8) if votes[n].any()]
    assert found.expected_accuracy == pytest.approx(np.mean(agreed))


def test_the_records_keep_them(tmp_path):
    votes, scores, _ = drawn(20)
    path = tmp_path / "records.h5"
    plain = write_target_records(path, records(scores), CATEGORIES, (), ())
    assert read_records_file(path).distribution is None
    digest = write_target_records(path, records(scores), CATEGORIES, (), (), None, votes)
    found = read_records_file(path)
    assert np.array_equal(found.distribution, votes) and found.digest == digest != plain
    import h5py

    with h5py.File(path) as file:
        assert file.attrs["format_version"] == WITH_DISTRIBUTIONS


def test_other_values_in_the_records_are_damage(tmp_path):
    import h5py

    from masp.errors import DataError, InputError

    votes, scores, _ = drawn(20)
    path = tmp_path / "records.h5"
    for change, message in (
        (lambda file: file["distribution"].__setitem__((0, 0), 0.5), "rows that are not distributions"),
        (lambda file: file["distribution"].__setitem__((1, slice(None)), (1, 0, 0, 0)), "not that of its digest"),
        (lambda file: file.__delitem__("distribution"), "holds no distribution"),
        (lambda file: file.attrs.__setitem__("format_version", 2), "its format_version is 2, its digest is one of 3"),
        (lambda file: file.attrs.__setitem__("format_version", 9), "its format_version is 9, its digest is one of 3"),
    ):
        write_target_records(path, records(scores), CATEGORIES, (), (), None, votes)
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(DataError, match=message):
            read_records_file(path)
    with h5py.File(path, "r+") as file:
        file.attrs["digest"] = np.bytes_("9:" + "0" * 64)
    with pytest.raises(InputError, match="format_version is 9, this version of MASP reads up to 3"):
        read_records_file(path)


def test_memory_is_a_few_numbers_per_sample():
    votes, scores, predictions = drawn(200_000)
    tracemalloc.start()
    measure_distributions(votes, predictions, lambda rows: scores[rows])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    own, block = 200_000 * (4 + 1 + 1) * 8, (1 << 16) * 4 * 8
    assert peak < own + 16 * block, (peak, own)


def test_values_in_a_file_that_cannot_be_are_left_out(tmp_path):
    votes, scores, _ = drawn(50)
    values = compute_metrics(records(scores), CATEGORIES, distributions=votes).to_json()
    values["distributions"]["kl_divergence"] = -1.0
    (tmp_path / "metrics.json").write_text(json.dumps(values))
    problems: list[str] = []
    assert read_metrics(tmp_path / "metrics.json", problems).distributions is None
    assert len(problems) == 1 and "kl_divergence" in problems[0]
