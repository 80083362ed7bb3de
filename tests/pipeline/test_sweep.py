"""`masp sweep` from the images to the table: groups, the choice on the validation split, going on with more members."""

import csv
import json
import re

import pytest

from tests.runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a validation split of its own."""
    folder = tmp_path_factory.mktemp("sweep")
    config = make_run(folder, 18, 6)
    (folder / "pictures" / "val").mkdir()
    for path in sorted((folder / "pictures" / "train").glob("*/*.00[0-5].*")):
        target = folder / "pictures" / "val" / path.parent.name
        target.mkdir(exist_ok=True)
        path.rename(target / path.name)
    return config, folder / "run" / "sweep"


def test_a_sweep_chooses_on_the_validation_split_and_goes_on_with_more_members(commands, run):
    config, directory = run
    given = ("sweep", "--config", config, "stage2.learning_rate=[0.001,0.05]")
    first = commands.ok(*given, "seed=1")
    assert "2 members in groups of 2" in first.stdout and "as single runs" in first.stdout
    table = json.loads((directory / "sweep.json").read_text())
    members = {member["name"]: member for member in table["members"]}
    assert set(members) == {"learning_rate=0.001", "learning_rate=0.05"}
    best = max(members.values(), key=lambda member: member["val_accuracy"])
    assert members[table["best"]]["val_accuracy"] == best["val_accuracy"]
    assert [name for name, member in members.items() if member["test_accuracy"] is not None] == [table["best"]]
    for name in members:
        assert re.fullmatch(r"\d+", str(len((directory / name / "stage2" / "metrics.jsonl").read_text())))
        assert (directory / name / "stage2" / "soft_prompt_folder.safetensors").is_file()
    more = commands.ok("sweep", "--config", config, "stage2.learning_rate=[0.001,0.05,0.01]", "seed=1", "--test", "all")
    assert "finished already" in more.stdout
    rows = list(csv.DictReader((directory / "sweep.csv").open()))
    assert len(rows) == 3 and all(row["test"] for row in rows)
    for name in ("settings", "settings-test"):  # a seed each
        settings = list(csv.DictReader((directory / f"{name}.csv").open()))
        column = "validation" if name == "settings" else "test"
        assert {row["learning_rate"]: row["mean"] for row in settings} == {
            row["learning_rate"]: row[column] for row in rows
        }
    assert (directory / "accuracy-learning-rate.svg").is_file()


def test_a_list_says_what_a_sweep_costs_and_does_nothing(commands, run, tmp_path):
    config, _ = run
    given = ("sweep", "--config", config, f"output_dir={tmp_path / 'out'}", "seed=[1,2,3,4]", "stage2.num_epochs=8")
    found = commands.ok(*given, "--list", "--halving", "--tflops", 300)
    assert found.stdout.splitlines()[:5] == ["seed=1", "seed=2", "seed=3", "seed=4", "sweep: 4 members in groups of 4"]
    for words in ("behind one pass of the prefix", "times as much", "halving: at most about", "stated: 300 TFLOP/s"):
        assert words in found.stdout
    assert not (tmp_path / "out").exists()


def test_halving_drops_members_and_chooses_among_the_others(commands, run, tmp_path):
    config, _ = run
    given = ("sweep", "--config", config, f"output_dir={tmp_path}", "aspects=[]", "stage2.learning_rate=[1e-9,0.05]")
    found = commands.ok(*given, "stage2.num_epochs=4", "--halving")
    assert "rung 1 of 1: 1 of 2 members go on" in found.stdout
    table = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert table["best"] == "learning_rate=0.05"
    assert [bool(member["dropped"]) for member in table["members"]] == [True, False]
    assert table["members"][0]["val_accuracy"] is None


def test_a_sweep_over_fractions_writes_a_learning_curve_with_a_probe_per_subset(commands, run, tmp_path):
    config, _ = run
    settings = ("output_dir=" + str(tmp_path), "evaluate.linear_probe=true", "stage2.learning_rate=[0.01,0.05]")
    found = commands.ok("sweep", "--config", config, "dataset.fraction=[0.4,1]", "seed=[1,2]", *settings)
    directory = tmp_path / "sweep"
    members = json.loads((directory / "sweep.json").read_text())["members"]
    scored = [member for member in members if member["test_accuracy"] is not None]
    points = list(csv.DictReader((directory / "learning-curve.csv").open()))
    assert [(row["fraction"], row["training images"], row["repeats"]) for row in points] == [
        ("0.4", "6", "2"),
        ("1", "12", "2"),
    ]
    for row in points:
        at = {"dataset.fraction": float(row["fraction"]), "stage2.learning_rate": float(row["learning_rate"])}
        accuracies = [m["test_accuracy"] for m in scored if m["values"].items() >= at.items()]
        assert len(accuracies) == 2 and float(row["accuracy"]) == pytest.approx(sum(accuracies) / 2)
    probes = [json.loads(path.read_text()) for path in directory.glob("probe-*/linear_probe.json")]
    assert sorted(probe["num_train"] for probe in probes) == [6, 12]
    assert {probe["accuracy"] for probe in probes} == {float(row["linear probe"]) for row in points}
    assert not list(directory.glob("*/evaluate/**/linear_probe.json"))  # of no member
    for suffix in ("png", "svg", "pdf", "tex"):
        assert (directory / f"learning-curve.{suffix}").stat().st_size > 100
    # both stages saw the same images, and say so
    few = next(member["name"] for member in scored if member["values"]["dataset.fraction"] == 0.4)
    lineage = json.loads((directory / few / "evaluate" / "metrics.json").read_text())["lineage"]
    one, two = (lineage[part]["settings"]["dataset.subset"] for part in ("aspect", "soft_prompt"))
    assert one == two and (one["num_images"], one["num_in_split"], one["min_per_category"]) == (6, 12, 2)
    said = "6 of 12 training images, 2 or more per category (dataset.fraction = 0.4)"
    assert json.loads((directory / few / "stage2" / "status.json").read_text())["subset"] == said
    assert f"the soft prompt was trained on {said}" in found.stderr
    assert len(list(directory.glob("aspects-*"))) == 2
    again = commands("train", "--stage", "stage2", "--config", directory / few / "stage2" / "config.yaml",
                     "dataset.fraction=0.5")  # fmt: skip
    assert again.code == 2 and "dataset.fraction = 0.4, but here it is 0.5; give the old value" in again.stderr


def test_what_cannot_be_a_sweep_is_one_line(commands, run, tmp_path):
    config, _ = run
    for arguments, problem in (
        (["stage2.learning_rate=[0.1,-1]"], "stage2.learning_rate = -1"),
        (["stage2.learning_rate=log(1e-3,1)"], "is drawn from a range; give --num"),
        (["seed=[1,2]", "--members", tmp_path / "gone"], "leave out the axes"),
        (["--members", tmp_path / "gone"], "gone"),
        (["sead=[1,2]"], "did you mean seed"),
        (["seed=[1,2]", "--halving", "1"], "--halving 1: must be 2 or more"),
        (["--halving", "seed=[1,2]"], "give --halving 2 before settings"),
        (["stage2.layout=[after_image,released]", "--halving"], "losses cannot be compared"),
    ):
        found = commands("sweep", "--config", config, f"output_dir={tmp_path / 'out'}", *arguments)
        assert found.code == 2 and problem in found.stderr and "Traceback" not in found.stderr, found.stderr
        assert not (tmp_path / "out").exists()
