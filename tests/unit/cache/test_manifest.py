"""The manifest: what is damaged, disagrees with itself or lies where nothing can be read is one line."""

import errno
import json
import os
import tempfile
from pathlib import Path

import pytest

from masp.cache.layout import read_layout
from masp.cache.manifest import quarantined_keys, read_manifest
from masp.cli.main import main
from masp.errors import DataError, InputError
from masp.files.sealed import sealed
from tests.small_cache import SPELLINGS, make_small_cache, reseal


@pytest.fixture
def cache(tmp_path):
    return make_small_cache(tmp_path / "cache")


def one_line(capsys, *command):
    """The error of a command that ends with exit code 2 or 3."""
    assert main([*map(str, command)]) in (2, 3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 2000
    return lines[0]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("key", ["shards", "hidden_size", "fingerprint", "categories"])
def test_a_manifest_of_the_right_digest_and_the_wrong_shape(cache, capsys, key, spelling):
    reseal(cache / "manifest.json", key, SPELLINGS[spelling])
    line = one_line(capsys, "cache", "info", cache)
    assert "manifest.json" in line and "--repair" in line


def test_the_error_names_file_key_and_what_would_be_valid(cache):
    reseal(cache / "manifest.json", "hidden_size", "-3")
    with pytest.raises(DataError, match=r"manifest\.json: hidden_size = -3: must be greater than or equal to 1"):
        read_manifest(cache)


@pytest.mark.parametrize("file", ["manifest.json", "layout.json"])
def test_another_version_of_the_format_is_named_as_such(cache, file):
    value = json.loads((cache / file).read_bytes())
    del value["digest"]
    (cache / file).write_bytes(sealed({"format_version": 7, "something": value["categories"]}))
    with pytest.raises(InputError, match=rf"{file}: format_version is 7, this version of masp reads 1"):
        read_manifest(cache) if file == "manifest.json" else read_layout(cache)


def test_parts_of_a_manifest_must_agree(cache):
    value = json.loads((cache / "manifest.json").read_bytes())
    del value["digest"]
    for change, says in (
        ({"dtype": "bf16"}, "the dtype of its model part"),
        ({"shards": value["shards"][1:]}, "the shards of its generations"),
        ({"splits": {"test": value["splits"]["test"]}}, "as many samples in its splits as in its shards"),
        ({"fingerprint": {**value["fingerprint"], "digest": "0" * 64}}, "the digest of its model part"),
    ):
        (cache / "manifest.json").write_bytes(sealed({**value, **change}))
        with pytest.raises(DataError, match=says):
            read_manifest(cache)


def test_a_quarantine_list_that_was_changed_is_refused(cache):
    path = cache / "quarantine.jsonl"
    assert quarantined_keys(cache) == {"train/awe/000%2Ejpg"}
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"000", b"002"))
    with pytest.raises(DataError, match=r"quarantine.jsonl is damaged: its digest is not the manifest's"):
        quarantined_keys(cache)
    (cache / "manifest.json").unlink()
    path.write_bytes(whole[:-9])
    with pytest.raises(DataError, match="cut short"):
        quarantined_keys(cache)
    path.write_bytes(b"[" * 50_000 + b"\n")
    with pytest.raises(DataError, match=r"quarantine.jsonl, line 1: not valid JSON"):
        quarantined_keys(cache)
    path.unlink()
    assert quarantined_keys(cache) == set()


def test_paths_that_no_file_system_answers_for(cache, capsys, monkeypatch):
    assert "File name too long" in one_line(capsys, "cache", "info", "x" * 300)
    assert "embedded null byte" in one_line(capsys, "cache", "info", "x\0y")
    real = os.stat

    def stale(path, **options):
        if str(path).endswith("cache"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(path, **options)

    monkeypatch.setattr(os, "stat", stale)
    assert "Stale file handle" in one_line(capsys, "cache", "info", cache)


def test_a_cache_that_may_not_be_searched(capsys):
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    with tempfile.TemporaryDirectory() as name:  # pytest's own directories are closed to others
        Path(name).chmod(0o755)
        (Path(name) / "closed").mkdir(mode=0o700)
        make_small_cache(Path(name) / "closed" / "cache")
        os.seteuid(65534)
        try:
            assert "Permission denied" in one_line(capsys, "cache", "info", Path(name) / "closed" / "cache")
        finally:
            os.seteuid(0)
