"""The throughput benchmark runs, at a size for which its figures mean nothing."""

import json

import pytest

from benchmarks.shares import main as shares
from benchmarks.throughput import main


@pytest.mark.full
def test_throughput(tmp_path, capsys, repository, monkeypatch):
    monkeypatch.chdir(repository)
    size = "--hidden 64 --layers 1 --vocabulary 1000 --images 3 --side 120 --batch 3"
    short = "--rounds 1 --seconds 0.1 --threads 1"
    assert main([*size.split(), *short.split(), "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["stage1"]["ratio"] > 0 and found["stage2"]["ratio"] > 0 and found["engine_overhead"] > 0
    assert min(found["peak_memory_mb"].values()) > 100
    assert "required: 20" in capsys.readouterr().out


@pytest.mark.full
def test_shares(tmp_path, capsys, repository, monkeypatch):
    monkeypatch.chdir(repository)
    size = "--hidden 64 --layers 1 --vocabulary 1000 --images 3 --side 120 --batch 3 --scored 2"
    assert shares(["--rounds", "1", "--threads", "1", "--json", str(tmp_path / "found.json"), *size.split()]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    for name in ("stage1", "stage2", "evaluation"):
        parts = found[name]["shares"]
        assert 0.9 < sum(parts.values()) < 1.1 and parts["matrix products"] > 0 and parts["attention"] > 0
    assert "evaluation: " in capsys.readouterr().out
