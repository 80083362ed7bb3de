"""The table of merged records: reads like the list of records that it was made from, whatever they hold."""

import dataclasses

import numpy as np
import pytest

from masp.results.ledger_format import MapPlace, Record
from masp.results.ledgers import table as module
from masp.results.ledgers.table import RecordTable

RECORDS = [
    Record("test/0", "fear", "joy", (-0.5, -1.25), (-0.25, -0.5)),
    Record("test/1", "joy", "joy", (-0.1, -2.3), None),  # not exact in fp32
    Record("test/2#scene", "sea", None, text="a\0 line\udcff"),
    Record("test/2#brightness", "low", "high", (-1.0, -0.5, -3.0), (-1.0, -0.5, -3.0)),
    Record("test/3", "", "", None, None, "", source=(12, -5)),
    Record("test/4", "joy", "fear", (), (), None, attention=MapPlace("rank-1", 1 << 40, (2, 3, 4), (1 << 32) - 1)),
    Record("test/5", "joy", "joy", attention=MapPlace("rank-0", 0, (1, 1, 1), 0), source=(0, 0)),
]


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_records_come_back_equal(monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    found = RecordTable.of(RECORDS)
    assert list(found) == RECORDS and len(found) == len(RECORDS) and RecordTable.of(found) is found
    assert (
        [found[i] for i in range(len(RECORDS))] == RECORDS and found[-1] == RECORDS[-1] and found[1:3] == RECORDS[1:3]
    )
    assert found.is_right.tolist() == [r.label == r.prediction for r in RECORDS]
    assert not RecordTable.of([])


def test_rows_may_be_set_in_any_order():
    order = np.random.default_rng(0).permutation(len(RECORDS))
    found = RecordTable([record.sample_key for record in RECORDS])
    for part in (order[:3], order[3:]):
        found.put(part, [RECORDS[row] for row in part])
    found.close()
    assert list(found) == RECORDS


def test_a_part_is_a_table_of_its_own():
    found = RecordTable.of(RECORDS)
    rows = found.rows_of("brightness")
    assert rows.tolist() == [3] and list(found.take(rows)) == [RECORDS[3]]
    plain = [dataclasses.replace(RECORDS[row], source=None, attention=None) for row in (5, 0)]
    assert list(found.take(np.array([5, 0]))) == plain


def test_numbers_of_one_width_are_a_block():
    found = RecordTable.of(RECORDS)
    block = found.scores.block(np.array([1, 2, 0]), 2)
    assert block.tolist()[::2] == [[-0.1, -2.3], [-0.5, -1.25]] and np.isnan(block[1]).all()
    single = RecordTable.of(RECORDS[:1])
    assert single.scores._parts[0].dtype == np.float32 and found.scores._parts[0].dtype == np.float64


def test_columns_as_numbers_of_given_words():
    found = RecordTable.of(RECORDS)
    assert found.labels.numbers_in(["joy", "fear"], 9).tolist() == [1, 0, 9, 9, 9, 0, 0]
    assert found.predictions.numbers_in(["joy", "fear"], 9).tolist() == [0, 0, -1, 9, 9, 1, 0]
