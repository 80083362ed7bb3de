"""Which parts a command has, and what each asks for."""

from pathlib import Path

import pytest

from launch.job.config import load_cluster
from launch.job.members import read_runs, write_runs
from launch.job.parts import Part, PartName, make_parts, task_command
from masp.config import load_config, save_config
from masp.errors import InputError
from masp.experiments.study.run import open_study
from masp.experiments.study.runs import modules_named
from masp.sweep.axes import asked_members
from masp.sweep.members import open_sweep
from tests.unit.launch.fake_slurm import CONFIG, LOCAL, SLURM


def parts(command, stage=None, *settings: str, cluster=SLURM) -> list[Part]:
    own = [text.removeprefix("cluster.") for text in settings if text.startswith("cluster.")]
    config = load_config(CONFIG, [text for text in settings if not text.startswith("cluster.")])
    return make_parts(command, stage, config, load_cluster(cluster, own), Path("config.yaml"))


@pytest.mark.parametrize(
    ("command", "stage", "names"),
    [
        ("extract", None, ["extract"]),
        ("annotate", None, ["annotate"]),
        ("train", "stage1", ["stage1"]),
        ("train", "stage2", ["stage2"]),
        ("evaluate", None, ["evaluate"]),
        ("pipeline", None, ["extract", "stage1", "stage2", "evaluate"]),
    ],
)
def test_the_parts_of_a_command_in_order(command, stage, names):
    assert [part.name for part in parts(command, stage)] == names


def test_without_aspects_a_pipeline_has_no_stage_1():
    assert [part.name for part in parts("pipeline", None, "aspects=[]")] == ["extract", "stage2", "evaluate"]


@pytest.mark.parametrize("aspect", ["none", "modules/aspect.pth"])
def test_with_given_aspect_modules_a_pipeline_has_no_stage_1(aspect):
    names = [part.name for part in parts("pipeline", None, f"checkpoint.aspect={aspect}")]
    assert names == ["extract", "stage2", "evaluate"]
    assert [part.name for part in parts("train", "stage1", f"checkpoint.aspect={aspect}")] == ["stage1"]


def test_without_a_cache_a_pipeline_has_no_extraction():
    assert [part.name for part in parts("pipeline", None, "cache.dir=null")] == ["stage1", "stage2", "evaluate"]
    with pytest.raises(InputError, match="cache.dir = null: this run has no cache"):
        parts("extract", None, "cache.dir=null")


def test_a_pipeline_annotates_where_aspects_are_listed():
    names = [part.name for part in parts("pipeline", None, "annotate.aspects=[scene]")]
    assert names == ["extract", "annotate", "stage1", "stage2", "evaluate"]
    for other in ("aspects=[]", "cache.dir=null", "checkpoint.aspect=none"):
        assert PartName.ANNOTATE not in [p.name for p in parts("pipeline", None, "annotate.aspects=[scene]", other)]
    (found,) = parts("annotate", None, "cluster.annotate.num_tasks=3", "cluster.annotate.max_parallel=2")
    assert ([job.task_index for job in found.jobs], found.max_parallel) == ([0, 1, 2], 2)


def test_a_sweep_has_a_task_per_group_of_its_members():
    axes = ["stage2.learning_rate=[1e-3,1e-2]", "aspects=[[scene],[scene,object]]", "seed=[1,2]"]
    asked, members = asked_members(str(CONFIG), axes, None, None, False)
    sweep = open_sweep(str(CONFIG), asked, members)
    cluster = load_cluster(SLURM, ["train.nodes=2", "train.tasks_per_node=3", "train.max_parallel=5"])
    extract, aspects, groups, choose = make_parts("sweep", None, sweep.base, cluster, CONFIG, sweep)
    assert [part.name for part in (extract, aspects, groups, choose)] == ["extract", "aspects", "groups", "choose"]
    assert [len(part.jobs) for part in (aspects, groups, choose)] == [2, 2, 1]
    assert (groups.num_ranks, groups.max_parallel, choose.num_ranks) == (6, 5, 1)
    assert choose.result == sweep.directory / "sweep.json"
    # a job makes the configurations that `masp sweep` would make
    for job, group in zip(groups.jobs, sweep.groups, strict=True):
        assert job.configs() == [member.config for member in group]
    for job, training in zip(aspects.jobs, sweep.aspects, strict=True):
        assert job._own(sweep.base) == training.config


def test_what_was_drawn_from_logarithmic_ranges_is_kept_for_the_figures(tmp_path):
    asked, members = asked_members(
        str(CONFIG), ["stage2.learning_rate=log(1e-3,2e-3)", "stage2.weight_decay=uniform(0,1)"], None, 2, False
    )
    sweep = open_sweep(str(CONFIG), asked, members)
    assert sweep.log_keys == ("stage2.learning_rate",)
    write_runs(tmp_path, sweep)
    assert read_runs("sweep", tmp_path, CONFIG).log_keys == sweep.log_keys


def test_a_study_has_a_task_per_group_of_its_runs(tmp_path):
    given = [f"output_dir={tmp_path / 'out'}", "dataset.root=nowhere"]
    study = open_study(load_config(CONFIG, given), "1,2", "without_soft_prompt,soft_prompt_4,queries_1,layout_released")
    path = tmp_path / "config.yaml"
    save_config(study.base, path)
    cluster = load_cluster(SLURM, ["evaluate.num_tasks=3"])
    extract, aspects, groups, table = make_parts("study", None, study.base, cluster, path, study)
    assert [part.name for part in (extract, aspects, groups, table)] == ["extract", "aspects", "groups", "table"]
    assert [len(part.jobs) for part in (aspects, groups, table)] == [4, 6, 1]
    assert table.result == tmp_path / "out" / "study" / "study.json"
    # a job makes the configurations that `masp study` would make
    runs = {run.name: run.config for run in study.runs}
    named = [[modules_named(runs[f"seed-{seed}/{name}"]) for name in names] for seed in (1, 2) for names in (
        ("masp", "soft_prompt_4"), ("queries_1",), ("layout_released",))]  # fmt: skip
    assert [job.configs() for job in groups.jobs] == named
    assert [job._own(study.base) for job in aspects.jobs] == [
        runs[f"seed-{seed}/{name}"] for seed in (1, 2) for name in ("masp", "queries_1")
    ]
    write_runs(tmp_path, study)
    again = read_runs("study", tmp_path, path)
    assert again == study and make_parts("study", None, again.base, cluster, path, again)[2] == groups
    (tmp_path / "study.json").unlink()
    with pytest.raises(InputError, match=r"study.json cannot be read: No such file"):
        read_runs("study", tmp_path, path)


def test_training_needs_a_stage():
    with pytest.raises(InputError, match="train needs --stage stage1 or --stage stage2"):
        parts("train")


def test_what_a_part_asks_for():
    settings = ["cluster.train.nodes=2", "cluster.train.tasks_per_node=3", "cluster.extract.max_parallel=5"]
    settings += ["cluster.extract.num_tasks=7", "cluster.evaluate.num_tasks=2", "cluster.evaluate.nodes=4"]
    extract, stage1, _, evaluate = parts("pipeline", None, *settings)
    assert (extract.num_nodes, extract.num_ranks, extract.max_parallel, len(extract.jobs)) == (1, 1, 5, 7)
    assert [job.task_index for job in extract.jobs] == list(range(7))
    assert (stage1.num_nodes, stage1.tasks_per_node, stage1.num_ranks, stage1.max_parallel) == (2, 3, 6, 256)
    assert (evaluate.num_nodes, evaluate.max_parallel, len(evaluate.jobs)) == (4, 256, 2)
    sections = ["extract", "annotate", "train", "train", "evaluate", "train", "train", "evaluate", "evaluate"]
    assert [name.section for name in PartName] == sections


def test_results_are_where_the_commands_leave_them():
    found = parts("pipeline", None, "output_dir=out", "cache.dir=cache", cluster=LOCAL)
    assert [str(part.result) for part in found] == ["cache", "out/stage1", "out/stage2", "out/evaluate/metrics.json"]


def test_a_process_starts_behind_our_own_entry_point():
    assert task_command(Path("/a b")).endswith(" -u -m launch.job.task '/a b'")
