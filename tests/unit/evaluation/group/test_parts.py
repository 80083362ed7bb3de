"""A member of a group gets the evaluation that it would have had alone (`masp.evaluation.group.parts`)."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from masp.config import load_config
from masp.errors import DataError, InputError, StoppedEarly
from masp.evaluation.run import evaluate, evaluate_group, evaluate_together
from masp.extraction.job import extract
from masp.results.ledger import read_records
from masp.results.records import read_records_file
from masp.runtime.run_directory import read_status
from masp.training.group.together import train_together
from masp.training.loop import train
from tests.runs import assert_same, make_run, numbers

MEMBERS = {
    "plain": [],
    "long": ["stage2.num_soft_prompt_tokens=9", "seed=11"],
    "asked": ["stage2.num_soft_prompt_tokens=2", "questions={folder}/other.yaml"],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run with a validation split, an image in quarantine, and three soft prompts."""
    folder = tmp_path_factory.mktemp("group")
    path = make_run(folder, 12, 9)
    for image in sorted((folder / "pictures" / "train").glob("*/*.00[01].*")):
        target = folder / "pictures" / "val" / image.parent.name
        target.mkdir(exist_ok=True, parents=True)
        image.rename(target / image.name)
    sorted((folder / "pictures" / "test").rglob("*.*"))[0].write_bytes(b"no image")
    other = {"emotion": ["What is felt here, of {categories}?", "Choose one of {categories}, please."]}
    (folder / "other.yaml").write_text(yaml.safe_dump(other))
    config = load_config(path, ["engine.zero_stage=0", "extract.max_bad_fraction=0.2"])
    extract(config)
    train(config, "stage1")
    assert train_together(configs((path, folder), folder / "trained")) == [""] * len(MEMBERS)
    return path, folder


def configs(world, directory: Path, *more: str, names=tuple(MEMBERS)):
    path, folder = world
    given = ["engine.zero_stage=0", "order_seed=5", f"checkpoint.aspect={folder}/run/stage1/aspect.safetensors", *more]
    own = {name: [setting.format(folder=folder) for setting in MEMBERS[name]] for name in names}
    return [load_config(path, [*given, *own[name], f"output_dir={directory / name}"]) for name in names]


def scored(world, directory: Path, *more: str, names=tuple(MEMBERS)):
    """Configurations that evaluate what was trained into another directory."""
    trained = world[1] / "trained"
    found = []
    for name in names:
        soft_prompt = f"checkpoint.soft_prompt={trained / name}/stage2/soft_prompt_folder.safetensors"
        found += configs(world, directory, soft_prompt, *more, names=[name])
    return found


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    directory = tmp_path_factory.mktemp("alone")
    for config in scored(world, directory):
        evaluate(config)
    return directory


def assert_equal_evaluations(first: Path, second: Path):
    """Assert that two directories of evaluations hold the same, within 1e-5."""
    ours, own = (
        sorted(str(path.relative_to(d)) for path in d.rglob("*") if path.name != "slices.log") for d in (first, second)
    )
    assert ours == own
    for name in ours:
        a, b = first / name, second / name
        if a.name == "metrics.json":
            assert_same(numbers(a), numbers(b), name)
            assert {**json.loads(a.read_text())["lineage"], "records": 0, "digest": 0} == {
                **json.loads(b.read_text())["lineage"], "records": 0, "digest": 0,
            }  # fmt: skip
        elif a.name == "records.h5":
            x, y = read_records_file(a), read_records_file(b)
            assert (x.keys, x.predictions, x.categories) == (y.keys, y.predictions, y.categories)
            np.testing.assert_allclose(x.scores, y.scores, atol=1e-5, rtol=0)
        elif a.parent.name == "ledger" and a.suffix == ".jsonl":
            assert a.read_text().splitlines()[0] == b.read_text().splitlines()[0]  # what is evaluated
            x, y = read_records(a.parent), read_records(b.parent)
            assert [r.sample_key for r in x] == [r.sample_key for r in y]
            for r, s in zip(x, y, strict=True):
                assert (r.label, r.prediction) == (s.label, s.prediction)
                assert r.scores == pytest.approx(s.scores, abs=1e-5)
                assert r.mean_scores == pytest.approx(s.mean_scores, abs=1e-5)
        elif a.name == "status.json":
            assert read_status(a.parent).state == read_status(b.parent).state == "finished"


def test_members_get_what_they_would_have_got_alone(world, alone, tmp_path, capsys):
    group = scored(world, tmp_path)
    paths = evaluate_together(group)
    assert paths == [tmp_path / name / "evaluate" / "metrics.json" for name in MEMBERS]
    assert "3 evaluations in groups of 3" in capsys.readouterr().out
    assert_equal_evaluations(tmp_path, alone)
    before = [path.stat().st_mtime_ns for path in tmp_path.rglob("rank-0.jsonl")]
    assert evaluate_together(group) == paths  # finished already
    assert [path.stat().st_mtime_ns for path in tmp_path.rglob("rank-0.jsonl")] == before
