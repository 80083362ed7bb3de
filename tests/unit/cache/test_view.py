"""A cache opened with other labels or answers shows them everywhere, and holds what it held."""

import pickle
import shutil

import numpy as np
import pytest
import torch

from masp.cache.findings import findings_of
from masp.cache.reader import open_cache, open_matching_cache
from masp.data.answer_table import AnswerTable
from masp.data.target.labels import NONE, Labels
from masp.errors import InputError
from tests.images import make_config
from tests.small_cache import make_small_cache
from tests.votes import cache_with_votes, drawn_votes


@pytest.fixture
def plain(tmp_path):
    return open_cache(make_small_cache(tmp_path / "small", num_train=9, num_test=6))


def every_third(count):
    return np.array([NONE if row % 3 == 0 else row % 3 - 1 for row in range(count)], dtype=np.int32)


def test_labels_replace_those_of_the_dataset_and_images_without_one_are_in_no_split(plain):
    labels = Labels(("winter", "summer"), every_third(len(plain)))
    seen = plain.seen_with(labels, None)
    assert seen.categories == ("winter", "summer") and plain.categories == ("awe", "fear")
    assert seen.category is labels.category and len(seen) == len(plain)
    for split in plain.splits:
        assert seen.rows(split).tolist() == [row for row in plain.rows(split) if row % 3]
    for row in range(len(plain)):
        before, after = plain.read(row), seen.read(row)
        assert after.category == ("", "winter", "summer")[row % 3] and before.category in plain.categories
        assert (after.key, after.split, after.answers) == (before.key, before.split, before.answers)
        assert torch.equal(after.features.tokens, before.features.tokens)
        assert seen.read_record(row) == plain.read_record(row)
    assert list(seen.answers()) == list(plain.answers())
    again = pickle.loads(pickle.dumps(seen))
    assert again.read(1).category == "winter"


def test_answers_replace_those_of_the_dataset(plain):
    rows = [{"weather": "rain"} if row % 2 else {} for row in range(len(plain))]
    seen = plain.seen_with(None, AnswerTable.of(rows))
    everything = np.arange(len(plain))
    assert list(seen.answers()) == rows and seen.aspects == ("weather",) and plain.aspects == ("brightness", "scene")
    assert seen.has_answer(everything, "weather").tolist() == [bool(row % 2) for row in everything]
    assert not seen.has_answer(everything, "scene").any() and plain.has_answer(everything, "scene").any()
    assert [seen.read(row).answers for row in everything] == rows
    assert [seen.read(row).category for row in everything] == [plain.read(row).category for row in everything]
    assert seen.rows("train").tolist() == plain.rows("train").tolist()


def test_a_column_without_any_answer_is_no_annotated_aspect(plain):
    table = AnswerTable.of([{"weather": "rain"}, *[{}] * (len(plain) - 1)])
    rows = np.arange(1, len(plain))
    none = AnswerTable.join([AnswerTable.of([{}]), table.take(rows)])
    assert "weather" in none.columns and plain.seen_with(None, none).aspects == ()


def test_distributions_are_those_of_the_labels(made, tmp_path):
    directory = cache_with_votes(made[2], tmp_path / "votes")
    cache = open_cache(directory)
    rows = np.arange(len(cache))
    assert cache.has_distribution(rows).any()
    others = cache.seen_with(Labels(("a", "b"), np.zeros(len(cache), dtype=np.int32)), None)
    assert not others.has_distribution(rows).any() and others.distributions(rows).shape == (len(cache), 0)
    assert {others.read(row).distribution for row in rows} == {None}

    root, vlm, _ = made
    seen, _ = open_matching_cache(make_config(root, vlm, directory, "target.categories=[joy,anger]"))
    for row in rows:
        votes = drawn_votes(cache.index.keys[row], cache.categories)
        share = None
        if votes and votes[2] + votes[0]:
            share = (votes[2] / (votes[2] + votes[0]), votes[0] / (votes[2] + votes[0]))
        found = seen.read(row).distribution
        assert found == (None if share is None else pytest.approx(share))
        assert seen.has_distribution(rows[row : row + 1]).tolist() == [share is not None]
        assert seen.distributions(rows[row : row + 1])[0].tolist() == list(found or (0.0, 0.0))


def test_a_configuration_without_another_target_gives_the_cache_as_it_is(made):
    root, vlm, directory = made
    seen, _ = open_matching_cache(make_config(root, vlm, directory))
    assert seen.labels is None and seen.category is seen.index.category
    seen, _ = open_matching_cache(
        make_config(root, vlm, directory, "target.name=feeling", "target.questions=[How is it]")
    )
    assert seen.labels is None


def test_a_configuration_gives_the_cache_its_labels_but_none_to_stage_1(made):
    root, vlm, directory = made
    config = make_config(root, vlm, directory, "target.categories=[joy,anger]")
    seen, _ = open_matching_cache(config)
    own = open_cache(directory)
    kept = [row for row in own.rows("train") if own.read(row).category != "awe"]
    assert seen.rows("train").tolist() == kept and len(kept) < len(own.rows("train"))
    assert [seen.read(row).category for row in kept] == [own.read(row).category for row in kept]
    without, _ = open_matching_cache(config, has_target=False)
    assert without.rows("train").tolist() == own.rows("train").tolist() and without.categories == own.categories


def test_what_is_known_of_the_dataset_counts_the_labels(made):
    root, vlm, directory = made
    own, _ = open_matching_cache(make_config(root, vlm, directory))
    seen, _ = open_matching_cache(make_config(root, vlm, directory, "target.categories=[joy,anger]"))
    before, after = findings_of(own), findings_of(seen)
    assert after.holdings.aspects == before.holdings.aspects
    for split in own.splits:
        counted = {c: sum(seen.read(row).category == c for row in seen.rows(split)) for c in ("anger", "joy")}
        assert after.holdings.categories[split] == counted
    assert "awe" in before.holdings.categories["train"]


def test_a_split_without_any_label_is_empty_and_one_that_is_not_there_is_an_error(plain):
    labels = Labels(("a", "b"), np.where(plain.index.split == plain.splits.index("test"), NONE, 0).astype(np.int32))
    seen = plain.seen_with(labels, None)
    assert len(seen.rows("test")) == 0 and len(seen.rows("train"))
    with pytest.raises(InputError, match="no split 'val'"):
        seen.rows("val")


def test_the_files_stay_what_they_were(made, tmp_path):
    root, vlm, directory = made
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    seen, _ = open_matching_cache(make_config(root, vlm, copy, "target.categories=[joy,anger]"))
    [seen.read(row) for row in seen.rows("train")]
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
