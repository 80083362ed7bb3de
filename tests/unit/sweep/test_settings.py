"""Settings of a sweep over their seeds: right numbers, and no claim for what chance and choice explain."""

import csv
import json

import numpy as np
import pytest

from masp.errors import InputError
from masp.experiments.seed_statistics import compare_seeds
from masp.sweep.settings import column_names, setting_scores, setting_table, title
from masp.sweep.table import Row, write_sweep
from tests.unit.experiments.test_compare import make_run

RATE, LENGTH = "stage2.learning_rate", "stage2.num_soft_prompt_tokens"


class Runs:
    """Evaluated members of a sweep."""

    def __init__(self, directory):
        self.directory, self.values, self.right, self.splits = directory, {}, {}, {}

    def add(self, values, right, split="val"):
        name = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in values.items())
        self.values[name], self.right[name, split] = values, np.array(right)
        made = self.directory / "made" / name
        make_run(made, right)
        target = self.directory / name / "evaluate"
        target.mkdir(parents=True, exist_ok=True)
        for path in (made / "evaluate").iterdir():
            (target / "val").mkdir(exist_ok=True)
            path.rename(target / "val" / path.name if split == "val" else target / path.name)
        (made / "evaluate").rmdir()
        return name

    def scored(self, split="val"):
        return {name for name, of in self.right if of == split}

    def rows(self, failed=()):
        def accuracy(name, split):
            return float(self.right[name, split].mean()) if (name, split) in self.right else None

        return [
            Row(name, values, accuracy(name, "val"), None, accuracy(name, "test"), "lost" if name in failed else "")
            for name, values in self.values.items()
        ]


def draw(runs, num_seeds, shares, num_images=300):
    """One setting per share; the images are as hard for all, and seeds differ a little."""
    random = np.random.default_rng(0)
    hard = random.random(num_images)
    for rate, share in shares.items():
        for seed in range(1, num_seeds + 1):
            runs.add({RATE: rate, "seed": seed}, 0.7 * hard + 0.3 * random.random(num_images) < share)


def test_settings_are_members_over_their_seeds_compared_with_the_best(tmp_path):
    runs = Runs(tmp_path)
    draw(runs, 5, {0.001: 0.4, 0.01: 0.7, 0.1: 0.69})
    scores = setting_scores(tmp_path, runs.values, runs.scored(), "val")
    assert [setting.values for setting in scores.settings] == [{RATE: rate} for rate in (0.001, 0.01, 0.1)]
    assert (scores.best, scores.num_samples, scores.num_comparisons) == (1, 300, 3)  # all pairs: these numbers chose
    right = [[runs.right[f"learning_rate={rate},seed={seed}", "val"] for seed in range(1, 6)] for rate in (0.001, 0.01)]
    worse, best = scores.settings[0], scores.settings[1]
    assert list(best.members.values()) == pytest.approx([hits.mean() for hits in right[1]])
    assert best.accuracy == pytest.approx(np.mean(right[1]))
    assert best.spread == pytest.approx(np.std([hits.mean() for hits in right[1]], ddof=1))
    assert best.both_ci95[0] < best.images_ci95[0] < best.accuracy < best.images_ci95[1] < best.both_ci95[1]
    assert best.test is None and worse.test == compare_seeds(right[1], right[0])
    assert worse.corrected.t_p == pytest.approx(3 * worse.test.t_p)
    assert worse.corrected.claim == "behind" and scores.settings[2].corrected.claim is None
    assert scores.claims == [
        "learning_rate=0.01 is ahead of: learning_rate=0.001 (over seeds and images, p below 5 % after Holm's "
        "correction for 3 comparisons).",
        "Not told apart from learning_rate=0.01: learning_rate=0.1.",
    ]
    culled = setting_scores(tmp_path, runs.values, runs.scored(), "val", is_culled=True)
    assert culled.settings[0].test == worse.test and culled.settings[0].corrected.claim is None
    assert len(culled.claims) == 1 and culled.claims[0].startswith("No claim is made: members that did badly")
    table = setting_table(scores)
    assert [row[0] for row in table.rows] == ["0.01", "0.1", "0.001"]  # the best first
    assert [row[-1] for row in table.rows] == ["best", "", "behind"]


def test_below_five_seeds_nothing_is_claimed_and_one_lucky_seed_is_not_the_best(tmp_path):
    runs = Runs(tmp_path)
    draw(runs, 2, {0.001: 0.3, 0.01: 0.8})
    lucky = runs.add({RATE: 0.1, "seed": 1}, [True] * 300)
    lost = runs.add({RATE: 0.1, "seed": 2}, [True] * 300)
    scores = setting_scores(tmp_path, runs.values, runs.scored() - {lost}, "val")
    assert scores.settings[scores.best].values == {RATE: 0.01}
    assert list(scores.settings[2].members) == [lucky] and scores.settings[2].num_unscored == 1
    assert not any(setting.corrected and setting.corrected.claim for setting in scores.settings)
    assert len(scores.claims) == 1 and scores.claims[0].startswith("No claim is made: 1 to 2 training seeds, ")
    assert setting_table(scores).rows[0][-1] == "1 without a score"


def test_the_test_split_is_compared_with_what_validation_chose(tmp_path):
    runs = Runs(tmp_path)
    draw(runs, 2, {0.001: 0.5, 0.01: 0.6, 0.1: 0.7})
    for values in list(runs.values.values()):
        runs.add(values, [True] * (30 if values[RATE] == 0.1 else 40) + [False] * 10, "test")
    with pytest.raises(InputError, match="not on the same samples"):
        setting_scores(tmp_path, runs.values, runs.scored("test"), "test", {RATE: 0.1})
    some = {name for name in runs.scored("test") if runs.values[name][RATE] != 0.1}
    scores = setting_scores(tmp_path, runs.values, some, "test", {RATE: 0.01})
    assert scores.best == 1 and scores.chosen_on == "val" and scores.num_comparisons == 1
    assert scores.settings[0].test.difference == 0 and scores.settings[2].accuracy is None
    assert setting_table(scores).rows[-1][1:4] == [0, None, None]  # not scored comes last
    scores = setting_scores(tmp_path, runs.values, some, "test", {RATE: 0.1})
    assert scores.best is None and scores.claims == [] and scores.settings[0].accuracy == 0.8


def test_names_are_short_where_that_tells_settings_apart():
    assert column_names(["stage1.learning_rate", "stage2.learning_rate", LENGTH]) == [
        "stage1.learning_rate", "stage2.learning_rate", "num_soft_prompt_tokens"
    ]  # fmt: skip
    assert title({RATE: 0.01, LENGTH: 8}) == "learning_rate=0.01, num_soft_prompt_tokens=8" and title({}) == "as given"


def test_the_tables_of_a_sweep_are_files_and_printed_where_seeds_are_varied(tmp_path, capsys):
    runs = Runs(tmp_path)
    draw(runs, 2, {0.001: 0.4, 0.01: 0.7}, num_images=40)
    lost = runs.add({RATE: 0.1, "seed": 1}, [True] * 40)
    path = write_sweep(tmp_path, runs.rows(failed=[lost]), "learning_rate=0.01,seed=2")
    shown = capsys.readouterr().out
    assert "| 0.01 | 2 | 0." in shown and "of the validation split, mean and standard deviation over seeds" in shown
    assert "No claim is made: 2 training seeds" in shown
    rows = list(csv.DictReader((tmp_path / "settings.csv").open()))
    assert [row["learning_rate"] for row in rows] == ["0.01", "0.001", "0.1"]
    assert (
        float(rows[1]["difference"]) < 0 and rows[1]["mean over both low"] and rows[2]["remark"] == "1 without a score"
    )
    assert next(iter(csv.DictReader((tmp_path / "settings-test.csv").open())))["seeds"] == "0"
    assert (tmp_path / "settings.tex").read_text().count("\\\\") == 1 + 3
    content = json.loads(path.read_text())
    assert content["best"] == "learning_rate=0.01,seed=2" and content["settings"]["val"]["best"] == 1
    assert len(content["members"]) == 5 and content["settings"]["val"]["settings"][2]["members"] == {}


def test_without_several_seeds_the_members_are_printed_alone(tmp_path, capsys):
    runs = Runs(tmp_path)
    draw(runs, 1, {0.001: 0.4, 0.01: 0.7}, num_images=40)
    write_sweep(tmp_path, runs.rows(), None)
    assert "over seeds" not in capsys.readouterr().out
    assert (tmp_path / "settings.csv").read_text().count("\n") == 3
