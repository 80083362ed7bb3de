"""Sidecars: what is damaged or has the right digest and the wrong content is one line."""

import json

import pytest

from masp.cache.layout import read_layout
from masp.cache.shard_state import read_sidecar
from masp.cli.main import main
from masp.errors import DataError
from masp.files.sealed import sealed
from tests.small_cache import SPELLINGS, make_small_cache, reseal


@pytest.fixture
def cache(tmp_path):
    return make_small_cache(tmp_path / "cache")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_layout_or_a_sidecar_of_the_right_digest_and_the_wrong_shape(cache, capsys, spelling):
    reseal(cache / "layout.json", "generations", SPELLINGS[spelling])
    reseal(cache / "shards" / "train-00000.json", "samples", SPELLINGS[spelling])
    for read in (lambda: read_layout(cache), lambda: read_sidecar(cache, "train-00000")):
        with pytest.raises(DataError, match=r"^\S+(layout|train-00000)\.json"):
            read()
    assert main(["cache", "verify", str(cache)]) == 3
    found = capsys.readouterr()
    assert "layout.json: damaged" in found.out and "shards/train-00000.json: damaged" in found.out
    assert len(found.err.splitlines()) == 1


def damaged_sidecar(cache, change):
    """The error on a sidecar that was changed and sealed again."""
    path = cache / "shards" / "train-00000.json"
    value = json.loads(path.read_bytes())
    del value["digest"]
    change(value)
    path.write_bytes(sealed(value))
    with pytest.raises(DataError) as error:
        read_sidecar(cache, "train-00000")
    return str(error.value)


def test_the_error_names_file_key_and_what_would_be_valid(cache):
    line = damaged_sidecar(cache, lambda s: s["samples"][0]["json"].update(crc32="7"))
    assert line.endswith("train-00000.json: samples[0].json.crc32 = '7': must be a valid integer")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.update(name="train-00001", split="test"), "a name made of its split and generation"),
        (lambda s: s.update(generation=1), "a name made of its split and generation"),
        (lambda s: s.update(hidden_size=None), "a hidden_size"),
        (lambda s: s["samples"].append(s["samples"][0]), "the members in the order of the tar"),
        (lambda s: s["samples"][0]["features"].update(bytes=1 << 40), "members inside the tar"),
        (lambda s: s["samples"][0]["features"].update(offset=1 << 40), "features right after its JSON"),
        (lambda s: s["quarantined"].append(s["quarantined"][0]), "each sample once"),
        (lambda s: s.update(format_version=2), "format_version 1"),
        (lambda s: s.update(num_deep_maps=0), "greater than or equal to 1"),
        (lambda s: s["samples"][0].pop("grid"), "samples[0].grid is missing"),
        (lambda s: s["samples"][0].update(grid=[0, 0, 0]), "greater than or equal to 1"),
    ],
)
def test_parts_of_a_sidecar_must_agree(cache, change, says):
    assert says in damaged_sidecar(cache, change)
