"""A task of an array that is stopped starts again alone, whichever it is, and the array's result is what it would be.

The last task of an array carries the id of the array as its own `SLURM_JOB_ID`.
"""

import time
from pathlib import Path

import pytest

from masp.config import load_config
from masp.evaluation.run import evaluate
from masp.extraction.job import extract
from masp.results.ledger import read_records
from tests.runs import assert_same, make_run, numbers
from tests.slurm.site import Site, logs, until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

NUM_TASKS = 3
SETTINGS = ["cache.num_shards=12", "extract.batch_tokens=16", "evaluate.batch_size=1"]
LARGE = ["vlm.min_pixels=602112", "vlm.max_pixels=602112", "evaluate.source=live"]
"""Slurm checks time limits every 30 s; with so many tokens per image, a task takes longer than that."""
UNTRAINED = ["checkpoint.aspect=none", "checkpoint.soft_prompt=none"]
CLUSTER = [
    f"cluster.extract.num_tasks={NUM_TASKS}",
    f"cluster.evaluate.num_tasks={NUM_TASKS}",
    "cluster.evaluate.nodes=1",
    "cluster.train.nodes=1",
    "cluster.extract.memory_gb=1",  # otherwise each takes all of a node, and the last waits
    "cluster.evaluate.memory_gb=1",
]
FIRST, MIDDLE, LAST = range(NUM_TASKS)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("arrays"), num_train=60, num_test=900)


@pytest.fixture(scope="module")
def undisturbed(config) -> Path:
    """Directory of a cache and an evaluation that one process made."""
    return made(config, config.parent / "undisturbed")


@pytest.fixture(scope="module")
def undisturbed_large(config) -> Path:
    """The same with more tokens per image, which evaluation encodes too."""
    return made(config, config.parent / "large", *LARGE)


@pytest.fixture
def few_images(tmp_path) -> Path:
    """A run that is soon through."""
    return make_run(tmp_path / "few", num_train=60, num_test=40)


def made(config: Path, directory: Path, *more: str) -> Path:
    settings = load_config(config, [*outputs(directory), *more])
    extract(settings)
    evaluate(settings)
    return directory


def outputs(directory: Path) -> list[str]:
    return [f"output_dir={directory / 'run'}", f"cache.dir={directory / 'cache'}", *SETTINGS, *UNTRAINED]


def assert_same_cache(found: Path, expected: Path) -> None:
    names = sorted(path.name for path in (expected / "cache" / "shards").glob("*.tar"))
    assert len(names) == 12
    for name in names:
        own, other = (directory / "cache" / "shards" / name for directory in (found, expected))
        assert own.read_bytes() == other.read_bytes(), name


def assert_same_evaluation(found: Path, expected: Path) -> None:
    own, other = (numbers(directory / "run" / "evaluate" / "metrics.json") for directory in (found, expected))
    assert_same(own, other)
    own, other = (
        sorted((record.sample_key, record.prediction) for record in read_records(directory / "run/evaluate/ledger"))
        for directory in (found, expected)
    )
    assert own == other and len(own) == 900


def stop(site: Site, task: str) -> None:
    """Tell a task to stop, as Slurm does ahead of a time limit."""
    site.ask("scancel", "--signal=USR2", task)


def reach_limit(site: Site, task: str) -> None:
    """Give a task a time limit that it reaches; the signal comes `signal_delay_s` ahead of it."""
    site.ask("scontrol", "update", f"jobid={task}", "TimeLimit=1")


def disturb(site: Site, directory: Path, job: str, tasks: list[int], how, apart_s: float = 0) -> None:
    """Stop some tasks of an array while all of them run, and wait until the array has finished.

    Only those tasks may start again.
    """
    names = [f"{job}_{task}" for task in range(NUM_TASKS)]

    def told() -> str:
        return f"{site.tasks(job)}\n{logs(directory)}"

    until(lambda: [state for state, _ in site.tasks(job).values()] == ["RUNNING"] * NUM_TASKS, what=told)
    assert list(site.tasks(job)) == names
    own_ids = dict(line.split("|") for line in site.ask("squeue", "-h", "--array", "--format=%i|%A").split())
    assert own_ids[names[LAST]] == job, "the last task has the id of the array"
    # from then on a signal is held back until the job can handle it
    until(lambda: logs(directory).count("Starting with JobEnvironment") == NUM_TASKS, what=told)
    for number, task in enumerate(tasks):
        if number:
            time.sleep(apart_s)
        how(site, names[task])
        if how is reach_limit:
            until(lambda name=names[task]: site.tasks(job)[name][1] > 0, what=told)
            site.ask("scontrol", "update", f"jobid={names[task]}", "TimeLimit=60")
    with site.without_requeue_delay():
        until(lambda: {state for state, _ in site.tasks(job).values()} <= {"COMPLETED", "FAILED"}, what=told)
    assert {state for state, _ in site.tasks(job).values()} == {"COMPLETED"}, told()
    restarts = [count for _, count in site.tasks(job).values()]
    # one that started again had the same limit for a moment, and may have reached it a second time
    assert [min(count, 1) for count in restarts] == [int(task in tasks) for task in range(NUM_TASKS)], told()
    assert how is reach_limit or max(restarts) == 1, told()
    for task in tasks:
        log = (directory / "jobs" / f"{names[task]}_0_log.out").read_text()
        assert f"job {names[task]} is queued again" in log


@pytest.mark.full
def test_the_last_task_of_an_extraction_starts_again_alone_and_the_chain_goes_on(site, few_images, tmp_path):
    settings = [*outputs(tmp_path), "aspects=[]", "stage2.num_epochs=1", "evaluate.batch_size=4"]
    settings = [setting for setting in settings if setting not in UNTRAINED]
    directory, jobs = site.submitted("pipeline", "--config", few_images, *settings, *CLUSTER)
    disturb(site, directory, jobs["extract"], [LAST], stop)
    until(lambda: site.state(jobs["stage2"])[0] == "COMPLETED", what=lambda: logs(directory))
    until(lambda: all(s == "COMPLETED" for s, _ in site.tasks(jobs["evaluate"]).values()), what=lambda: logs(directory))
    extract(load_config(few_images, outputs(tmp_path / "undisturbed")))
    assert_same_cache(tmp_path, tmp_path / "undisturbed")
    status = site.call("status", tmp_path / "run")
    assert status.returncode == 0 and status.stdout.count(" finished ") == 3, status.stdout


DISTURBANCES = [
    pytest.param([FIRST], stop, 0, id="first"),
    pytest.param([MIDDLE], stop, 0, id="middle"),
    pytest.param([LAST], stop, 0, id="last"),
    pytest.param([LAST, FIRST], stop, 1, id="last, then first"),
    pytest.param([MIDDLE, LAST], stop, 1, id="middle, then last"),
    pytest.param([FIRST, MIDDLE, LAST], stop, 0, id="all at once"),
    pytest.param([LAST], reach_limit, 0, id="time limit of the last"),
]


@pytest.mark.full
@pytest.mark.parametrize(("tasks", "how", "apart_s"), DISTURBANCES)
@pytest.mark.parametrize("part", ["extract", "evaluate"])
def test_only_the_tasks_that_are_stopped_start_again(part, tasks, how, apart_s, site, config, request, tmp_path):
    undisturbed = request.getfixturevalue("undisturbed_large" if how is reach_limit else "undisturbed")
    settings, delay = outputs(tmp_path), []
    if part == "evaluate":
        settings = [f"output_dir={tmp_path / 'run'}", f"cache.dir={undisturbed / 'cache'}", *SETTINGS, *UNTRAINED]
    if how is reach_limit:
        settings, delay = [*settings, *LARGE], ["cluster.signal_delay_s=55"]
    directory, jobs = site.submitted(part, "--config", config, *settings, *CLUSTER, *delay)
    disturb(site, directory, jobs[part], tasks, how, apart_s)
    if part == "extract":
        assert_same_cache(tmp_path, undisturbed)
    else:
        assert_same_evaluation(tmp_path, undisturbed)
