"""Reading the sizes of images."""

from masp.plan.headers.reading import read_sizes
from tests.unit.plan.photographs import photographs


def test_processes_read_the_same_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr("masp.plan.headers.reading._ALONE", 0)
    root = photographs(tmp_path, [(40 + i, 50) for i in range(9)])
    paths = [*sorted(root.rglob("*.jpg")), root / "none.jpg"]
    alone = read_sizes(paths, 44, num_processes=1)
    assert alone == read_sizes(paths, 44, num_processes=2)
    assert alone[0][0] == (35, 44)
    assert alone[0][-1] is None and alone[1] == [(root / "none.jpg", "file not found")]
