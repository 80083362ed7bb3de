"""Scores depend on nothing but sample and model: features cached or live, batch size, ranks, and kills in between."""

import json
import time
from pathlib import Path

import pytest

from masp.ledger import read_records
from tests.runs import assert_same, numbers

NUM_TEST = 13


def records(folder: Path) -> list[dict]:
    return read_records(folder / "ledger")


def assert_same_records(found: list[dict], expected: list[dict]) -> None:
    assert [r["sample_key"] for r in found] == [r["sample_key"] for r in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours["label"], ours["prediction"]) == (theirs["label"], theirs["prediction"])
        assert ours["text"] == theirs["text"]
        for name in ("scores", "mean_scores"):
            if theirs[name] is None:
                assert ours[name] is None
            else:
                assert ours[name] == pytest.approx(theirs[name], abs=1e-5, rel=1e-6)


@pytest.fixture(scope="module")
def evaluate(commands, world, trained):
    """Evaluates what `trained` holds into a folder, by `num_ranks` processes one after another."""

    def run(output: Path, *overrides: str, num_ranks: int = 1) -> list[str]:
        settings = world.settings(trained, f"evaluate.output_dir={output}", *overrides)
        ranks = [{"RANK": r, "WORLD_SIZE": num_ranks, "LOCAL_RANK": r} for r in range(num_ranks)]
        return [
            commands.ok("evaluate", *settings, **(ranks[r] if num_ranks > 1 else {})).last_line
            for r in range(num_ranks)
        ]

    return run


@pytest.fixture(scope="module")
def expected(evaluate, tmp_path_factory) -> Path:
    """One process, batches of 4, features from the cache."""
    output = tmp_path_factory.mktemp("expected")
    evaluate(output)
    assert len({r["prediction"] for r in records(output)}) > 1  # or nothing would be compared
    return output


@pytest.mark.parametrize("scoring", ["likelihood", "generate"])
def test_cached_features_against_live_ones(evaluate, tmp_path, scoring):
    for source in ("cache", "live"):
        evaluate(
            tmp_path / source, f"evaluate.source={source}", f"evaluate.scoring={scoring}", "evaluate.num_workers=1"
        )
    assert_same_records(records(tmp_path / "live"), records(tmp_path / "cache"))
    found, theirs = (numbers(tmp_path / source / "metrics.json") for source in ("live", "cache"))
    assert_same(found | {"source": None}, theirs | {"source": None})


@pytest.mark.parametrize(("batch_size", "num_ranks"), [(1, 1), (7, 2), (32, 3)])
def test_neither_batch_size_nor_ranks_change_a_score(evaluate, expected, tmp_path, batch_size, num_ranks):
    lines = evaluate(tmp_path, f"evaluate.batch_size={batch_size}", num_ranks=num_ranks)
    assert all(line.endswith("other ranks still have samples to score") for line in lines[:-1])
    assert lines[-1].endswith(str(tmp_path / "metrics.json"))
    assert sorted(p.name for p in (tmp_path / "ledger").glob("*.jsonl")) == [
        f"rank-{r}.jsonl" for r in range(num_ranks)
    ]
    assert_same_records(records(tmp_path), records(expected))
    assert_same(numbers(tmp_path / "metrics.json"), numbers(expected / "metrics.json"))


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_and_resumed_on_other_numbers_of_ranks(commands, world, trained, evaluate, expected, tmp_path):
    settings = world.settings(trained, f"evaluate.output_dir={tmp_path}", "evaluate.batch_size=1")
    ledger = tmp_path / "ledger" / "rank-0.jsonl"
    running = commands.start("evaluate", *settings)
    running.when(lambda: num_lines(ledger) >= 4)
    running.kill()
    assert running.wait().code == -9
    with open(ledger, "ab") as file:
        file.write(b'{"sample_key": "test/awe/te')  # as a kill within a write leaves it
    scored = num_lines(ledger) - 1
    assert 3 <= scored < NUM_TEST and not (tmp_path / "metrics.json").exists()

    second = commands.ok("evaluate", *settings, RANK=1, WORLD_SIZE=3, LOCAL_RANK=1)
    assert "other ranks still have samples to score" in second.stdout
    lines = evaluate(tmp_path, num_ranks=2)
    assert lines[-1].endswith("metrics.json")
    assert_same_records(records(tmp_path), records(expected))
    assert numbers(tmp_path / "metrics.json")["coverage"] == 1
    assert_same(numbers(tmp_path / "metrics.json"), numbers(expected / "metrics.json"))

    before = {path: path.read_bytes() for path in (tmp_path / "ledger").glob("*.jsonl")}
    again = commands.ok("evaluate", *settings)
    assert f"{NUM_TEST} of {NUM_TEST} samples are scored already" in again.stdout
    assert {path: path.read_bytes() for path in (tmp_path / "ledger").glob("*.jsonl")} == before
    other = commands("evaluate", *settings, "evaluate.scoring=generate")
    assert other.code == 2 and "scoring is" in other.stderr
    assert json.loads((tmp_path / "status.json").read_text())["exit_code"] == 2


def test_sigterm_stops_between_batches(commands, world, trained, expected, tmp_path):
    settings = world.settings(
        trained, f"evaluate.output_dir={tmp_path}", "evaluate.batch_size=1", "evaluate.num_workers=1"
    )
    running = commands.start("evaluate", *settings)
    running.when(lambda: num_lines(tmp_path / "ledger" / "rank-0.jsonl") >= 3)
    running.kill(15, group=True)
    started = time.monotonic()
    stopped = running.wait()
    assert stopped.code == 75 and time.monotonic() - started < 60
    assert stopped.stderr.splitlines()[-1].startswith("error: evaluate: stopped on request; ")
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "stopped"
    commands.ok("evaluate", *settings)
    assert_same_records(records(tmp_path), records(expected))
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"
