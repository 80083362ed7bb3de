"""Runs that differ in their seed alone: grouped by what they were told, compared over seeds and images."""

import json
from pathlib import Path

import numpy as np
import pytest

from masp.config import load_config
from masp.config.reading import save_config
from masp.errors import InputError
from masp.experiments.compare import compare, markdown
from masp.experiments.seed_groups import RunSettings, differing, group_runs, read_settings
from tests.unit.experiments.test_compare import make_run

DEMO = "configs/demo.yaml"


def make_trained_run(folder: Path, right, rate: float, seed: int, prefix: str = "test") -> str:
    """A run that was trained with its own learning rate, and evaluated by a command that does not repeat it."""
    run = make_run(folder, right, prefix=prefix)
    own = [f"seed={seed}", f"output_dir={folder}", f"logging.project=p{seed}"]
    trained = load_config(DEMO, [*own, f"stage2.learning_rate={rate}", "engine.num_workers=1"])
    aspect = f"checkpoint.aspect={folder}/stage1/aspect.safetensors"
    for part, config in (("stage2", trained), ("evaluate", load_config(DEMO, [*own, aspect]))):
        (folder / part).mkdir(exist_ok=True)
        save_config(config, folder / part / "config.yaml")
    return run


@pytest.fixture
def six(tmp_path):
    """Two learning rates, three seeds each."""
    random = np.random.default_rng(0)
    return [
        make_trained_run(tmp_path / f"lr{rate}" / f"seed-{seed}", random.random(200) < share, rate, seed)
        for rate, share in ((0.1, 0.5), (0.2, 0.8))
        for seed in (1, 2, 3)
    ]


def test_seeds_are_put_together_and_the_groups_compared(six, tmp_path):
    result = compare(six, tmp_path / "out")
    assert list(result.groups) == ["stage2.learning_rate=0.1", "stage2.learning_rate=0.2"]
    low, high = result.groups.values()
    assert list(low.runs) == [1, 2, 3] and low.accuracy == pytest.approx(
        np.mean([result.runs[name].accuracy for name in low.runs.values()])
    )
    assert high.spread == pytest.approx(np.std([result.runs[n].accuracy for n in high.runs.values()], ddof=1))
    (pair,) = result.group_pairs
    assert pair.test.num_seeds == 3 and pair.test.difference == pytest.approx(high.accuracy - low.accuracy)
    assert pair.corrected.claim is None and "fewer than 5 seeds" in result.claims[0]
    text = markdown(result)
    assert text.count("learning") >= 3 and "McNemar" not in text and "| 3 | 1, 2, 3 |" in text
    saved = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert len(saved["pairs"]) == 15 and list(saved["groups"]) == list(result.groups)
    assert (tmp_path / "out" / "group-pairs.csv").read_text().count("\n") == 2


def test_choosing_on_the_test_split_is_warned_of_and_the_validation_split_is_not(six, tmp_path):
    (note,) = [n for n in compare(six, tmp_path / "out").notes if "selecting" in n]
    assert "stage2.learning_rate" in note and "masp compare --split val" in note
    with pytest.raises(InputError, match="no evaluate/val/records.h5; run .* evaluate.validation=true` first"):
        compare(six, tmp_path / "out", "val")
    for run in six:
        make_run(Path(run) / "held out", [True, False, True], prefix="val")
        (Path(run) / "held out" / "evaluate").rename(Path(run) / "evaluate" / "val")
    result = compare(six, tmp_path / "out", "val")
    assert {run.num_samples for run in result.runs.values()} == {3} and len(result.groups) == 2
    assert not [n for n in result.notes if "selecting" in n]
    files = [f"{run}/evaluate/records.h5" for run in six]
    assert compare(files, tmp_path / "out", "val").runs.keys() == compare(files, tmp_path / "out").runs.keys()


def test_runs_of_one_seed_each_are_compared_as_runs(tmp_path):
    runs = [make_trained_run(tmp_path / str(rate), [True] * 4, rate, seed=1) for rate in (0.1, 0.2)]
    result = compare(runs, tmp_path / "out")
    assert result.groups == {} and "McNemar" in markdown(result)
    # and those that nothing is known of
    runs = [make_run(tmp_path / name, [True] * 4) for name in "ab"]
    assert compare(runs, tmp_path / "out").groups == {} and read_settings(tmp_path / "a/evaluate/records.h5") is None


def test_what_says_only_where_a_run_is_makes_no_difference(six):
    settings = [read_settings(Path(run) / "evaluate" / "records.h5") for run in six]
    assert [each.seed for each in settings] == [1, 2, 3, 1, 2, 3]
    assert differing(settings[:3]) == [] and differing(settings) == ["stage2.learning_rate"]


def test_the_same_run_twice_is_not_a_seed_more_and_unknown_runs_stand_alone():
    hits = np.array([True, False, True])
    settings = {n: RunSettings(s, {"x": 1}) for n, s in (("a", 1), ("b", 1), ("c", 2))} | {"d": None}
    groups, _ = group_runs(settings, dict.fromkeys(settings, hits))
    assert [list(group.runs.values()) for group in groups.values()] == [["a", "c"], ["b"], ["d"]]
    assert group_runs({"a": RunSettings(1, {}), "d": None}, dict.fromkeys("ad", hits)) == ({}, ())
