"""The scripts of `examples/` do what their docstrings say, on a cache and an evaluation of a tiny VLM."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from masp.artifacts.store import Lineage, aspect_digest, save_aspects
from masp.cache.fingerprint import model_part
from masp.cache.reader import open_cache
from masp.config import load_config
from masp.evaluation.run import evaluate
from masp.extraction.job import extract
from masp.models.trainable import AspectModules
from tests.runs import REPOSITORY, make_run

ASPECTS = ["scene", "object", "brightness"]


@dataclass
class Made:
    """What the examples read."""

    cache: Path
    aspects: Path
    evaluation: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    """A cache of 12 + 6 images, aspect modules of random values around its VLM, and an evaluation of them."""
    folder = tmp_path_factory.mktemp("examples")
    path = make_run(folder)
    config = load_config(path)
    extract(config)
    torch.manual_seed(1)
    modules = AspectModules(ASPECTS, open_cache(folder / "cache").hidden_size)
    lineage = Lineage("aspect", "trained", aspect_digest(modules), tuple(ASPECTS), model=model_part(config))
    aspects = save_aspects(modules, folder, lineage)
    evaluate(load_config(path, [f"checkpoint.aspect={aspects}", "checkpoint.soft_prompt=none"]))
    return Made(folder / "cache", aspects, folder / "run" / "evaluate")


def call(name: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run an example as its docstring says, from the root of the repository."""
    command = [sys.executable, f"examples/{name}.py", *map(str, arguments)]
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def fails(monkeypatch, capfd):
    """Runs an example in this process, which it must end with exit code 2; returns its one line."""

    def run(name: str, *arguments: object) -> str:
        script = str(REPOSITORY / "examples" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(script, run_name="__main__")
        line = capfd.readouterr().err
        assert end.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1, line
        return line

    return run


def test_read_cache(made):
    result = call("read_cache", made.cache, "--limit", "2")
    assert result.returncode == 0, result.stderr
    cache = open_cache(made.cache)
    sample = cache.read(int(cache.rows(cache.splits[0])[0]))
    lines = result.stdout.splitlines()
    assert lines[0] == f"18 images, features of {cache.hidden_size} numbers per vision token"
    found = [line for line in lines if line.startswith(f"{sample.key}: {sample.category}, ")]
    assert len(found) == 1 and f"features {list(sample.features.tokens.shape)} torch.float32" in found[0]
    assert sum(": " in line and "features [" in line for line in lines) == 2


def test_where_aspects_look(made):
    result = call("where_aspects_look", made.cache, made.aspects, "--aspects", *ASPECTS, "--split", "test")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 3 * len(ASPECTS)
    assert [line.split(": ")[1] for line in lines[:3]] == ASPECTS
    assert all("5 aspect tokens of norm" in line for line in lines)


def test_where_aspects_look_refuses_an_aspect_that_was_not_trained(made, fails):
    assert "'facial_expression'" in fails("where_aspects_look", made.cache, made.aspects)


def test_accuracy_from_records(made):
    result = call("accuracy_from_records", made.evaluation)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((made.evaluation / "metrics.json").read_text())
    last = result.stdout.splitlines()[-1].split()
    assert last[:4] == ["all", str(metrics["num_correct"]), "of", str(metrics["num_samples"])]
    assert len(result.stdout.splitlines()) == 1 + len(metrics["per_category"])


def test_accuracy_from_records_imports_no_torch():
    code = "import runpy, sys; runpy.run_path('examples/accuracy_from_records.py'); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert result.stdout == "False\n", result.stderr


@pytest.mark.parametrize("name", ["read_cache", "where_aspects_look", "accuracy_from_records"])
def test_a_missing_directory_is_one_line(name, fails, tmp_path):
    arguments = [tmp_path / "none"] + ([tmp_path / "aspect.pth"] if name == "where_aspects_look" else [])
    assert str(tmp_path / "none") in fails(name, *arguments)
