"""Agreement against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from masp.results.agreement import agreement, cohens_kappa


def test_kappa_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    theirs = random.choice(["rain", "fog", "sun"], 400, p=[0.6, 0.3, 0.1]).tolist()
    given = [text if random.random() < 0.7 else str(random.choice(["rain", "fog", "sun"])) for text in theirs]
    found = agreement(theirs, given)
    assert found.kappa == pytest.approx(cohen_kappa_score(theirs, given))
    assert found.accuracy == sum(a == b for a, b in zip(theirs, given, strict=True)) / 400
    low, high = found.kappa_ci95
    assert low < found.kappa < high and 0.05 < high - low < 0.2


def test_no_answer_is_another_answer():
    found = agreement(["a", "a", "b", "b"], ["a", None, "b", None])
    assert (found.accuracy, found.num_without) == (0.5, 2)
    # observed 1/2; expected 2/4 * 1/4 + 2/4 * 1/4 = 1/4
    assert found.kappa == pytest.approx((1 / 2 - 1 / 4) / (1 - 1 / 4))
    assert found.token_f1 is None


def test_lists_have_words_in_common():
    found = agreement(["dog, tree", "cat"], ["dog", "dog"], is_list=True)
    assert found.accuracy == 0 and found.token_f1 == pytest.approx((2 / 3 + 0) / 2)
    low, high = found.token_f1_ci95
    assert low == 0 and high == pytest.approx(2 / 3)


def test_one_answer_only():
    assert cohens_kappa(np.array([[0, 0]]), np.array([[5]]), 1).tolist() == [1.0]
