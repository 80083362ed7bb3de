"""`python -m launch` without Slurm: the pipeline in the background, and what a failure says."""

import json
import shutil
import time
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from masp.annotation.job import annotate
from masp.cache.annotations.manifest import read_stored
from masp.cli.main import main
from tests.annotated import copy_cache, files_of, make_annotated
from tests.dataset_forms import read_items, write_form
from tests.launching import call_launch
from tests.runs import REPOSITORY, make_run

LOCAL = REPOSITORY / "configs" / "cluster" / "local.yaml"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("local"))


def launch(command: str, config: Path, *arguments: str) -> CompletedProcess:
    return call_launch(command, "--cluster", LOCAL, "--config", config, *arguments)


@pytest.mark.full
def test_pipeline_with_two_tasks_and_two_ranks(config):
    # Without aspects there is no stage 1, which would show nothing here that stage 2 does not.
    settings = ["aspects=[]", "cluster.extract.num_tasks=2", "cluster.train.tasks_per_node=2"]
    done = launch("pipeline", config, *settings, "--wait")
    run = config.parent / "run"
    (folder,) = (run / "launch").glob("*/")
    logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("jobs/*.out")))
    assert done.returncode == 0, f"{done.stderr}\n{logs}"
    assert done.stdout.splitlines()[-1] == f"launch: logs in {folder / 'jobs'}; result: {run / 'evaluate/metrics.json'}"
    record = json.loads((folder / "submission.json").read_text())
    ranks = [(part["name"], part["num_jobs"], part["num_ranks"]) for part in record["parts"]]
    assert ranks == [("extract", 2, 1), ("stage2", 1, 2), ("evaluate", 1, 1)]
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert json.loads((run / "evaluate" / "metrics.json").read_text())["num_samples"] == 6

    told = call_launch("status", run)
    assert (told.returncode, told.stderr) == (0, "")
    assert [line.split()[:2] for line in told.stdout.splitlines()] == [
        ["finished:", str(folder)],
        ["part", "state"],
        ["extract", "finished"],
        ["stage2", "finished"],
        ["evaluate", "finished"],
    ]
    assert "4 of 4 shards" in told.stdout and "6 of 6 samples" in told.stdout
    assert "rank 1" not in call_launch("logs", run, "--part", "stage2", "--rank", 0).stdout
    assert call_launch("logs", run, "--part", "stage2", "--rank", 2).returncode == 2
    again = call_launch("resume", run)
    assert (again.returncode, again.stdout.partition(":")[0]) == (0, "nothing to resume"), again.stderr
    assert call_launch("cancel", run).returncode == 2


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_a_sweep_trains_a_group_per_task(config):
    output = config.parent / "sweep"
    axes = ["stage2.learning_rate=[0.01,0.05]", "aspects=[[scene],[object]]", "stage2.validate_every=2"]
    given = [*axes, "stage2.validation_size=4", f"output_dir={output}", "cluster.train.tasks_per_node=2"]
    assert "--halving: a rung waits" in launch("sweep", config, *given, "--halving").stderr
    done = launch("sweep", config, *given, "--wait", "--test", "none")
    (folder,) = (output / "launch").glob("*/")
    logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("jobs/*.out")))
    assert done.returncode == 0, f"{done.stderr}\n{logs}"
    assert "sweep: 4 members in groups of 2 + 2" in done.stdout
    assert "tasks: 5: 2 of stage 1, 2 of stage 2, 1 that chooses" in done.stdout
    record = json.loads((folder / "submission.json").read_text())
    ranks = [(part["name"], part["num_jobs"], part["num_ranks"]) for part in record["parts"]]
    assert ranks == [("extract", 1, 1), ("aspects", 2, 2), ("groups", 2, 2), ("choose", 1, 1)]
    table = json.loads((output / "sweep" / "sweep.json").read_text())
    assert len(table["members"]) == 4 and not any(member["failure"] for member in table["members"])
    losses = {member["name"]: member["held_out_loss"] for member in table["members"]}
    assert table["best"] == min(losses, key=losses.get)
    told = call_launch("status", output)
    assert "2 of 2 trainings of aspect modules" in told.stdout and "4 of 4 members" in told.stdout
    # what is trained is taken up by `masp sweep`, which finds nothing to do
    before = {path: path.read_bytes() for path in (output / "sweep").glob("*/stage2/*.safetensors")}
    assert main(["sweep", "--config", str(config), *given[:-1], "--test", "none"]) == 0
    assert before == {path: path.read_bytes() for path in (output / "sweep").glob("*/stage2/*.safetensors")}
    (output / "sweep" / "sweep.json").unlink()
    resumed = call_launch("resume", output, "--wait")
    assert resumed.returncode == 0 and "finished already: extract, aspects, groups" in resumed.stdout, resumed.stderr
    assert json.loads((output / "sweep" / "sweep.json").read_text()) == table


@pytest.mark.full
def test_a_study_trains_a_group_per_task(config):
    output = config.parent / "of-study"
    given = ["aspects=[scene]", "stage1.num_epochs=1", "stage2.num_epochs=1", f"output_dir={output}"]
    chosen = ["--seeds", "1,2", "--only", "zero_shot,without_soft_prompt,soft_prompt_2"]
    done = launch("study", config, *given, *chosen, "--wait")
    (folder,) = (output / "launch").glob("*/")
    logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("jobs/*.out")))
    assert done.returncode == 0, f"{done.stderr}\n{logs}"
    assert "tasks: 5: 2 of stage 1, 2 of stage 2, 1 that writes the table" in done.stdout
    record = json.loads((folder / "submission.json").read_text())
    assert [(part["name"], part["num_jobs"]) for part in record["parts"]] == [
        ("extract", 1), ("aspects", 2), ("groups", 2), ("table", 1)
    ]  # fmt: skip
    table = json.loads((output / "study" / "study.json").read_text())
    assert {name: list(row["accuracies"]) for name, row in table["variants"].items()} == {
        "masp": ["1", "2"], "zero_shot": ["1"], "without_soft_prompt": ["1", "2"], "soft_prompt_2": ["1", "2"]
    }  # fmt: skip
    told = call_launch("status", output)
    assert "2 of 2 trainings of aspect modules" in told.stdout and "4 of 4 members" in told.stdout
    # `masp study` finds nothing to do
    before = {path: path.read_bytes() for path in (output / "study").rglob("*.safetensors")}
    assert main(["study", "--config", str(config), *given, *chosen]) == 0
    assert before == {path: path.read_bytes() for path in (output / "study").rglob("*.safetensors")}
    (output / "study" / "study.json").unlink()
    resumed = call_launch("resume", output, "--wait")
    assert resumed.returncode == 0 and "finished already: extract, aspects, groups" in resumed.stdout, resumed.stderr
    assert json.loads((output / "study" / "study.json").read_text()) == table


@pytest.mark.full
def test_two_tasks_annotate(tmp_path):
    """Each does its shards; the answers are those of one process."""
    config = make_annotated(tmp_path, "annotate.aspects=[weather,light]")
    done = launch("annotate", tmp_path / "config.yaml", "cluster.annotate.num_tasks=2", "--wait")
    folder = next((tmp_path / "run" / "launch").glob("*/"))
    logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("jobs/*.out")))
    assert done.returncode == 0, f"{done.stderr}\n{logs}"
    record = json.loads((folder / "submission.json").read_text())
    assert [(part["name"], part["num_jobs"]) for part in record["parts"]] == [("annotate", 2)]
    alone = copy_cache(config, tmp_path / "alone")
    annotate(alone)
    assert files_of(config) == files_of(alone) and "weather.parquet" in files_of(alone)
    assert "10 shards of aspects" in call_launch("status", tmp_path / "run").stdout


@pytest.mark.full
def test_a_pipeline_annotates_a_dataset_that_nobody_annotated(config, tmp_path):
    images, run = tmp_path / "pictures", tmp_path / "run"
    shutil.copytree(config.parent / "pictures", images, ignore=shutil.ignore_patterns("annotation"))
    aspects = ["aspects=[scene,brightness]", "aspect_definitions=configs/aspects-demo.yaml"]
    settings = [*aspects, f"dataset.root={images}", f"cache.dir={tmp_path / 'cache'}", f"output_dir={run}"]
    settings += ["annotate.device=cpu", "annotate.num_threads=1", "annotate.num_workers=0"]
    refused = launch("pipeline", config, *settings)
    assert refused.returncode == 2 and "no training image is annotated with any of" in refused.stderr

    settings += ["annotate.aspects=[scene,brightness]", "cluster.annotate.num_tasks=2"]
    done = launch("pipeline", config, *settings, "--wait")
    logs = "\n".join(path.read_text()[-2000:] for path in sorted((run / "launch").glob("*/jobs/*.out")))
    assert done.returncode == 0, f"{done.stderr}\n{logs}"
    told = call_launch("status", run)
    parts = [line.split()[:2] for line in told.stdout.splitlines()[2:]]
    assert parts == [[name, "finished"] for name in ("extract", "annotate", "stage1", "stage2", "evaluate")]
    stored = read_stored(tmp_path / "cache")
    metrics = json.loads((run / "evaluate" / "metrics.json").read_text())
    answers = metrics["lineage"]["aspect"]["answers"]
    assert metrics["coverage"] == 1 and answers.keys() == {"scene", "brightness"}
    assert all(each["people"] == 0 and each["file"] == stored[name].sha256 for name, each in answers.items())
    assert answers["scene"]["vlm"] > 0 and answers["brightness"]["pixels"] + answers["brightness"]["vlm"] == 18
    assert main(["report", str(run)]) == 0
    assert stored["scene"].sha256 in (run / "report.html").read_text()


@pytest.mark.full
@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_pipeline_of_a_dataset_of_rows(config, tmp_path, form):
    made = write_form(form, tmp_path / "data", read_items(config.parent / "pictures", 18))
    settings = [f"dataset.{setting}" for setting in made.settings]
    settings += [f"output_dir={tmp_path / 'run'}", f"cache.dir={tmp_path / 'cache'}", "aspects=[]"]
    done = launch("pipeline", config, *settings, "cluster.extract.num_tasks=2", "--wait")
    logs = "\n".join(path.read_text()[-2000:] for path in sorted((tmp_path / "run").glob("launch/*/jobs/*.out")))
    assert done.returncode == 0, f"{done.stderr}\n{logs}"
    metrics = json.loads((tmp_path / "run/evaluate/metrics.json").read_text())
    assert metrics["num_samples"] == 6 and metrics["coverage"] == 1.0
    told = call_launch("status", tmp_path / "run")
    assert told.returncode == 0 and "4 of 4 shards" in told.stdout and "6 of 6 samples" in told.stdout


@pytest.mark.full
def test_a_failed_part_stops_the_chain_and_is_told(config, tmp_path):
    # What headers do not show: the preflight lets it pass, the job finds it.
    pictures = tmp_path / "pictures"
    shutil.copytree(config.parent / "pictures", pictures)
    broken = next(iter(sorted(pictures.glob("train/*/*.png"))))
    broken.write_bytes(broken.read_bytes()[:900])
    settings = [f"output_dir={tmp_path}", f"cache.dir={tmp_path / 'cache'}", f"dataset.root={pictures}"]
    done = launch("pipeline", config, *settings, "extract.max_bad_fraction=0", "--wait")
    assert done.returncode == 1
    (folder,) = (tmp_path / "launch").glob("*/")
    message = json.loads((folder / "status.json").read_text())["message"]
    assert message.startswith("extract: ") and "max_bad_fraction" in message
    assert done.stderr == f"error: extract: failed: {message.removeprefix('extract: ')}\n"
    told = call_launch("status", tmp_path)
    assert told.returncode == 1 and told.stderr == done.stderr
    assert not (tmp_path / "stage1").exists()


def until(condition, timeout_s: float = 120):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)
    return found


@pytest.mark.full
def test_cancelled_it_stays_so_until_it_is_resumed(config, tmp_path):
    # One task after the other: the second has hardly begun when the first has left its shards.
    run, cache = tmp_path / "run", tmp_path / "cache"
    settings = ["cluster.extract.num_tasks=2", "cluster.extract.max_parallel=1"]
    settings += [f"output_dir={run}", f"cache.dir={cache}"]
    done = launch("extract", config, *settings)
    assert done.returncode == 0, done.stderr
    shards = cache / "shards"
    until(lambda: list(shards.glob("*.json")))
    twice = launch("extract", config, *settings)
    assert twice.returncode == 2 and "extract is queued or running already" in twice.stderr
    cancelled = call_launch("cancel", run)
    assert cancelled.returncode == 0, cancelled.stderr
    told = call_launch("status", run)
    assert told.returncode == 1 and told.stdout.startswith("stopped: "), told.stdout
    assert "extract: stopped: stopped on request" in told.stderr
    assert not (cache / "manifest.json").exists()
    before = {path: path.stat().st_mtime_ns for path in shards.glob("*.tar")}
    resumed = call_launch("resume", run, "--wait")
    assert resumed.returncode == 0, resumed.stderr
    assert (cache / "manifest.json").exists()
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert len(list((run / "launch").glob("*/"))) == 2
