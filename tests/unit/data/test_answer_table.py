"""Answers in columns are the dictionaries that they were made of, however they are cut and joined."""

import random

import numpy as np
import pytest

from masp.data import answer_table
from masp.data.answer_table import NONE, AnswerTable

ANSWERS = [
    {"scene": "sea", "object": "dog, tree"},
    {},
    {"brightness": "low"},
    {"object": "dog, tree", "brightness": "very low"},
    {"scene": "a\0b", "mood": "Ärger"},
]


def same(found, expected):
    assert len(found) == len(expected)
    assert list(found) == expected == [found[i] for i in range(len(found))] == found[:]


def test_it_reads_like_the_list_that_it_was_made_of():
    table = AnswerTable.of(ANSWERS)
    same(table, ANSWERS)
    assert table[-1] == ANSWERS[-1]
    assert table.columns["scene"].texts == ("a\0b", "sea")
    assert table.columns["scene"].numbers.tolist() == [1, NONE, NONE, NONE, 0]
    with pytest.raises(IndexError):
        table[len(ANSWERS)]


@pytest.mark.parametrize("answers", [[], [{}], [{}, {}]])
def test_images_without_answers_are_rows_too(answers):
    same(AnswerTable.of(answers), answers)
    same(AnswerTable.join([AnswerTable.of(answers), AnswerTable.of(answers)]), answers + answers)
    assert AnswerTable.of(answers).has_any(["scene"]).tolist() == [False] * len(answers)
    same(AnswerTable.join([]), [])


@pytest.mark.parametrize("cut", range(len(ANSWERS) + 1))
def test_parts_joined_are_the_whole(cut):
    whole = AnswerTable.of(ANSWERS)
    joined = AnswerTable.join([AnswerTable.of(ANSWERS[:cut]), AnswerTable.of(ANSWERS[cut:])])
    same(joined, ANSWERS)
    for aspect, column in whole.columns.items():
        assert joined.columns[aspect].texts == column.texts
        assert np.array_equal(joined.columns[aspect].numbers, column.numbers)
        assert joined.columns[aspect].numbers.dtype == np.int32
    assert list(joined.columns) == list(whole.columns)


def test_rows_are_taken_in_any_order():
    rows = np.array([4, 0, 0, 1])
    same(AnswerTable.of(ANSWERS).take(rows), [ANSWERS[row] for row in rows])


def test_which_rows_have_an_answer_to_any_of_some_aspects():
    table = AnswerTable.of(ANSWERS)
    assert table.has_any(["scene", "brightness", "unknown"]).tolist() == [True, False, True, True, True]
    assert not table.has_any([]).any()


def test_more_different_rows_than_are_kept(monkeypatch):
    monkeypatch.setattr(answer_table, "_MAX_KEPT", 3)
    source = random.Random(0)
    answers = [{a: str(source.randrange(9)) for a in ("scene", "object") if source.random() < 0.7} for _ in range(200)]
    same(AnswerTable.of(answers), answers)
