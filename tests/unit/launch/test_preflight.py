"""What is refused before anything is queued, and what is kept of every submission. Slurm's commands are replaced by
ones that say what the real ones said; tests/slurm asks the real ones."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch.cli import main
from launch.job.config import load_cluster
from launch.job.parts import make_parts
from launch.preflight import check_writable, limit_minutes, preflight
from launch.submission.snapshot import snapshot
from launch.time_limits import check_time, expected_hours
from masp.config import load_config
from masp.errors import InputError
from tests.runs import REPOSITORY, make_run

LOCAL = REPOSITORY / "configs" / "cluster" / "local.yaml"

FAKE_SBATCH = """#!/bin/sh
# Accepts every job before it is submitted; then the first, and refuses the second.
if [ "$1" = --test-only ]; then exit 0; fi
if [ -e "$0.once" ]; then echo "sbatch: error: Batch job submission failed: Invalid qos" >&2; exit 1; fi
touch "$0.once"; echo "Submitted batch job 41"
"""
COMMANDS = {
    "sbatch": FAKE_SBATCH,
    "srun": "#!/bin/sh\n",
    "squeue": "#!/bin/sh\n",
    "sacct": "#!/bin/sh\n",
    "sinfo": "#!/bin/sh\necho 'small|30:00'; echo 'main*|1-00:00:00'\n",
    "scontrol": "#!/bin/sh\necho 'Slurmctld(primary) at here is UP'\n",
    "scancel": '#!/bin/sh\necho "$@" >> $(dirname $0)/cancelled\n',
}


@pytest.fixture(scope="module")
def config_path(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("preflight"))


@pytest.fixture
def commands(tmp_path, monkeypatch) -> Path:
    """Slurm's commands, in this folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in COMMANDS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.fixture
def launch(config_path, tmp_path, capsys):
    """Calls the command line; returns exit code, output and errors."""

    def run(command, *arguments):
        cluster = tmp_path / "cluster.yaml"
        cluster.write_text("executor: slurm\ntrain: {nodes: 2}\n")
        outputs = [f"output_dir={tmp_path / 'run'}", f"cache.dir={tmp_path / 'cache'}"]
        code = main([command, "--cluster", str(cluster), "--config", str(config_path), *outputs, *map(str, arguments)])
        printed = capsys.readouterr()
        errors = [line for line in printed.err.splitlines() if not line.startswith("note: ")]
        return code, printed.out, "\n".join(errors)

    return run


def looked(config_path, command, *overrides, cluster=LOCAL):
    prefixed = [text.removeprefix("cluster.") for text in overrides if text.startswith("cluster.")]
    settings = load_cluster(cluster, prefixed)
    config = load_config(config_path, [text for text in overrides if not text.startswith("cluster.")])
    stage = "stage1" if command == "train" else None
    return preflight(make_parts(command, stage, config, settings, Path("config.yaml")), config, settings)


def test_what_is_queued_already_leaves_when_slurm_refuses_a_part(launch, commands, tmp_path):
    code, _, error = launch("pipeline")
    assert code == 2
    assert error == "error: cluster: Slurm refused stage1: Batch job submission failed: Invalid qos"
    assert (commands / "cancelled").read_text() == "41\n"
    assert not list(tmp_path.rglob("launch/*/"))


def test_a_job_that_slurm_does_not_take_back_is_named_and_known(launch, commands, tmp_path, monkeypatch):
    monkeypatch.setattr("launch.submission.slurm_scripts._POLL_S", 0)
    (commands / "scancel").write_text("#!/bin/sh\nexit 1\n")
    code, _, error = launch("pipeline")
    assert code == 2
    assert error.endswith("Invalid qos; and it did not take back jobs 41: run `scancel 41` when it answers")
    (path,) = tmp_path.rglob("launch/*/submission.json")
    assert [part["job_ids"] for part in json.loads(path.read_text())["parts"]] == [["41"], [], [], []]


@pytest.mark.parametrize(
    ("name", "text", "arguments", "expected"),
    [
        ("scontrol", "echo 'Slurmctld(primary) at x is DOWN'", (), "Slurm does not answer: Slurmctld(primary) at x is"),
        (
            "sbatch",
            "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1",
            ("cluster.partition=gpu",),
            "error: cluster: Slurm would refuse extract: invalid partition specified: gpu; nothing was submitted",
        ),
        ("squeue", "echo 'squeue: error: Socket timed out' >&2; exit 1", (), None),
        (
            "sinfo",
            COMMANDS["sinfo"],
            ("cluster.partition=small", "cluster.extract.timeout_min=31"),
            "error: cluster: extract.timeout_min = 31: partition small allows at most 30",
        ),
        (
            "sinfo",
            COMMANDS["sinfo"],
            ("cluster.train.timeout_min=1441",),
            "error: cluster: train.timeout_min = 1441: partition main allows at most 1440",
        ),
    ],
)
def test_what_slurm_would_refuse_is_one_line_and_leaves_nothing(
    name, text, arguments, expected, launch, commands, tmp_path
):
    (commands / name).write_text(f"#!/bin/sh\n{text}\n")
    if expected is None:
        expected = "error: cluster: squeue: Socket timed out"
        # There is something to ask about only if the run was submitted before.
        folder = tmp_path / "run" / "launch" / "1"
        folder.mkdir(parents=True)
        record = {"command": "extract", "stage": None, "executor": "slurm", "working_directory": "/", "host": "h"}
        part = {"name": "extract", "num_jobs": 1, "num_ranks": 1, "result": "x", "job_ids": ["7"]}
        (folder / "submission.json").write_text(json.dumps(record | {"time": 0, "parts": [part]}))
    code, _, error = launch("pipeline", *arguments)
    assert code == 2
    assert expected in error and error.count("\n") == 0
    assert [path.name for path in tmp_path.rglob("launch/*/")] in ([], ["1"])


@pytest.mark.parametrize(
    ("command", "overrides", "expected"),
    [
        ("extract", ["dataset.root=/none"], "dataset.root"),
        ("extract", ["vlm.path=/none"], "vlm.path"),
        ("extract", ["cache.dir=/proc/none"], "cache.dir: /proc/none cannot be written: /proc"),
        ("pipeline", ["questions=/none.yaml"], "questions: /none.yaml is no file"),
        ("train", ["cache.dir=/none"], "/none"),
        ("evaluate", ["cache.dir=/none"], "/none"),
        ("extract", ["extract.device=cuda"], "extract.device = 'cuda', but cluster.extract.gpus_per_task = 0"),
        (
            "evaluate",
            ["cluster.evaluate.gpus_per_task=1"],
            "engine.device = 'cpu', but cluster.evaluate.gpus_per_task = 1",
        ),
        (
            "extract",
            ["extract.device=auto", "cluster.extract.gpus_per_task=1"],
            "cluster.extract.tasks_per_node = 1 with a GPU each, but this machine has 0",
        ),
    ],
)
def test_what_would_not_run_is_named(command, overrides, expected, config_path, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    outputs = [f"output_dir={tmp_path / 'run'}", f"cache.dir={tmp_path / 'cache'}"]
    with pytest.raises(InputError) as error:
        looked(config_path, command, *outputs, *overrides)
    assert expected in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_cache_without_room_is_refused(config_path, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(InputError, match="DOES NOT FIT: needs 0.00 GB"):
        looked(config_path, "extract", f"cache.dir={tmp_path / 'cache'}")


def test_a_cache_of_other_settings_is_refused(config_path, tmp_path):
    from masp.extraction.job import agree, prepare

    config = load_config(config_path, [f"cache.dir={tmp_path / 'cache'}"])
    agree(prepare(config))
    outputs = [f"output_dir={tmp_path / 'run'}", f"cache.dir={tmp_path / 'cache'}"]
    assert looked(config_path, "pipeline", *outputs).plan.images.num_images == 18
    with pytest.raises(InputError, match="num_shards = 4, but here it is 3"):
        looked(config_path, "pipeline", *outputs, "cache.num_shards=3")
    with pytest.raises(InputError, match="max_pixels = 12544, but here it is 6272"):
        looked(config_path, "pipeline", *outputs, "vlm.max_pixels=6272")


def test_processes_without_work_are_told(config_path, tmp_path):
    overrides = ["cluster.extract.num_tasks=6", "cluster.train.tasks_per_node=5", f"cache.dir={tmp_path / 'cache'}"]
    notes = looked(config_path, "pipeline", *overrides).notes
    assert "num_tasks = 6: 2 of them have nothing to do" in notes[0]
    assert "stage1: 1 of 5 processes have nothing to do" in notes[1]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("infinite", None), ("1-00:00:00", 1440), ("30:00", 30), ("2:00:00", 120), ("7-12:30:00", 10830), ("n/a", None)],
)
def test_durations_of_slurm(text, minutes):
    assert limit_minutes(text) == minutes


def test_expected_time_is_compared_with_limit_and_restarts(config_path):
    config = load_config(config_path, ["output_dir=/none"])
    stages = {"stage1": SimpleNamespace(hours=100.0), "stage2": SimpleNamespace(hours=8.0)}
    plan = SimpleNamespace(extract=SimpleNamespace(hours=60.0), stages=stages)
    settings = ["train.gpus_per_task=1", "train.nodes=2", "train.tasks_per_node=2", "train.timeout_min=600"]
    settings += ["extract.gpus_per_task=1", "extract.num_tasks=4", "extract.timeout_min=900"]
    slurm = REPOSITORY / "configs" / "cluster" / "slurm.yaml"
    cluster = load_cluster(slurm, [*settings, "max_requeues=2"])
    parts = make_parts("pipeline", None, config, cluster, Path("config.yaml"))
    assert [expected_hours(part, config, plan) for part in parts] == [15.0, 25.0, 2.0, None]
    (note,) = check_time(parts, config, cluster, plan)
    assert note.startswith("stage1 is expected to take 25.0 h and will start again about 2 times")
    cluster = load_cluster(slurm, [*settings, "max_requeues=1"])
    with pytest.raises(InputError, match=r"stage1 is expected to take 25.0 h, which is more than 2 runs of 10.0 h"):
        check_time(parts, config, cluster, plan)


def test_on_cpus_nothing_is_expected_without_an_earlier_run(config_path, tmp_path):
    config = load_config(config_path, [f"output_dir={tmp_path}"])
    parts = make_parts("train", "stage1", config, load_cluster(LOCAL), Path("config.yaml"))
    stage = SimpleNamespace(hours=1.0, tokens_per_image=100.0, num_images=3600, num_epochs=2)
    plan = SimpleNamespace(stages={"stage1": stage})
    assert expected_hours(parts[0], config, plan) is None
    (tmp_path / "stage1").mkdir()
    line = json.dumps({"step": 1, "samples_per_second": 1.0, "tokens_per_second": 50.0})
    (tmp_path / "stage1" / "metrics.jsonl").write_text(f"{line}\n{line}\n")
    assert expected_hours(parts[0], config, plan) == pytest.approx(4.0)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=f"output_dir: {path} cannot be written: {tmp_path}/file: is no folder"):
            check_writable("output_dir", str(path))
    check_writable("output_dir", str(tmp_path / "a" / "b"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_snapshot_says_what_ran_and_no_secrets(monkeypatch):
    monkeypatch.setenv("MASP_SECRET_TOKEN", "hidden")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    value, diff = snapshot()
    text = json.dumps(value)
    assert value["packages"]["submitit"] and value["variables"]["NCCL_DEBUG"] == "INFO"
    assert "hidden" not in text and "MASP_SECRET_TOKEN" not in text
    if (REPOSITORY / ".git").exists() and os.access(shutil.which("git") or "", os.X_OK):
        assert len(value["code"]["commit"]) == 40
        assert value["code"]["dirty"] == bool(value["code"]["changed"])
        assert value["code"]["dirty"] or not diff
