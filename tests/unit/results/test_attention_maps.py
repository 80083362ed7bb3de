"""Attention maps beside a ledger: what a record points to comes back, or its file is named."""

import contextlib

import numpy as np
import pytest

from masp.errors import DataError
from masp.results.attention_maps import AttentionFile, read_attention
from masp.results.ledger_format import MapPlace


def test_a_damaged_map_is_named(tmp_path):
    with contextlib.closing(AttentionFile(tmp_path, "rank-0")) as file:
        where = file.append(np.ones((1, 2, 2), "f4"))
    for lost in (MapPlace("rank-0", 0, (10**9, 10**9, 10**9), 0), MapPlace("rank-0", 1 << 62, (1, 1, 1), 0)):
        with pytest.raises(DataError, match="rank-0.attention is damaged"):
            read_attention(tmp_path, lost)
    path = tmp_path / "rank-0.attention"
    for data in (path.read_bytes()[:-1], b"\1" + path.read_bytes()[1:]):
        path.write_bytes(data)
        with pytest.raises(DataError, match="rank-0.attention is damaged .* rank-0.jsonl"):
            read_attention(tmp_path, where)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_attention(tmp_path, where)
