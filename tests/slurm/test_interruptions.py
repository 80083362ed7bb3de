"""However often the jobs of a pipeline are interrupted, its results are bitwise equal to an uninterrupted run."""

import json
import time
from pathlib import Path

import pytest

from tests.runs import assert_same, make_run, numbers
from tests.slurm.site import Site, logs, steps, tensors, until

pytestmark = [pytest.mark.slurm, pytest.mark.full, pytest.mark.timeout(1800)]

# Enough work in every part to be interrupted partway.
SETTINGS = [
    "cache.num_shards=16",
    "extract.batch_tokens=16",
    "stage1.num_epochs=6",
    "stage2.num_epochs=6",
    "stage1.checkpoint_every=10000",
    "stage2.checkpoint_every=10000",
    "stage1.log_every=1",
    "stage2.log_every=1",
    "evaluate.batch_size=1",
]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("interruptions"), num_train=120, num_test=240)


@pytest.fixture(scope="module")
def uninterrupted(cluster, config) -> Path:
    """Directory of an uninterrupted pipeline over two nodes."""
    directory = config.parent / "uninterrupted"
    directory.mkdir()
    done = Site(cluster, directory).launch("pipeline", "--config", config, *outputs(directory), "--wait")
    assert done.returncode == 0, f"{done.stderr}\n{logs(directory)}"
    return directory


def outputs(directory: Path) -> list[str]:
    return [f"output_dir={directory / 'run'}", f"cache.dir={directory / 'cache'}", *SETTINGS]


def assert_bitwise_equal(found: Path, expected: Path, parts=("cache", "stage1", "stage2", "evaluate")) -> None:
    """Assert that the results of two runs are bitwise equal."""
    import torch

    if "cache" in parts:
        names = sorted(path.name for path in (expected / "cache" / "shards").glob("*.tar"))
        assert len(names) == 16
        for name in names:
            own, other = (directory / "cache" / "shards" / name for directory in (found, expected))
            assert own.read_bytes() == other.read_bytes(), name
    for stage in [part for part in parts if part.startswith("stage")]:
        (path,) = (expected / "run" / stage).glob("*.safetensors")
        own, other = tensors(found / "run" / stage / path.name), tensors(path)
        assert own.keys() == other.keys()
        for name, value in other.items():
            assert torch.equal(own[name], value), (stage, name)
    if "evaluate" in parts:
        own, other = (numbers(directory / "run" / "evaluate" / "metrics.json") for directory in (found, expected))
        assert_same(own, other)


def shards(directory: Path) -> int:
    return len(list((directory / "cache" / "shards").glob("*.json")))


def scored(directory: Path) -> int:
    paths = (directory / "run" / "evaluate" / "ledger").glob("rank-*.jsonl")
    return sum(path.read_bytes().count(b"\n") for path in paths)


AMOUNTS = {
    "extract": shards,
    "stage1": lambda directory: len(steps(directory / "run", "stage1")),
    "stage2": lambda directory: len(steps(directory / "run", "stage2")),
    "evaluate": scored,
}
"""Functions that measure the progress of a part."""


def test_preemption_in_the_middle_of_every_part(site, config, uninterrupted, tmp_path):
    directory, jobs = site.submitted("pipeline", "--config", config, *outputs(tmp_path))

    def ended(job: str) -> bool:
        return site.state(job)[0] == "COMPLETED"

    with site.without_requeue_delay():
        for name, amount in AMOUNTS.items():
            job = jobs[name]
            for number, preempt in enumerate((["scancel", "--signal=USR2"], ["scontrol", "requeue"])):
                before = amount(tmp_path)
                until(lambda: amount(tmp_path) > before + 1 or ended(job), what=f"{name}: {logs(directory)}")  # noqa: B023
                if ended(job):
                    assert number, f"{name} finished before it could be interrupted"
                    break
                restarts = site.state(job)[1]
                # of an array, the tasks that are running now; one of them may finish before the signal arrives
                running = site.ask(
                    "squeue", "-h", "--array", "--states=RUNNING", f"--jobs={job}", "--format=%i"
                ).split()
                for task in running:
                    site.ask(*preempt, task, check=False)
                until(lambda: site.state(job)[1] > restarts or ended(job), what=f"{name}: {logs(directory)}")  # noqa: B023
            until(lambda: ended(job), what=f"{name}: {logs(directory)}")  # noqa: B023
            assert site.state(job)[1] >= 1, name
    assert_bitwise_equal(tmp_path, uninterrupted)
    status = site.call("status", tmp_path / "run")
    assert status.returncode == 0 and "restarts" in status.stdout, status.stdout


LONG = [*SETTINGS, "stage1.num_epochs=100"]
"""Runs longer than Slurm needs to notice that a node is lost."""


@pytest.fixture(scope="module")
def long_uninterrupted(cluster, config, uninterrupted) -> Path:
    """Directory of a longer, uninterrupted stage 1 over two nodes."""
    directory = config.parent / "long"
    directory.mkdir()
    outputs = [f"output_dir={directory / 'run'}", f"cache.dir={uninterrupted / 'cache'}", *LONG]
    done = Site(cluster, directory).launch("train", "--stage", "stage1", "--config", config, *outputs, "--wait")
    assert done.returncode == 0, f"{done.stderr}\n{logs(directory)}"
    return directory


@pytest.mark.parametrize("failure", ["slurmd killed", "node cut off", "rank killed"])
def test_a_node_is_lost_during_training(failure, hosts, config, uninterrupted, long_uninterrupted, tmp_path):
    """The job starts on two of three nodes, loses the second, and continues with the third."""
    site = Site(hosts, tmp_path)
    until(hosts.all_idle, what="the nodes did not become idle")
    cache = uninterrupted / "cache"
    settings = [f"output_dir={tmp_path / 'run'}", f"cache.dir={cache}", *LONG, "stage1.checkpoint_every=50"]
    started = time.monotonic()
    directory, jobs = site.submitted("train", "--stage", "stage1", "--config", config, *settings)
    job, run = jobs["stage1"], tmp_path / "run"

    def told() -> str:
        return site.ask("scontrol", "show", "job", job) + logs(directory)

    until(lambda: len(steps(run)) > 60, what=told)
    assert site.state(job) == ("RUNNING", 0)
    lost = hosts.nodes[1]
    assert hosts.ranks(lost)
    with site.without_requeue_delay():
        try:
            if failure == "slurmd killed":
                hosts.kill_slurmd(lost)
            elif failure == "node cut off":
                hosts.network.cut(lost)
            else:
                hosts.kill_ranks(lost)
            # Slurm's own timeout (SlurmdTimeout) is 20 s here; that of a collective is half an hour.
            until(lambda: site.state(job)[1] == 1, 120, what=told)
            restarted_s = time.monotonic() - started
            until(lambda: site.state(job)[0] == "COMPLETED", what=told)
        finally:
            if failure == "slurmd killed":
                hosts.start_slurmd(lost)
            elif failure == "node cut off":
                hosts.network.mend(lost)
    num_steps = json.loads((run / "stage1" / "status.json").read_text())["num_steps"]
    log = (directory / "jobs" / f"{job}_0_log.out").read_text()
    assert f"of {num_steps}" in log.partition("resuming after step")[2]
    print(f"{failure}: requeued {restarted_s:.0f} s after submission")
    assert_bitwise_equal(tmp_path, long_uninterrupted, ["stage1"])
    status = json.loads((run / "stage1" / "status.json").read_text())
    assert status["state"] == "finished"
    until(lambda: not hosts.ranks(lost), 120, "a rank on the lost node hangs")
