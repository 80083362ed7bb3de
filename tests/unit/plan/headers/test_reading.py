"""Reading the sizes of images."""

from masp.plan.headers.reading import read_sizes
from tests.unit.plan.photographs import photographs


def test_processes_read_the_same_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr("masp.plan.headers.reading._ALONE", 0)
    root = photographs(tmp_path, [(40 + i, 50) for i in range(9)])
    paths = [*sorted(root.rglob("*.jpg")), root / "none.jpg"]
    monkeypatch.setattr("masp.plan.headers.reading._EXAMINED_ALONE", 0)
    monkeypatch.setattr("masp.plan.headers.reading._CHUNK", 4)
    alone, broken = read_sizes(paths, 44, num_processes=1)
    assert alone[0].tolist() == [35, 44]
    assert alone[-1].tolist() == [0, 0] and broken == [(root / "none.jpg", "file not found")]
    for _ in range(2):
        sizes, also_broken = read_sizes(paths, 44, num_processes=2, memory=tmp_path / "memory.bin")
        assert sizes.tolist() == alone.tolist() and also_broken == broken
