"""What is kept of the environment of a submission."""

import json
import os
import shutil
import sys

from launch.submission.snapshot import DIFF, FILE, Snapshot, take_snapshot, write_snapshot
from masp.files import typed
from tests.runs import REPOSITORY


def test_the_snapshot_says_what_ran_and_no_secrets(monkeypatch):
    monkeypatch.setenv("MASP_SECRET_TOKEN", "hidden")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    snapshot, diff = take_snapshot()
    assert snapshot.packages["submitit"] and snapshot.variables["NCCL_DEBUG"] == "INFO"
    assert "hidden" not in str(snapshot) and "MASP_SECRET_TOKEN" not in str(snapshot)
    if (REPOSITORY / ".git").exists() and os.access(shutil.which("git") or "", os.X_OK):
        assert len(snapshot.code.commit) == 40
        assert snapshot.code.dirty == bool(snapshot.code.changed)
        assert snapshot.code.dirty or not diff


def test_the_file_reads_back_and_has_its_keys_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("MASP_ODD", "\udcff")  # variables need not be UTF-8
    write_snapshot(tmp_path)
    found = typed.read(Snapshot, tmp_path / FILE, surrogates=True)
    snapshot, diff = take_snapshot()
    assert found == snapshot
    assert (tmp_path / DIFF).exists() == bool(diff)
    value = json.loads((tmp_path / FILE).read_text())
    assert list(value) == ["code", "python", "machine", "command", "variables", "packages"]
    assert list(value["code"])[:2] == ["version", "folder"] and None not in value["code"].values()
    assert (tmp_path / FILE).read_bytes() == json.dumps(value, indent=1).encode() + b"\n"


def test_without_git_nothing_is_said_of_a_commit(tmp_path, monkeypatch):
    monkeypatch.setattr("launch.submission.snapshot.CODE", tmp_path)
    write_snapshot(tmp_path)
    assert list(json.loads((tmp_path / FILE).read_text())["code"]) == ["version", "folder"]
    assert not (tmp_path / DIFF).exists()
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert take_snapshot()[0].code.commit is None
    assert take_snapshot()[0].python.executable == sys.executable
