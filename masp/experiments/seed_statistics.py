"""Is one way of training better than another, beyond the chance of images and of training seeds?

Both ways are run with the same seeds and scored on the same images, so that every number here is of paired differences
`d[s, i]`: 1 where with seed s only the second is right about image i, -1 where only the first is, else 0. Three things
can be asked of their mean, and each leaves out less:

- over images: the seeds are those that were run. A bootstrap over images of the mean over seeds.
- over seeds: the images are those of the split. A paired t test over the S differences of accuracy.
- over both: seeds and images are drawn together, each with replacement, and the mean is taken over the drawn seeds and
  images (a bootstrap of crossed factors; Owen, The Pigeonhole Bootstrap, 2007: its variance is not too small).

Fewer than `MIN_SEEDS` seeds say too little about other seeds for any claim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from masp.results.intervals import percentiles

MIN_SEEDS = 5
"""Seeds below which nothing is claimed."""

LEVEL = 0.05

_NUM_RESAMPLES = 5000
_RESAMPLES_PER_COMPARISON = 2 * 2 / LEVEL
"""So that the smallest p-value is half of the level after correction."""
_MAX_RESAMPLES = 20_000
_MAX_DRAWS = 20_000_000
"""Numbers that are drawn for one comparison; with many seeds there are fewer resamples, never below a thousand."""

_MAX_NAMED = 30
"""Names in one sentence."""

Claim = Literal["ahead", "behind"]


@dataclass(frozen=True)
class SeedTest:
    """Paired comparison over seeds and images."""

    num_seeds: int
    difference: float
    """Mean over seeds and images: the second minus the first."""
    images_ci95: tuple[float, float]
    """Over images, for the seeds that were run."""
    seeds_ci95: tuple[float, float] | None
    """Over seeds, for the images of the split (t distribution); None of fewer than two seeds."""
    both_ci95: tuple[float, float] | None
    """Over seeds and images drawn together; None of fewer than two seeds."""
    t_p: float | None
    """Of the paired t test over seeds; None of fewer than two seeds, or where all seeds differ alike."""
    both_p: float | None
    """Of a difference of zero, from the resamples over both; None of fewer than two seeds."""


@dataclass(frozen=True)
class Corrected:
    """What remains of p-values that are corrected for the number of comparisons in a table (Holm)."""

    t_p: float | None
    both_p: float | None
    claim: Claim | None
    """Only with `MIN_SEEDS` seeds or more, and both p-values below 5 %."""


def compare_seeds(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], seed: int = 0, num_comparisons: int = 1
) -> SeedTest:
    """Compare two ways of training.

    Args:
        first, second: Per training seed, in the same order: which predictions are right, `[N]` bool, in one order.
        seed: Seed of the resamples.
        num_comparisons: For how many comparisons its p-values will be corrected. With very many there are more
            resamples, since the smallest p-value they can give is two over their number.
    """
    num_seeds, num_images = len(first), len(first[0])
    patterns, counts = _patterns(first, second)
    wins = counts @ patterns  # per seed, as integers: equal differences are equal
    random = np.random.default_rng(seed)
    num_wanted = max(_NUM_RESAMPLES, math.ceil(_RESAMPLES_PER_COMPARISON * num_comparisons))
    num_resamples = max(1000, min(num_wanted, _MAX_RESAMPLES, _MAX_DRAWS // len(counts)))
    means = np.empty((num_resamples, num_seeds))
    for start in range(0, num_resamples, 250):
        part = means[start : start + 250]
        part[:] = random.multinomial(num_images, counts / num_images, size=len(part)) @ patterns / num_images
    difference = float(wins.sum() / (num_seeds * num_images))
    images = percentiles(means.mean(axis=1))
    if num_seeds < 2:
        return SeedTest(num_seeds, difference, images, None, None, None, None)
    drawn = random.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_resamples)
    both = (means * drawn).sum(axis=1) / num_seeds
    t_p, seeds = _t_test(wins / num_images, bool((wins == wins[0]).all()))
    tail = min((both <= 0).sum(), (both >= 0).sum())
    both_p = min(1.0, 2 * (1 + int(tail)) / (1 + num_resamples))
    return SeedTest(num_seeds, difference, images, seeds, percentiles(both), t_p, both_p)


def _patterns(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The different columns of `d` as rows, and how many images have each: images that are alike are drawn together."""
    # a pattern is a number of base 3; the first seed is its first digit, and each step keeps the patterns that occur
    names, patterns = np.zeros(len(first[0]), dtype=np.int64), np.zeros((1, 0), dtype=np.int64)
    for a, b in zip(first, second, strict=True):
        names = 3 * names + (b.astype(np.int64) - a + 1)
        found, names = np.unique(names, return_inverse=True)
        patterns = np.column_stack((patterns[found // 3], found % 3 - 1))
    return patterns, np.bincount(names)


def _t_test(differences: np.ndarray, all_equal: bool) -> tuple[float | None, tuple[float, float]]:
    mean, count = float(differences.mean()), len(differences)
    if all_equal:  # no spread to compare the mean with
        return (1.0 if mean == 0 else None), (mean, mean)
    half = float(stats.t.ppf(0.975, count - 1) * differences.std(ddof=1) / count**0.5)
    return float(stats.ttest_1samp(differences, 0).pvalue), (mean - half, mean + half)


def correct(tests: Mapping[str, SeedTest], num_comparisons: int | None = None) -> dict[str, Corrected]:
    """Correct the p-values of all comparisons of a table, and say what may be claimed.

    Args:
        tests: Name -> comparison with the same other one.
        num_comparisons: For how many comparisons, where more could have been made than are: if the same numbers chose
            the other one, for all pairs. None: for those that are made.
    """
    by_t = _holm_of({name: test.t_p for name, test in tests.items()}, num_comparisons)
    by_both = _holm_of({name: test.both_p for name, test in tests.items()}, num_comparisons)
    found = {}
    for name, test in tests.items():
        values = (by_t[name], by_both[name])
        is_sure = test.num_seeds >= MIN_SEEDS and all(value is not None and value < LEVEL for value in values)
        claim: Claim | None = ("ahead" if test.difference > 0 else "behind") if is_sure else None
        found[name] = Corrected(*values, claim)
    return found


def _holm_of(values: Mapping[str, float | None], count: int | None) -> dict[str, float | None]:
    known = {name: value for name, value in values.items() if value is not None}
    adjusted = dict(zip(known, holm(list(known.values()), count), strict=True))
    return {name: adjusted.get(name) for name in values}


def holm(values: Sequence[float], count: int | None = None) -> list[float]:
    """p-values made larger for how many there are, so that 5 % stays the chance of *any* false alarm (Holm).

    Args:
        values: p-values.
        count: How many there are if these are only some of them; None: these. The others count as the larger ones, so
            that these are made larger than they would be among all.
    """
    count = len(values) if count is None else count
    order = sorted(range(len(values)), key=values.__getitem__)
    adjusted, largest = [0.0] * len(values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, values[index] * (count - place)))
        adjusted[index] = largest
    return adjusted


def claims(
    tests: Mapping[str, SeedTest],
    corrected: Mapping[str, Corrected],
    reference: str,
    num_comparisons: int | None = None,
) -> list[str]:
    """What a table may claim, in sentences.

    Args:
        tests: Name as it is shown -> comparison with the reference.
        corrected: The same after correction.
        reference: Name of what all are compared with.
        num_comparisons: See `correct`.
    """
    if not tests:
        return []
    sure = {name: value.claim for name, value in corrected.items() if value.claim}
    few = [name for name, test in tests.items() if test.num_seeds < MIN_SEEDS]
    lines = []
    for claim, words in (("behind", f"{reference} is ahead of"), ("ahead", f"{reference} is behind")):
        if names := [name for name, value in sure.items() if value == claim]:
            lines.append(
                f"{words}: {_listed(names)} (over seeds and images, p below 5 % after Holm's correction for "
                f"{num_comparisons or len(tests):,} comparisons)."
            )
    unsure = [name for name in tests if name not in sure and name not in few]
    if unsure:
        lines.append(f"Not told apart from {reference}: {_listed(unsure)}.")
    if few:
        counts = sorted({tests[name].num_seeds for name in few})
        seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        which = "" if len(few) == len(tests) else f" about {_listed(few)}"
        lines.append(
            f"No claim is made{which}: {seeds} training {'seed' if seeds == '1' else 'seeds'}, of which at least "
            f"{MIN_SEEDS} are needed to say anything about other seeds."
        )
    return lines


def _listed(names: Sequence[str]) -> str:
    """Names, or the first of very many."""
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    between = "; " if any("," in name for name in names) else ", "
    return between.join(names[:_MAX_NAMED]) + more
