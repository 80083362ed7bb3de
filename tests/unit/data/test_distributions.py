"""Samples with a distribution over the categories."""

import pickle
from dataclasses import replace

import pytest

from masp.data.sample import Label, Sample, Samples
from masp.files.fields import check_distribution


def test_a_sample_keeps_its_distribution_in_a_table():
    votes = (0.25, 0.75)
    samples = [
        Sample("train/b", "train", "b.jpg", "fear", {"scene": "sea"}, votes),
        Sample("train/a", "train", "a.jpg", "fear", {"scene": "sea"}),
        Sample("train/c", "train", "c.jpg", "fear", {"scene": "sea"}, votes),
    ]
    table = Samples.of(samples)
    assert [sample.distribution for sample in table] == [votes, None, votes]
    assert table == samples and len(table.table.labels) == 2
    assert pickle.loads(pickle.dumps(table[1:])) == samples[1:]
    assert samples[0] != Sample("train/b", "train", "b.jpg", "fear", {"scene": "sea"}, (0.5, 0.5))
    assert replace(table.table.labels[0], aspects=(), texts=()) == Label("fear", (), (), votes)


@pytest.mark.parametrize("values", [(1.0,), (0.5, 0.5), (0.1,) * 10, (1 / 3,) * 3, (0.0, 1.0), (0.5, 0.5000009)])
def test_a_distribution_is_taken(values):
    assert check_distribution(values) == values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((), "for each category"),
        ((-0.1, 1.1), "0 or more"),
        ((float("nan"), 1.0), "finite"),
        ((float("inf"), 0.0), "finite"),
        ((0.5, 0.499), "sum to 1"),
        ((0.0, 0.0), "sum to 1"),
    ],
)
def test_what_is_not_a_distribution_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        check_distribution(values)
