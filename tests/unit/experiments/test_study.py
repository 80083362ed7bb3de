"""The study: which runs there are, and what their records say together."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from masp.artifacts.store import load_soft_prompt
from masp.config import load_config
from masp.config.reading import save_config
from masp.demo.run import run_demo
from masp.errors import InputError, StoppedEarly
from masp.experiments.study.run import finish_study, open_study, run_study
from masp.experiments.study.runs import commands, run_config, runs_of, units_of
from masp.experiments.study.table import markdown, study, write_table
from masp.experiments.study.variants import FULL, left_out_of, variants_of
from masp.extraction.job import extract
from masp.results.records import DataDigests
from masp.training.checkpoint import load_latest, save_checkpoint
from masp.training.loop import train
from masp.training.stages import open_stage
from tests.images import make_dataset
from tests.runs import make_run as make_files
from tests.unit.experiments.test_compare import make_run
from tests.unit.training.group.test_trainer import After

DEMO = "configs/demo.yaml"


@pytest.fixture
def demo(repository, tmp_path):
    return load_config(repository / DEMO, [f"output_dir={tmp_path}"])


def test_every_part_is_left_out_in_turn(demo):
    variants = {v.name: v for v in variants_of(demo)}
    removed = [name for name, v in variants.items() if v.removes]
    assert removed == [
        "zero_shot", "without_soft_prompt", "without_aspects", "without_vision_features",
        *(f"without_{aspect}" for aspect in demo.aspects),
    ]  # fmt: skip
    assert [name for name, v in variants.items() if v.group == "length"] == [
        "soft_prompt_4", "soft_prompt_16", "soft_prompt_64"
    ]  # fmt: skip
    assert [name for name, v in variants.items() if v.group == "queries"] == ["queries_1", "queries_10"]
    assert "layout_released" in variants and len({v.title for v in variants.values()}) == len(variants)


def test_without_aspects_only_the_soft_prompt_is_varied(demo):
    demo.aspects = []
    variants = variants_of(demo)
    assert {stage for variant in variants for stage in variant.stages} == {"stage2"}
    assert [v.name for v in variants if v.group != "length"] == [
        "masp", "zero_shot", "layout_released"
    ]  # fmt: skip


def test_runs_share_the_aspect_modules_of_their_seed(demo, tmp_path):
    variants = {v.name: v for v in variants_of(demo)}
    full = run_config(demo, variants[FULL], 7)
    assert (full.seed, full.checkpoint.aspect) == (7, None)
    shared = str(tmp_path / "study" / "seed-7" / "masp" / "stage1" / "aspect.safetensors")
    fewer = run_config(demo, variants["without_scene"], 7)
    assert fewer.checkpoint.aspect == shared and "scene" not in fewer.aspects and len(fewer.aspects) == 5
    assert run_config(demo, variants["queries_1"], 7).checkpoint.aspect is None
    assert run_config(demo, variants["without_aspects"], 7).checkpoint.aspect is None
    assert run_config(demo, variants["zero_shot"], 7).checkpoint.soft_prompt == "none"
    assert demo.aspects == list(load_config(DEMO).aspects)  # what is given stays as it was


def test_it_lists_the_commands_of_every_seed(demo, tmp_path, capsys):
    given = ("--config", "my configs/demo.yaml", f"output_dir={tmp_path}")
    run_study(demo, "4,5", "zero_shot,without_scene", list_only=True, given=given)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("    masp ")]
    assert lines[0] == f"masp extract --config 'my configs/demo.yaml' output_dir={tmp_path}"
    assert all(" --config 'my configs/demo.yaml' " in line for line in lines)
    counts = {seed: sum(f" seed={seed} " in line for line in lines) for seed in (4, 5)}
    assert counts == {4: 3 + 1 + 2, 5: 3 + 2}  # nothing trained is the same for both


def test_the_commands_it_lists_make_the_same_runs(demo, repository):
    for variant in variants_of(demo):
        for command in commands(demo, variant, 7, ("--config", DEMO, f"output_dir={demo.output_dir}")):
            words = shlex.split(command)
            assert words[0] == "masp" and words[words.index("--config") + 1] == DEMO
            overrides = words[words.index("--config") + 2 :]
            assert load_config(repository / DEMO, overrides) == run_config(demo, variant, 7), command


def units(config, *seeds: int):
    """Names of the runs that are done in one go."""
    return [[run.name for run in unit] for unit in units_of(runs_of(config, variants_of(config), seeds))]


# without a soft prompt nothing is trained, but scored behind the same prefix
ALIKE = ("masp", "without_soft_prompt", "soft_prompt_4", "soft_prompt_16", "soft_prompt_64")


def test_runs_that_share_aspect_modules_and_an_order_are_trained_together(demo):
    assert demo.order_seed is None  # each seed has its own
    found = units(demo, 1, 2)
    assert found[0] == [f"seed-1/{name}" for name in ALIKE]
    together = [unit for unit in found if len(unit) > 1]
    assert together == [[f"seed-{seed}/{name}" for name in ALIKE] for seed in (1, 2)]
    assert sum(map(len, found)) == 17 + 16 and found.count(["seed-1/zero_shot"]) == 1  # the same for both seeds
    assert found.index(["seed-1/layout_released"]) < found.index(together[1])
    demo.order_seed, demo.checkpoint.aspect = 5, "theirs.pth"
    found = units(demo, 1, 2)
    assert found[0] == [f"seed-{seed}/{name}" for seed in (1, 2) for name in ALIKE]
    assert ["seed-1/without_scene", "seed-2/without_scene"] in found
    assert ["seed-1/without_vision_features", "seed-2/without_vision_features"] in found
    assert ["seed-1/layout_released"] in found and ["seed-2/layout_released"] in found


def listed(config, capsys, *given: str):
    run_study(config, "4,5", "soft_prompt_4", list_only=True, given=given)
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("    masp train --stage stage2")]


def test_seeds_share_an_order_where_they_share_the_aspect_modules(repository, tmp_path, capsys, caplog):
    caplog.set_level("INFO", logger="masp")
    given = [f"output_dir={tmp_path}", f"dataset.root={tmp_path / 'none'}"]

    def commands_with(*more: str):
        return listed(load_config(repository / DEMO, [*given, *more]), capsys, *given, *more)

    assert not [line for line in commands_with() if "order_seed" in line]
    assert all(" order_seed=9" in line for line in commands_with("aspects=[]", "seed=9"))
    assert all(" order_seed=9" in line for line in commands_with("order_seed=9"))
    assert all(" order_seed=3407" in line for line in commands_with("checkpoint.aspect=theirs.pth"))

    # a study that was begun with other orders goes on with them
    old = load_config(repository / DEMO, [*given, "aspects=[]"])
    directory = tmp_path / "study" / "seed-4" / "masp" / "stage2"
    directory.mkdir(parents=True)
    save_config(old, directory / "config.yaml")
    assert "goes on" not in caplog.text
    assert not [line for line in commands_with("aspects=[]") if "order_seed" in line]
    assert (
        f"study: goes on with order_seed=null, as {directory.parent} began; with another output_dir it would be 3407, "
        "and all seeds would be trained together"
    ) in caplog.text
    with pytest.raises(InputError) as error:
        commands_with("aspects=[]", "order_seed=9")
    assert str(error.value) == (
        f"order_seed = 9: {directory.parent} has null, and all runs of a study must see the images in one order; leave "
        "it out, or give another output_dir"
    )
    old.order_seed = 9
    (directory.parents[1] / "soft_prompt_4" / "stage2").mkdir(parents=True)
    save_config(old, directory.parents[1] / "soft_prompt_4" / "stage2" / "config.yaml")
    for more in ((), ("order_seed=9",)):
        with pytest.raises(InputError, match="order_seed = .* has .*; remove these runs, or give another output_dir$"):
            commands_with("aspects=[]", *more)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Images without annotations, a tiny VLM, and a configuration for them."""
    folder = tmp_path_factory.mktemp("study")
    path = make_files(folder)
    shutil.rmtree(folder / "pictures" / "annotation")
    return path, folder


GIVEN = ("engine.zero_stage=0", "stage2.num_epochs=1", "stage2.log_every=1", "stage2.checkpoint_every=1")


def prompt_of(directory: Path) -> torch.Tensor:
    return load_soft_prompt(str(directory / "stage2" / "soft_prompt_folder.safetensors"), 32)[0].weight


def test_a_study_without_annotations_trains_all_seeds_together(world, tmp_path, capsys):
    path, _ = world
    given = ["--config", str(path), *GIVEN, f"output_dir={tmp_path}"]
    config = load_config(path, given[2:])
    assert run_study(config, "1,2", "soft_prompt_2") == tmp_path / "study" / "study.json"
    before = (tmp_path / "study" / "study.json").read_bytes()
    assert finish_study(open_study(config, "1,2", "soft_prompt_2")).read_bytes() == before
    shown = capsys.readouterr()
    titles = "seed 1, soft prompt alone; seed 1, soft prompt of 2; seed 2, soft prompt alone; seed 2, soft prompt of 2"
    assert f"study: 1 to 4 of 4: {titles}" in shown.err
    runs = {f"seed-{seed}/{name}" for seed in (1, 2) for name in ("masp", "soft_prompt_2")}
    result = json.loads((tmp_path / "study" / "study.json").read_text())
    assert [row["accuracies"].keys() for row in result["variants"].values()] == [{"1": 0, "2": 0}.keys()] * 2
    assert len({prompt_of(tmp_path / "study" / run).sum().item() for run in runs}) == 4
    # the command of the list makes the same run alone
    run_study(config, "1,2", "soft_prompt_2", list_only=True, given=given)
    (command,) = [
        line for line in capsys.readouterr().out.splitlines() if "seed-2/soft_prompt_2" in line and "train" in line
    ]
    words = shlex.split(command)
    assert words[:6] == ["masp", "train", "--stage", "stage2", "--config", str(path)]
    alone = load_config(path, words[6:])
    alone.output_dir = str(tmp_path / "alone")
    train(alone, "stage2")
    ours = prompt_of(tmp_path / "study" / "seed-2" / "soft_prompt_2")
    torch.testing.assert_close(ours, prompt_of(tmp_path / "alone"), atol=1e-5, rtol=0)


def test_a_run_that_diverges_is_named_and_the_table_is_of_the_others(world, tmp_path):
    path, _ = world
    config = load_config(path, [*GIVEN, f"output_dir={tmp_path}", "aspects=[]", "order_seed=5"])
    extract(config)
    (run,) = [run for run in runs_of(config, variants_of(config), [2]) if run.variant.name == "soft_prompt_2"]
    with pytest.raises(StoppedEarly):
        train(run.config, "stage2", stop=After(1))
    checkpoints = Path(run.config.output_dir) / "stage2" / "checkpoints"
    found = load_latest(checkpoints, open_stage("stage2", run.config, "cpu").identity())
    found.tensors["soft_prompt.weight"].fill_(float("nan"))
    save_checkpoint(checkpoints, found, keep=2)
    with pytest.raises(InputError) as error:
        run_study(config, "1,2", "soft_prompt_2")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(
        "study: 1 of 4 runs not trained to the end: seed-2/soft_prompt_2: stage2: step 3 is not taken: the loss is nan;"
    )
    assert str(error.value).endswith(f"; the table is of the others: {tmp_path / 'study' / 'study.json'}")
    result = json.loads((tmp_path / "study" / "study.json").read_text())
    assert {name: list(row["accuracies"]) for name, row in result["variants"].items()} == {
        "masp": ["1", "2"], "soft_prompt_2": ["1"]
    }  # fmt: skip
    assert result["missing"]["soft_prompt_2"] == [2]
    with pytest.raises(InputError) as other:  # the end of a study that was trained in parts
        finish_study(open_study(config, "1,2", "soft_prompt_2"))
    assert str(other.value) == str(error.value)


def test_given_aspect_modules_are_those_of_every_run(repository, tmp_path):
    given = [f"output_dir={tmp_path}", f"dataset.root={tmp_path / 'none'}", "checkpoint.aspect=theirs.pth"]
    config = load_config(repository / DEMO, given)
    variants = {v.name: v for v in variants_of(config)}
    assert not [v for v in variants.values() if "stage1" in v.stages]
    assert set(left_out_of(config)) == {"queries_1", "queries_10"}
    taken = {name: run_config(config, variant, 1).checkpoint.aspect for name, variant in variants.items()}
    assert (taken.pop("zero_shot"), taken.pop("without_aspects")) == ("none", None)
    assert set(taken.values()) == {"theirs.pth"}
    for variant in variants.values():
        for command in commands(config, variant, 7, ("--config", DEMO, *given)):
            overrides = shlex.split(command)[shlex.split(command).index(DEMO) + 1 :]
            assert load_config(repository / DEMO, overrides) == run_config(config, variant, 7), command


def test_without_annotations_the_study_is_of_the_soft_prompt(repository, tmp_path, capsys, caplog):
    images = make_dataset(tmp_path / "images", 6, 3)
    shutil.rmtree(images / "annotation")
    given = ["dataset.name=folder", f"dataset.root={images}", f"cache.dir={tmp_path / 'cache'}"]
    config = load_config(repository / DEMO, given)
    caplog.set_level("INFO", logger="masp")
    run_study(config, "1", list_only=True, given=("--config", DEMO, *given))
    shown = capsys.readouterr().out
    assert "masp                     soft prompt alone" in shown and "--stage stage1" not in shown
    commands_shown = [line for line in shown.splitlines() if line.startswith("    masp ") and "extract" not in line]
    assert all(" 'aspects=[]' " in line for line in commands_shown) and len(commands_shown) == 1 + 2 * 5
    for name in ("without_aspects", "without_soft_prompt", "without_vision_features", "queries_1"):
        assert f"{name:<24} left out: " in shown
    assert "no training image is annotated" in caplog.text and "without_aspects is left out" in caplog.text


def test_without_aspects_in_the_configuration_nothing_needs_them(repository, tmp_path):
    config = load_config(repository / DEMO, [f"output_dir={tmp_path}", "aspects=[]"])
    variants = variants_of(config)
    assert [v.name for v in variants] == [
        FULL, "zero_shot", "soft_prompt_4", "soft_prompt_16", "soft_prompt_64", "layout_released"
    ]  # fmt: skip
    assert not [v for v in variants if "stage1" in v.stages]
    assert run_config(config, variants[0], 1).checkpoint.aspect is None


@pytest.mark.parametrize(
    ("seeds", "only", "problem"),
    [("1,x", None, "--seeds 1,x"), ("1,1", None, "different"), ("1,01", None, "different"),
     ("²", None, "--seeds ²"),
     ("٣", None, "--seeds"), ("9" * 5000, None, "--seeds 9"), ("4294967296", None, "--seeds"), ("", None, "--seeds"),
     ("1", "nothing", "--only nothing: .* there are masp, "),
     ("1", "x" * 5000, "--only xxx.*there are masp, ")],
)  # fmt: skip
def test_wrong_choices_are_refused(demo, seeds, only, problem):
    with pytest.raises(InputError, match=problem) as error:
        run_study(demo, seeds, only, list_only=True)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    "setting",
    ["checkpoint.aspect=none", "checkpoint.soft_prompt=p.pt", "checkpoint.layout=released",
     "evaluate.stage=stage1"],
)  # fmt: skip
@pytest.mark.parametrize("list_only", [False, True])
def test_foreign_checkpoints_and_stage_1_are_refused(repository, tmp_path, setting, list_only):
    config = load_config(repository / DEMO, [f"output_dir={tmp_path}", f"dataset.root={tmp_path}", setting])
    key, value = setting.split("=")
    remedy = "give aspects=\\[\\][^\n]*" if key == "checkpoint.aspect" else "leave it out"
    with pytest.raises(InputError, match=f"^{key} = '{value}': a study [^\n]*; {remedy}$"):
        run_study(config, "1", list_only=list_only)
    assert not list(tmp_path.iterdir())


ARRAY = {f"SLURM_ARRAY_TASK_{name}": value for name, value in
         (("ID", "1"), ("COUNT", "3"), ("MIN", "0"), ("MAX", "2"))}  # fmt: skip
RANKS = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(("env", "found"), [(ARRAY, "3 elements of a Slurm array"), (RANKS, "2 ranks")])
def test_several_processes_are_refused(demo, tmp_path, monkeypatch, capsys, env, found):
    demo.dataset.root = str(tmp_path)  # nothing is drawn, and there is nothing to extract
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"^study: .*{found}; .*--list") as error:
        run_study(demo, "1")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=f"^demo: .*{found}"):
        run_demo(demo, 1, 1)
    assert not list(tmp_path.iterdir())
    run_study(demo, "1", list_only=True)  # a list can be printed anywhere
    assert "masp evaluate" in capsys.readouterr().out


def test_the_table_pairs_samples_and_shows_the_spread(demo, tmp_path, capsys):
    variants = [v for v in variants_of(demo) if v.name in (FULL, "zero_shot", "without_scene", "soft_prompt_4")]
    rng = np.random.default_rng(0)
    shares = {FULL: 0.8, "zero_shot": 0.5, "without_scene": 0.78}  # the last variant has not run yet
    for variant in variants[:-1]:
        for seed in (1, 2) if variant.seeded else (1,):
            make_run(tmp_path / f"seed-{seed}" / variant.name, rng.random(400) < shares[variant.name])
    result = study(tmp_path, variants, [1, 2])
    rows = result.variants
    assert list(rows) == [FULL, "zero_shot", "without_scene"] and result.num_samples == 400
    assert rows[FULL].accuracy == pytest.approx(np.mean(list(rows[FULL].accuracies.values())))
    assert rows[FULL].spread == pytest.approx(np.std(list(rows[FULL].accuracies.values()), ddof=1))
    assert rows[FULL].difference is None and list(rows["zero_shot"].accuracies) == [1]
    assert rows["zero_shot"].difference == pytest.approx(rows["zero_shot"].accuracy - rows[FULL].accuracy)
    low, high = rows["zero_shot"].difference_ci95
    assert -0.45 < low < rows["zero_shot"].difference < high < -0.15
    assert not rows["zero_shot"].behind and not rows["without_scene"].behind
    assert result.claims == [
        "No claim is made: 2 training seeds, of which at least 5 are needed to say anything about other seeds."
    ]
    assert rows["zero_shot"].test.num_seeds == 2 and rows["zero_shot"].test.images_ci95 == (low, high)
    path = write_table(tmp_path, variants, [1, 2])
    assert path.is_file() and (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "study.md").read_text() == markdown(result)
    assert (tmp_path / "accuracies.csv").read_text().startswith("variant,seed 1,seed 2,mean,spread\nMASP,0.")
    assert "without scene & 2 & " in (tmp_path / "differences.tex").read_text()
    assert "| without scene | 0." in capsys.readouterr().out


def test_with_five_seeds_the_table_claims_what_is_beyond_chance(demo, tmp_path):
    variants = [v for v in variants_of(demo) if v.name in (FULL, "zero_shot", "without_scene")]
    rng = np.random.default_rng(0)
    base = rng.random(400)
    for seed in range(1, 6):
        for variant, share in zip(variants, (0.8, 0.5, 0.79), strict=True):
            if variant.seeded or seed == 1:
                make_run(tmp_path / f"seed-{seed}" / variant.name, 0.7 * base + 0.3 * rng.random(400) < share)
    result = study(tmp_path, variants, range(1, 6))
    assert [name for name, row in result.variants.items() if row.behind] == ["zero_shot"]
    assert result.claims == [
        "MASP is ahead of: nothing trained (zero-shot) (over seeds and images, p below 5 % after Holm's correction for "
        "2 comparisons).",
        "Not told apart from MASP: without scene.",
    ]
    assert result.claims[0] in markdown(result)
    assert json.loads(json.dumps(result.to_json()))["variants"]["zero_shot"]["test"]["num_seeds"] == 5


def test_the_table_holds_what_earlier_calls_finished(demo, tmp_path, monkeypatch, capsys):
    """Whatever this call was told to run: the table is over the folder."""
    folder = tmp_path / "study"
    for name in ("extract", "train"):
        monkeypatch.setattr(f"masp.experiments.study.run.{name}", lambda *_: None)
    monkeypatch.setattr("masp.experiments.study.run.train_together", lambda configs: [""] * len(configs))

    def evaluate_together(configs, *_):
        for run in configs:
            if not Path(run.output_dir).exists():
                make_run(Path(run.output_dir), [True, True, False, True])

    monkeypatch.setattr("masp.experiments.study.run.evaluate_together", evaluate_together)
    run_study(demo, "2", "zero_shot,layout_released")
    (folder / "seed-3" / FULL).mkdir(parents=True)  # stopped in its training
    for name in ("seed-x", "seed-02", "seed-²"):
        (folder / name / FULL / "evaluate").mkdir(parents=True)
    capsys.readouterr()
    run_study(demo, "1", "without_scene")
    result = json.loads((folder / "study.json").read_text())
    assert list(result["variants"]) == [FULL, "zero_shot", "without_scene", "layout_released"]
    assert result["seeds"] == [1, 2]
    assert {n: list(row["accuracies"]) for n, row in result["variants"].items()} == {
        FULL: ["1", "2"], "zero_shot": ["2"], "without_scene": ["1"], "layout_released": ["2"]
    }  # fmt: skip
    assert "zero_shot" not in result["missing"] and result["missing"]["layout_released"] == [1, 3]
    assert result["missing"]["queries_1"] == [1, 2, 3] and result["missing"][FULL] == [3]
    shown = capsys.readouterr().out
    assert "not in the table: masp (seed 3); " in shown and "without_scene (seed 2, 3); " in shown


def test_settings_that_differ_are_noted(demo, tmp_path):
    """One mean over runs that were trained differently would be nobody's number."""
    variants = [v for v in variants_of(demo) if v.name in (FULL, "without_scene")]
    for seed, num_epochs in ((1, 3), (2, 3), (3, 1)):
        for variant in variants:
            folder = tmp_path / f"seed-{seed}" / variant.name
            make_run(folder, [True, False, True, True], data=DataDigests("a" * 64, "vlm"))
            run = run_config(demo, variant, seed)
            run.stage2.num_epochs = num_epochs
            for part in (*variant.stages, "evaluate"):
                (folder / part).mkdir(exist_ok=True)
                save_config(run, folder / part / "config.yaml")
    assert study(tmp_path, variants, [1, 2]).notes == []
    notes = study(tmp_path, variants, [1, 2, 3]).notes
    assert len(notes) == 3  # a line for each of stage 1, stage 2 and evaluation, however many runs
    assert all("seed-3" in note and "stage2.num_epochs is 1, and 3 in" in note for note in notes)
    assert sum("config.yaml and 1 more: " in note for note in notes) == 2


def test_runs_on_other_samples_make_no_table(demo, tmp_path):
    variants = variants_of(demo)[:2]
    make_run(tmp_path / "seed-1" / FULL, [True] * 4)
    make_run(tmp_path / "seed-1" / "zero_shot", [True] * 3)
    with pytest.raises(InputError, match="not on the same samples"):
        study(tmp_path, variants, [1])


@pytest.mark.full
def test_a_reader_that_leaves_ends_a_command_without_a_traceback():
    """As `masp study --list | true` does."""
    reading, writing = os.pipe()
    os.close(reading)  # before the command writes: a reader that leaves later may have been sent everything already
    command = [sys.executable, "-m", "masp.cli", "study", "--config", "configs/demo.yaml", "--list"]
    process = subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert process.communicate()[1] == "" and process.returncode == 128 + 13
