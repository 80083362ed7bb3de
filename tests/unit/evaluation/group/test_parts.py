"""A member of a group gets the evaluation that it would have had alone (`masp.evaluation.group.parts`)."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from masp.artifacts.store import digest_tensors, load_soft_prompt, save_soft_prompt
from masp.config import load_config
from masp.errors import InputError, StoppedEarly
from masp.evaluation.run import evaluate, evaluate_group, evaluate_together
from masp.extraction.job import extract
from masp.models.trainable import SoftPrompt
from masp.results.ledger import read_records
from masp.results.records import read_records_file
from masp.runtime.run_directory import read_status
from masp.training.group.together import train_together
from masp.training.loop import train
from tests.runs import REPOSITORY, assert_same, make_run, numbers

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


@pytest.mark.full
def test_wordings_validation_and_attention_of_members(world, tmp_path):
    asked = ("evaluate.validation=true", "evaluate.prompts=all", "evaluate.attention=true", "evaluate.batch_size=3")
    for config in scored(world, tmp_path / "alone", *asked):
        evaluate(config)
    evaluate_group(scored(world, tmp_path / "group", *asked))
    assert_equal_evaluations(tmp_path / "group", tmp_path / "alone")
    rows = [json.loads((tmp_path / "group" / n / "evaluate/prompts.json").read_text())["rows"] for n in MEMBERS]
    assert [len(row) for row in rows] == [7, 7, 5]  # each by its own questions
    # a wording of one is what another one asks first
    (config,) = scored(world, tmp_path / "first", "evaluate.prompts=first", names=["plain"])
    text = {"emotion": [yaml.safe_load(Path(config.questions).read_text())["emotion"][2]]}
    (tmp_path / "third.yaml").write_text(yaml.safe_dump(text))
    config.questions = str(tmp_path / "third.yaml")
    evaluate(config)
    ours, own = (
        read_records_file(tmp_path / name / "records.h5")
        for name in ("group/plain/evaluate/prompts/template-3", "first/plain/evaluate")
    )
    np.testing.assert_allclose(ours.scores, own.scores, atol=1e-5, rtol=0)


GROUP = """
import sys
from pathlib import Path
from masp.evaluation.run import evaluate_together
from tests.unit.evaluation.group.test_parts import scored
path, folder, output, *given = sys.argv[1:]
print(evaluate_together(scored((Path(path), Path(folder)), Path(output), *given)))
"""


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.full
def test_a_group_that_was_killed_goes_on(world, alone, tmp_path):
    ledgers = {name: tmp_path / name / "evaluate/ledger/rank-0.jsonl" for name in MEMBERS}
    command = [sys.executable, "-c", GROUP, *map(str, world), tmp_path, "evaluate.batch_size=1"]
    running = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while num_lines(ledgers["asked"]) < 4:
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -9 and not list(tmp_path.rglob("metrics.json"))
    kept = {name: ledger.read_bytes().rpartition(b"\n")[0] for name, ledger in ledgers.items()}
    assert all(3 <= num_lines(ledger) - 1 < 8 for ledger in ledgers.values())
    # one is finished alone, and one had not begun
    evaluate(*scored(world, tmp_path, names=["plain"]))
    finished = ledgers["plain"].read_bytes()
    for path in sorted((tmp_path / "long").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert all(evaluate_together(scored(world, tmp_path)))
    assert ledgers["plain"].read_bytes() == finished and ledgers["asked"].read_bytes().startswith(kept["asked"])
    assert_equal_evaluations(tmp_path, alone)


class After:
    """A request to stop that comes after some batches."""

    def __init__(self, count):
        self.left = count

    def __bool__(self):
        self.left -= 1
        return self.left < 0


def test_a_group_stops_on_request(world, alone, tmp_path):
    with pytest.raises(StoppedEarly):
        evaluate_group(scored(world, tmp_path), After(0))
    assert {read_status(tmp_path / name / "evaluate").state for name in MEMBERS} == {"stopped"}
    assert {num_lines(path) for path in tmp_path.rglob("rank-0.jsonl")} == {5}
    assert all(evaluate_group(scored(world, tmp_path)))
    assert_equal_evaluations(tmp_path, alone)


def test_one_that_fails_does_not_keep_the_others_from_being_scored(world, alone, tmp_path):
    other = scored(world, tmp_path, names=["long"])[0]
    other.checkpoint.soft_prompt = str(world[1] / "trained/plain/stage2/soft_prompt_folder.safetensors")
    evaluate(other)  # so that the directory is that of another evaluation
    with pytest.raises(InputError, match="another evaluation"):
        evaluate_together(scored(world, tmp_path))
    assert read_status(tmp_path / "long/evaluate").exit_code == 2
    for name in ("plain", "asked"):
        assert_equal_evaluations(tmp_path / name, alone / name)


def test_one_whose_output_is_not_finite_is_named_and_the_others_go_on(world, tmp_path):
    group = scored(world, tmp_path, "engine.precision=fp16")
    held, lineage = load_soft_prompt(group[1].checkpoint.soft_prompt, 32)
    large = SoftPrompt(held.weight.detach() + 1e5)  # more than fp16 holds
    path = save_soft_prompt(
        large, tmp_path, dataclasses.replace(lineage, digest=digest_tensors({"weight": large.weight}))
    )
    group[1].checkpoint.soft_prompt = str(path)
    with pytest.raises(InputError, match="output for sample .* is not finite in float16"):
        evaluate_group(group)
    assert num_lines(tmp_path / "long/evaluate/ledger/rank-0.jsonl") == 1  # its header
    assert [(tmp_path / name / "evaluate/metrics.json").is_file() for name in MEMBERS] == [True, False, True]
    assert read_status(tmp_path / "long/evaluate").state == "failed"


def test_what_cannot_share_a_prefix_is_scored_alone_with_a_reason(world, alone, tmp_path, capsys):
    (released,) = configs(world, tmp_path, "stage2.layout=released", names=["plain"])
    released.output_dir = str(tmp_path / "released")
    train(released, "stage2")
    (without,) = configs(world, tmp_path / "one", "checkpoint.soft_prompt=none", names=["plain"])
    evaluate(without)
    (without,) = configs(world, tmp_path / "none", "checkpoint.soft_prompt=none", names=["plain"])
    group = [*scored(world, tmp_path), released, without]
    capsys.readouterr()
    assert all(evaluate_together(group))
    said = capsys.readouterr().out
    assert "5 evaluations in groups of 4 + 1" in said
    assert_equal_evaluations(tmp_path / "none", tmp_path / "one")
    assert f"{tmp_path}/released/evaluate: alone, since its soft prompt comes before the image" in said
    for name in MEMBERS:
        assert_equal_evaluations(tmp_path / name, alone / name)
    found = json.loads((tmp_path / "released/evaluate/metrics.json").read_text())
    assert found["layout"] == "released" and found["num_samples"] == 8


def test_ranks_score_slices_of_every_member(world, alone, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, expected in ((1, [None] * 3), (0, [tmp_path / name / "evaluate/metrics.json" for name in MEMBERS])):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert evaluate_group(scored(world, tmp_path)) == expected
    for name in MEMBERS:
        assert_same(
            numbers(expected[0].parents[2] / name / "evaluate/metrics.json"),
            numbers(alone / name / "evaluate/metrics.json"),
        )
        ours, own = (read_records_file(d / name / "evaluate/records.h5") for d in (tmp_path, alone))
        assert ours.keys == own.keys and ours.predictions == own.predictions
        np.testing.assert_allclose(ours.scores, own.scores, atol=1e-5, rtol=0)
