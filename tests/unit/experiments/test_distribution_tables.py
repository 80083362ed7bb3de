"""Runs against the distributions of their data: the numbers of `compare` and `study`, and what is not compared."""

import csv
import json

import numpy as np
import pytest

from masp.errors import InputError
from masp.experiments.compare import compare, markdown
from masp.experiments.distribution_tables import measures_of
from masp.experiments.study.table import study, write_table
from masp.experiments.study.variants import FULL, Variant
from masp.results.ledger_format import Record
from masp.results.metrics import compute_metrics
from masp.results.probabilities.distributions import MEASURES
from masp.results.records import read_records_file, write_target_records

CATEGORIES = ("fear", "joy", "awe")
NUM = 40


def votes_of(seed=0):
    found = np.random.default_rng(seed).multinomial(10, (0.5, 0.3, 0.2), size=NUM) / 10
    found[::9] = 0
    return found


def make_run(folder, seed, votes, categories=CATEGORIES, scored=True):
    """A run with drawn scores, whose records come in an order of their own."""
    scores = -np.random.default_rng(seed).gamma(2.0, 1.0, size=(NUM, 3))
    order = np.random.default_rng(seed).permutation(NUM)
    columns = [CATEGORIES.index(category) for category in categories]
    records = [
        Record(
            f"test/{n:03d}", CATEGORIES[n % 3], CATEGORIES[int(scores[n].argmax())],
            tuple(scores[n][columns]) if scored else None, tuple(scores[n][columns] / 2) if scored else None,
        )
        for n in order
    ]  # fmt: skip
    (folder / "evaluate").mkdir(parents=True)
    own = None if votes is None else votes[order][:, columns]
    write_target_records(folder / "evaluate" / "records.h5", records, categories, (), (), None, own)
    return str(folder), compute_metrics(records, categories, distributions=own).distributions


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_each_run_and_each_pair(tmp_path):
    runs, metrics = zip(
        make_run(tmp_path / "one", 1, votes_of()),
        make_run(tmp_path / "two", 2, votes_of(), CATEGORIES[::-1]),  # its columns in another order
        strict=True,
    )
    result = compare(runs, tmp_path / "out")
    for run, expected in zip(result.runs.values(), metrics, strict=True):
        for name, value, interval in expected.rows():
            assert getattr(run.distributions, name) == pytest.approx(value)
            assert getattr(run.distributions, f"{name}_ci95") == pytest.approx(interval)
    one, two = (measures_of(read_records_file(tmp_path / name / "evaluate" / "records.h5")) for name in ("one", "two"))
    for pair, name in zip(result.distribution_pairs, MEASURES, strict=True):
        change = two[name] - one[name]
        assert (pair.first, pair.second, pair.measure) == ("one", "two", name)
        assert pair.difference == pytest.approx(change.mean()) and len(change) == NUM - 5
        low, high = pair.difference_ci95
        assert high - low == pytest.approx(2 * 1.96 * change.std() / np.sqrt(len(change)), rel=0.15)
    rows = table(tmp_path / "out" / "distributions.csv")
    assert [row["run"] for row in rows] == ["one", "two"] and rows[0]["images"] == str(NUM - 5)
    assert float(rows[1]["KL divergence"]) == pytest.approx(metrics[1].kl_divergence)
    assert float(rows[1]["KL divergence 95 % high"]) == pytest.approx(metrics[1].kl_divergence_ci95[1])
    pairs = table(tmp_path / "out" / "distribution-pairs.csv")
    assert [row["measure"] for row in pairs] == list(MEASURES.values())
    assert r"\begin{tabular}" in (tmp_path / "out" / "distributions.tex").read_text()
    assert "KL divergence" in markdown(result) and "best expected accuracy" in markdown(result)
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert found["runs"]["one"]["distributions"]["num_samples"] == NUM - 5 and len(found["distribution_pairs"]) == 4


def test_without_any_nothing_is_said_of_them(tmp_path):
    runs = [make_run(tmp_path / str(n), n, None)[0] for n in range(2)]
    result = compare(runs, tmp_path / "out")
    assert result.distribution_pairs == () and not (tmp_path / "out" / "distributions.csv").exists()
    assert "distribution" not in (tmp_path / "out" / "compare.json").read_text() + markdown(result)


def test_where_answers_were_generated_there_is_the_expected_accuracy_alone(tmp_path):
    runs = [make_run(tmp_path / str(n), n, votes_of(), scored=n == 0)[0] for n in range(2)]
    result = compare(runs, tmp_path / "out")
    assert [pair.measure for pair in result.distribution_pairs] == ["expected_accuracy"]
    assert table(tmp_path / "out" / "distributions.csv")[1]["KL divergence"] == ""


@pytest.mark.parametrize(
    ("votes", "categories", "message"),
    [
        (votes_of(1), CATEGORIES, r"the distribution of test/001 is another in two \(.*\) than in one \(\d+ samples"),
        (None, CATEGORIES, r"two \(.*\) was evaluated without distributions"),
    ],
)
def test_other_distributions_are_refused(tmp_path, votes, categories, message):
    one, two = make_run(tmp_path / "one", 1, votes_of())[0], make_run(tmp_path / "two", 2, votes, categories)[0]
    with pytest.raises(InputError, match=message):
        compare([one, two], tmp_path / "out")


def test_a_study_has_the_mean_over_seeds_of_each_variant(tmp_path):
    variants = [
        Variant(name=FULL, title="MASP", group="", changes={}, stages=()),
        Variant(name="zero_shot", title="Zero-shot", group="", changes={}, stages=(), seeded=False),
    ]
    metrics = {}
    for number, variant in enumerate(variants):
        for seed in (1, 2) if variant.seeded else (1,):
            folder = tmp_path / f"seed-{seed}" / variant.name
            metrics[variant.name, seed] = make_run(folder, 10 * number + seed, votes_of())[1]
    result = study(tmp_path, variants, [1, 2])
    found = result.variants[FULL].distributions
    for name in MEASURES:
        mean = np.mean([getattr(metrics[FULL, seed], name) for seed in (1, 2)])
        assert getattr(found, name) == pytest.approx(mean)
        low, high = getattr(found, f"{name}_ci95")
        assert low < mean < high
    alone = result.variants["zero_shot"].distributions
    assert alone.rows()[1][1] == pytest.approx(metrics["zero_shot", 1].kl_divergence)
    write_table(tmp_path, variants, [1, 2])
    assert [row["variant"] for row in table(tmp_path / "distributions.csv")] == ["MASP", "Zero-shot"]
    assert (tmp_path / "distributions.tex").is_file() and "KL divergence" in (tmp_path / "study.md").read_text()
    assert json.loads((tmp_path / "study.json").read_text())["variants"][FULL]["distributions"]["num_samples"] == 35
