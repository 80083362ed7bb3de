"""What is said beside the metrics, on a real cache."""

from types import SimpleNamespace

import numpy as np
import pytest

from masp.cache.reader import open_cache
from masp.data.sample import Sample
from masp.evaluation.feed import CachedFeed, _distributions, digest_of_data, digest_of_rows
from masp.evaluation.findings import (
    count_split,
    largest_category,
    left_out_notes,
    protocol_of,
    summary_lines,
    target_findings,
    value_groups,
)
from masp.results.ledger_format import Record
from masp.results.ledgers.table import RecordTable
from masp.results.metrics import compute_metrics
from tests.small_cache import make_small_cache


@pytest.fixture(scope="module")
def feeds(tmp_path_factory):
    """A feed per split of a cache with 5 training images, one of them in quarantine, and 9 test images."""
    cache = open_cache(make_small_cache(tmp_path_factory.mktemp("findings") / "cache", num_train=6, num_test=9))

    def feed(split):
        rows = sorted(cache.rows(split).tolist(), key=lambda row: cache.index.keys[row])
        keys = [cache.index.keys[row] for row in rows]
        return CachedFeed(
            keys=keys,
            labels=[cache.categories[cache.index.category[row]] for row in rows],
            categories=cache.categories,
            model={},
            machine={},
            hidden_size=8,
            data_digest="",
            num_quarantined=cache.manifest.splits[split].num_quarantined,
            aspects=tuple(cache.manifest.aspects),
            cache=cache,
            row_of=dict(zip(keys, rows, strict=True)),
            num_workers=0,
            tokens=None,
        )

    return SimpleNamespace(train=feed("train"), test=feed("test"))


def as_records(feed, means, wrong=()):
    pairs = [(key, means[label]) for key, label in zip(feed.keys, feed.labels, strict=True) if label in means]
    categories = list(dict.fromkeys(means.values()))
    return [
        Record(key, label, None if key in wrong else label, tuple(float(label == c) for c in categories))
        for key, label in pairs
    ]


OWN = {"awe": "awe", "fear": "fear"}


def test_quarantine_and_what_a_map_leaves_out_are_counted(feeds):
    whole = count_split(feeds.test, OWN)
    assert (whole.num_scored, whole.num_in_split) == (9, 9) and left_out_notes(whole) == []
    mapped = count_split(feeds.train, {"fear": "terror"})
    assert (mapped.num_scored, mapped.num_quarantined, dict(mapped.left_out)) == (3, 1, {"awe": 2})
    assert left_out_notes(mapped) == ["2 of 6 images are left out by evaluate.category_map: awe 2"]


def test_the_largest_category_is_that_of_the_training_split_as_it_is_mapped(feeds):
    records = as_records(feeds.test, OWN)
    found = largest_category(feeds.test, "test", OWN, compute_metrics(records, ("awe", "fear")))
    assert (found.category, found.split, found.share, found.accuracy) == ("fear", "train", 3 / 5, 4 / 9)
    both = {"awe": "strong", "fear": "strong"}
    metrics = compute_metrics(as_records(feeds.test, both), ("strong",))
    assert largest_category(feeds.test, "test", both, metrics).accuracy == 1


def test_accuracy_per_value_is_of_the_images_that_were_scored(feeds):
    annotated = [key for key, answers in zip(feeds.test.keys, feeds.test.annotations(), strict=True) if answers]
    assert len(annotated) == 6
    wrong = {annotated[0]}
    outcomes = [(key, key not in wrong) for key in feeds.test.keys]
    scene = value_groups(feeds.test, outcomes).to_json()["scene"]["sea side"]
    assert (scene["num_samples"], scene["num_correct"]) == (6, 5)
    fewer = [pair for pair in outcomes if pair[0] not in annotated[2:4]]
    scene = value_groups(feeds.test, fewer).to_json()["scene"]["sea side"]
    assert (scene["num_samples"], scene["num_correct"]) == (4, 3)
    assert value_groups(feeds.test, []).to_json() == {}


def test_two_splits_that_are_scored_alike_have_one_protocol():
    identity = {"samples": "a", "split": "test", "categories": ["a"], "precision": "fp32"}
    assert protocol_of(identity) == protocol_of(
        identity | {"samples": "b", "split": "val", "source": "live", "attention": True}
    )
    assert protocol_of(identity) != protocol_of(identity | {"precision": "bf16"})


def test_the_last_line_says_of_which_images_it_is(feeds, tmp_path):
    means = {"fear": "fear"}
    split = count_split(feeds.train, means)
    records = as_records(feeds.train, means)
    metrics = compute_metrics(records, ("fear",))
    found = target_findings(feeds.train, tmp_path, {}, "train", split, means, metrics, RecordTable.of(records))
    assert found["coverage"] == 0.5 and found["accuracy_of_split"] == 0.5
    assert found["temperature_scaling"]["reason"] == "the dataset has no validation split"
    *_, guess, last = summary_lines({**metrics.to_json(), **found}, tmp_path / "metrics.json")
    assert guess == "evaluate: always answering 'fear', the largest category of train, would give 1.0000"
    assert last.startswith("evaluate: accuracy 1.0000 (95 % interval ") and last.endswith(f": {tmp_path}/metrics.json")
    assert (
        "on 3 images of the 6 in the split (1 in quarantine, 2 left out by the category map; 0.5000 with those counted "
        "as wrong)" in last
    )


def test_a_whole_split_gets_no_more_words_and_one_category_a_remark(feeds, tmp_path):
    records = [Record(r.sample_key, r.label, "awe", (1.0, 0.0)) for r in as_records(feeds.test, OWN)]
    metrics = compute_metrics(records, ("awe", "fear"))
    split = count_split(feeds.test, OWN)
    found = target_findings(feeds.test, tmp_path, {}, "test", split, OWN, metrics, RecordTable.of(records))
    last = summary_lines({**metrics.to_json(), **found}, tmp_path)[-1]
    assert found["coverage"] == 1
    assert last.endswith(f"on 9 images; it never predicts any category but 'awe': {tmp_path}")


def test_a_validation_split_that_was_scored_otherwise_gives_no_temperature(feeds, tmp_path):
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "metrics.json").write_text('{"protocol": "another"}')
    records = as_records(feeds.test, OWN)
    metrics = compute_metrics(records, ("awe", "fear"))
    split = count_split(feeds.test, OWN)
    for text, reason in (('{"protocol": "another"}', "not evaluated in the same way"), ("{", "not valid JSON")):
        (tmp_path / "val" / "metrics.json").write_text(text)
        found = target_findings(feeds.test, tmp_path, {}, "test", split, OWN, metrics, RecordTable.of(records))
        assert reason in found["temperature_scaling"]["reason"] and found["temperature_scaling"]["scaled"] is None


def test_a_line_about_the_distributions_of_the_data(feeds, tmp_path):
    records = as_records(feeds.test, OWN)
    votes = np.array([[0.8, 0.2], [0.0, 0.0], *[[0.3, 0.7]] * 7])
    split = count_split(feeds.test, OWN)
    for distributions, expected in ((None, 0), (votes, 1)):
        metrics = compute_metrics(records, ("awe", "fear"), distributions=distributions)
        found = target_findings(feeds.test, tmp_path, {}, "test", split, OWN, metrics, RecordTable.of(records))
        lines = summary_lines({**metrics.to_json(), **found}, tmp_path / "metrics.json")
        about = [line for line in lines if "distributions of the data" in line]
        assert len(about) == expected and lines[-1].startswith("evaluate: accuracy ")
    assert about[0].startswith("evaluate: against the distributions of the data: expected accuracy 0.")
    for text in (" of at most 0.7125, KL divergence 0.", "JS divergence 0.", "cosine similarity 0."):
        assert text in about[0]
    assert about[0].endswith(" on the 8 images with a distribution")


def test_the_digest_of_the_data_holds_their_distributions_where_there_are_any():
    rows, votes = [("a", "awe"), ("b", "fear")], np.array([[0.5, 0.5], [0.0, 0.0]])
    assert digest_of_data(rows, None) == digest_of_rows(rows)
    found = {digest_of_data(rows, None), digest_of_data(rows, votes), digest_of_data(rows, votes[:, ::-1] * [1, 0.5])}
    assert len(found) == 3 and digest_of_data(rows, votes.copy()) in found


def test_distributions_of_images_that_are_read_live():
    samples = [Sample("test/a", "test", "a", "awe", {}, (0.75, 0.25)), Sample("test/b", "test", "b", "awe", {})]
    assert _distributions(samples, 2).tolist() == [[0.75, 0.25], [0.0, 0.0]]
    assert _distributions(samples[1:], 2) is None
