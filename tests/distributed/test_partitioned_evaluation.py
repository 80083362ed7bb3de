"""Evaluation and prediction with a language half that is divided over ranks: the numbers of one rank."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from masp.results.ledger import read_records
from tests.commands import Ranks
from tests.runs import assert_same, numbers

DIVIDED = "evaluate.partition_vlm=true"


@pytest.fixture(scope="module")
def argv(world, trained):
    def make(output: Path, *overrides: str) -> list[str]:
        return ["evaluate", *world.settings(trained, f"evaluate.output_dir={output}", *overrides)]

    return make


def assert_same_results(found: Path, expected: Path) -> None:
    """Ledgers within 1e-5, and metrics."""
    ours, theirs = (read_records(place / "ledger") for place in (found, expected))
    assert [(r.sample_key, r.prediction, r.text) for r in ours] == [
        (r.sample_key, r.prediction, r.text) for r in theirs
    ]
    for a, b in zip(ours, theirs, strict=True):
        assert a.scores == (None if b.scores is None else pytest.approx(b.scores, abs=1e-5))
    assert_same(numbers(found / "metrics.json"), numbers(expected / "metrics.json"))


@pytest.mark.parametrize(
    "asked",
    [
        ("evaluate.attention=true", "evaluate.source=live", "vlm.quantization=int4"),
        pytest.param(("evaluate.scoring=generate", "evaluate.batch_size=3"), marks=pytest.mark.full),
        ("evaluate.stage=stage1", "evaluate.batch_size=1"),  # each rank asks for other aspects, and writes other lines
    ],
)
def test_two_ranks_score_what_one_scores(commands, argv, tmp_path, asked):
    commands.ok(*argv(tmp_path / "one", *asked))
    Ranks(commands, 2, *argv(tmp_path / "two", *asked, DIVIDED)).ok()
    assert_same_results(tmp_path / "two", tmp_path / "one")
    ledgers = sorted(path.name for path in (tmp_path / "two" / "ledger").glob("*.jsonl"))
    assert len(ledgers) == 2, ledgers


def test_a_stop_of_one_rank_stops_both_and_a_rank_with_nothing_to_do_takes_part(commands, argv, tmp_path):
    asked = ("evaluate.batch_size=1", DIVIDED)
    ranks = Ranks(commands, 2, *argv(tmp_path / "two", *asked))
    ledger = tmp_path / "two" / "ledger"
    ranks.running[1].when(lambda: any(path.stat().st_size > 900 for path in ledger.glob("*.jsonl")))
    ranks.running[1].kill(signal.SIGTERM)
    assert [result.code for result in ranks.wait()] == [75, 75]
    commands.ok(*argv(tmp_path / "two"), RANK=0, LOCAL_RANK=0, WORLD_SIZE=2)  # alone: what its slice lacks
    assert not (tmp_path / "two" / "metrics.json").exists()
    Ranks(commands, 2, *argv(tmp_path / "two", *asked)).ok()
    commands.ok(*argv(tmp_path / "one"))
    assert_same_results(tmp_path / "two", tmp_path / "one")


@pytest.mark.full
def test_a_rank_that_fails_outside_of_a_pass_takes_part_until_the_others_are_done(commands, world, argv, tmp_path):
    pictures = tmp_path / "pictures"
    shutil.copytree(world.folder / "pictures", pictures)
    first = sorted(pictures.glob("test/*/*"))[0]
    first.write_bytes(first.read_bytes()[:60])
    live = ("evaluate.source=live", f"dataset.root={pictures}", "evaluate.batch_size=1", DIVIDED)
    results = Ranks(commands, 2, *argv(tmp_path / "two", *live)).wait()
    assert sorted(result.code for result in results) == [0, 3]
    failed = next(result for result in results if result.code == 3)
    assert f"{first} cannot be read" in failed.stderr and "only lends its part" in failed.stderr
    assert len(read_records(tmp_path / "two" / "ledger")) == 12


@pytest.mark.full
def test_a_killed_rank_ends_the_other_and_is_named(commands, argv, tmp_path):
    ranks = Ranks(commands, 2, *argv(tmp_path, "evaluate.batch_size=1", DIVIDED))
    ranks.running[0].when(lambda: any(path.stat().st_size > 0 for path in (tmp_path / "ledger").glob("*.jsonl")))
    ranks.running[1].kill(signal.SIGKILL)
    result = ranks.running[0].wait()
    assert result.code == 1 and "rank 1 (process" in result.stderr and "keeps what is scored" in result.stderr


def test_prediction_on_two_ranks(commands, world, trained):
    images = sorted((world.folder / "pictures").rglob("*.png"))[:3]
    argv = ["predict", "--json", *world.settings(trained), *images]
    one = commands.ok(*argv)
    two = Ranks(commands, 2, *argv, DIVIDED).ok()
    assert not two[1].stdout and len(two[0].stdout.splitlines()) == len(images)
    for ours, theirs in zip(two[0].stdout.splitlines(), one.stdout.splitlines(), strict=True):
        assert_same(json.loads(ours), json.loads(theirs))
