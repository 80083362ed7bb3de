"""The id by which trackers know a run."""

import multiprocessing

import pytest

from masp.errors import DataError, InputError
from masp.tracking.run_id import FILE, run_id


def test_a_run_keeps_its_id_and_another_has_another(tmp_path):
    found = run_id(tmp_path / "run")
    assert run_id(tmp_path / "run") == found != run_id(tmp_path / "other")


def test_all_that_ask_at_once_get_the_same(tmp_path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.map(run_id, [tmp_path / "run"] * 16, chunksize=1)
    assert len(set(found)) == 1


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b'{"id": "../x", "digest": "0"}', b"\xff"])
def test_a_damaged_file_is_refused_with_the_remedy(tmp_path, damage):
    run_id(tmp_path)
    (tmp_path / FILE).write_bytes(damage)
    with pytest.raises(DataError, match=f"{FILE}.*delete it, and the trackers begin a new run$"):
        run_id(tmp_path)


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="^output_dir: .*trackers.json cannot be written: "):
        run_id(tmp_path / "file" / "run")
