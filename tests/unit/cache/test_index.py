"""The index: rows as the sidecars have them; whatever else the file holds is one line, and nothing is read for it."""

import json

import h5py
import numpy as np
import pytest

from masp.cache.index import load_index, save_index, shard_columns
from masp.cache.layout import read_layout
from masp.cache.reader import open_cache
from masp.cache.shard_state import finished_sidecars
from masp.cache.verify import verify_cache
from masp.cli.main import main
from masp.errors import DataError
from masp.files.sealed import digest_file
from tests.small_cache import CATEGORIES, make_small_cache, reseal


@pytest.fixture
def cache(tmp_path):
    return make_small_cache(tmp_path / "cache")


def test_equal_indices_are_equal_bytes(cache, tmp_path):
    index = load_index(cache / "index.h5")
    save_index(tmp_path / "again.h5", index)
    assert (tmp_path / "again.h5").read_bytes() == (cache / "index.h5").read_bytes()
    assert len(index) == len(index.keys) == 6


def test_there_are_zeros_where_a_vlm_has_no_grid(tmp_path):
    cache = make_small_cache(tmp_path / "tiles", separator=9)
    index = load_index(cache / "index.h5")
    assert index.grid.shape == (6, 3) and not index.grid.any() and index.num_tokens.all()
    assert verify_cache(cache) == []


@pytest.mark.parametrize(
    ("categories", "aspects", "named"),
    [
        ({CATEGORIES[0]: 0}, {"scene": 1, "brightness": 2}, "'fear'"),
        (dict.fromkeys(CATEGORIES, 0), {"scene": 1}, "'brightness'"),
    ],
)
def test_what_a_sidecar_has_and_the_cache_has_not_is_named(cache, categories, aspects, named):
    with pytest.raises(DataError, match=rf"{named} is not a category or aspect of the cache"):
        for sidecar in finished_sidecars(cache, read_layout(cache)):
            shard_columns(sidecar, 0, 0, categories, aspects)


def replaced(name, **options):
    def change(file):
        del file[name]
        file.create_dataset(name, **options)

    return change


def as_group(file):
    del file["shard"]
    file.create_group("shard")


def as_external_link(file):
    del file["shard"]
    file["shard"] = h5py.ExternalLink("/etc/passwd", "/x")


def as_soft_link(file):
    del file["category"]
    file["category"] = h5py.SoftLink("/split")


def as_string_version(file):
    del file.attrs["format_version"]
    file.attrs["format_version"] = "one"


INDEX_DAMAGES = {
    "a column is missing": lambda f: f.__delitem__("grid"),
    "a column is a group": as_group,
    "a column is in another file": as_external_link,
    "a column is another one": as_soft_link,
    "a column is in a raw file": replaced("shard", shape=(6,), dtype="i4", external=[("/etc/passwd", 0, 24)]),
    "a column claims terabytes": replaced("key_text", shape=(1 << 42,), dtype="u1", chunks=(1 << 20,)),
    "a column has another type": replaced("num_tokens", data=np.ones(6)),
    "a column has strings": replaced("num_tokens", data=["x"] * 6),
    "a column has another shape": replaced("grid", data=np.ones((6, 2), "i4")),
    "a column is longer": replaced("shard", data=np.zeros(7, "i4")),
    "a grid that is not whole": replaced("grid", data=np.tile(np.array([1, 0, 2], "i4"), (6, 1))),
    "a grid that is negative": replaced("grid", data=-np.ones((6, 3), "i4")),
    "a number is negative": replaced("offset", data=-np.ones(6, "i8")),
    "shards that do not exist": replaced("shard", data=np.full(6, 99, "i4")),
    "categories that do not exist": replaced("category", data=np.full(6, 99, "i2")),
    "keys overlap": replaced("key_offsets", data=np.zeros(7, "i8")),
    "no version": lambda f: f.attrs.__delitem__("format_version"),
    "a version that is a string": as_string_version,
}


@pytest.mark.parametrize("damage", INDEX_DAMAGES)
def test_an_index_of_the_right_digest_and_the_wrong_content(cache, capsys, damage):
    path = cache / "index.h5"
    with h5py.File(path, "r+") as file:
        assert len(file["shard"]) == 6
        INDEX_DAMAGES[damage](file)
    index = {"bytes": path.stat().st_size, "sha256": digest_file(path)}
    reseal(cache / "manifest.json", "index", json.dumps(index, sort_keys=True, separators=(",", ":")))
    with pytest.raises(DataError, match=r"^[^\n]*index\.h5[^\n]*$"):
        open_cache(cache)
    assert [problem.file for problem in verify_cache(cache)] == ["index.h5"]
    assert main(["cache", "verify", str(cache)]) == 3
