"""Comparisons over seeds and images against scipy, plain resampling and simulations of the null."""

import numpy as np
import pytest
from scipy import stats

from masp.experiments.seed_statistics import MIN_SEEDS, SeedTest, claims, compare_seeds, correct, holm


def draw(num_seeds, num_images, gain, spread=0.0, seed=0):
    """Two ways of training: accuracies 0.6 and 0.6 + gain, each moved from seed to seed."""
    random = np.random.default_rng(seed)
    base = random.random(num_images)

    def runs(share):
        moved = share + spread * random.normal(size=num_seeds)
        return [0.5 * base + 0.5 * random.random(num_images) < each for each in moved]

    return runs(0.5), runs(0.5 + gain)


def test_the_t_test_is_scipys():
    first, second = draw(4, 300, 0.1, 0.05)
    found = compare_seeds(first, second)
    accuracies = [[hits.mean() for hits in runs] for runs in (second, first)]
    expected = stats.ttest_rel(*accuracies)
    assert found.t_p == pytest.approx(expected.pvalue) and found.num_seeds == 4
    assert found.seeds_ci95 == pytest.approx(tuple(expected.confidence_interval()))
    assert found.difference == pytest.approx(np.mean(accuracies[0]) - np.mean(accuracies[1]))


def test_counts_of_patterns_are_drawn_as_images_and_seeds_would_be():
    first, second = draw(3, 200, 0.1, 0.05)
    found = compare_seeds(first, second)
    d = np.array(second, dtype=float) - np.array(first)
    random = np.random.default_rng(9)
    plain_images, plain_both = [], []
    for _ in range(4000):
        images = random.integers(200, size=200)
        plain_images.append(d[:, images].mean())
        plain_both.append(d[random.integers(3, size=3)][:, images].mean())
    assert found.images_ci95 == pytest.approx(np.percentile(plain_images, (2.5, 97.5)), abs=0.008)
    assert found.both_ci95 == pytest.approx(np.percentile(plain_both, (2.5, 97.5)), abs=0.012)


def test_what_differs_from_seed_to_seed_widens_the_interval_over_both():
    calm, wild = (compare_seeds(*draw(6, 2000, 0.05, spread)) for spread in (0.0, 0.1))
    widths = [high - low for low, high in (calm.both_ci95, wild.both_ci95, wild.images_ci95)]
    assert widths[1] > 2.5 * widths[0] and widths[1] > 2.5 * widths[2]


@pytest.mark.full
def test_chance_of_seeds_alone_is_not_taken_for_a_difference():
    """Images are many, seeds are few and differ: the interval over images is sure of what is not there."""
    false = {"images": 0, "claims": 0}
    for trial in range(60):
        found = compare_seeds(*draw(5, 1500, 0.0, 0.05, seed=trial))
        false["images"] += not found.images_ci95[0] < 0 < found.images_ci95[1]
        false["claims"] += correct({"x": found})["x"].claim is not None
    assert false["images"] > 15 and false["claims"] <= 7


def test_below_five_seeds_nothing_is_claimed_however_sure_it_looks():
    for num_seeds in range(1, MIN_SEEDS):
        found = compare_seeds(*draw(num_seeds, 3000, 0.3))
        corrected = correct({"x": found})
        assert found.images_ci95[0] > 0.1 and corrected["x"].claim is None
        (line,) = claims({"x": found}, corrected, "MASP")
        assert line.startswith(f"No claim is made: {num_seeds} training seed")
    found = compare_seeds(*draw(MIN_SEEDS, 3000, 0.3))
    assert correct({"x": found})["x"].claim == "ahead"
    assert claims({"x": found}, correct({"x": found}), "MASP")[0].startswith("MASP is behind: x (over seeds")


def test_one_seed_and_no_spread_over_seeds():
    first, second = draw(1, 100, 0.2)
    one = compare_seeds(first, second)
    assert (one.seeds_ci95, one.both_ci95, one.t_p, one.both_p) == (None,) * 4
    same = compare_seeds(first * 6, second * 6)
    assert same.t_p is None and same.seeds_ci95 == (same.difference,) * 2
    assert correct({"x": same})["x"].claim is None
    equal = compare_seeds(first * 6, first * 6)
    assert (equal.difference, equal.both_p, equal.t_p) == (0.0, 1.0, 1.0)


def test_p_values_are_corrected_over_the_whole_table():
    base = {"num_seeds": 9, "difference": -0.1, "images_ci95": (-1, 0), "seeds_ci95": (-1, 0), "both_ci95": (-1, 0)}
    tests = {name: SeedTest(**base, t_p=p, both_p=0.001) for name, p in (("a", 0.01), ("b", 0.03), ("c", None))}
    found = correct(tests)
    assert (found["a"].t_p, found["b"].t_p, found["c"].t_p) == (0.02, 0.03, None)
    assert {name: value.claim for name, value in found.items()} == {"a": "behind", "b": "behind", "c": None}
    tests |= {name: SeedTest(**base, t_p=0.9, both_p=0.9) for name in "defg"}
    assert [name for name, value in correct(tests).items() if value.claim] == []
    text = " ".join(claims(tests, correct(tests), "MASP"))
    assert text == "Not told apart from MASP: a, b, c, d, e, f, g."


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_millions_of_images_take_little():
    first, second = draw(5, 400_000, 0.01)
    found = compare_seeds(first, second)
    assert found.images_ci95[0] < found.difference < found.images_ci95[1] < found.difference + 0.005


def test_p_values_are_corrected_for_comparisons_that_were_only_possible():
    values = [0.001, 0.02, 0.004]
    assert holm(values, 10) == pytest.approx([0.01, 0.16, 0.036])
    among_all = holm([*values, *([0.5] * 7)])[:3]
    assert holm(values, 10) == pytest.approx(among_all)
    smaller = holm([*values, 0.0015, 0.0001])[:3]  # never below what they would be among all
    assert all(a >= b for a, b in zip(holm(values, 5), smaller, strict=True))
    first, second = draw(5, 400, 0.3)
    test = compare_seeds(first, second, num_comparisons=150)
    assert 150 * compare_seeds(first, second).both_p > 0.05 > 150 * test.both_p  # resamples enough for a claim
    assert correct({"a": test}, 150)["a"].both_p == pytest.approx(150 * test.both_p)
    assert "for 150 comparisons" in claims({"a": test}, correct({"a": test}, 150), "b", 150)[0]
