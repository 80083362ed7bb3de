"""Whatever happens to the jobs of a pipeline, its result is that of a run that nothing disturbed, to the last bit."""

import json
import time
from pathlib import Path

import pytest

from tests.runs import assert_same, make_run, numbers
from tests.slurm.site import Site, logs, steps, tensors, until

pytestmark = [pytest.mark.slurm, pytest.mark.full, pytest.mark.timeout(1800)]

# Enough work in every part to be in the middle of it.
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
def undisturbed(cluster, config) -> Path:
    """The folder of a pipeline over two nodes that nothing disturbed."""
    folder = config.parent / "undisturbed"
    folder.mkdir()
    done = Site(cluster, folder).launch("pipeline", "--config", config, *outputs(folder), "--wait")
    assert done.returncode == 0, f"{done.stderr}\n{logs(folder)}"
    return folder


def outputs(folder: Path) -> list[str]:
    return [f"output_dir={folder / 'run'}", f"cache.dir={folder / 'cache'}", *SETTINGS]


def assert_bitwise_equal(found: Path, expected: Path, parts=("cache", "stage1", "stage2", "evaluate")) -> None:
    """The results of two runs are the same."""
    import torch

    if "cache" in parts:
        names = sorted(path.name for path in (expected / "cache" / "shards").glob("*.tar"))
        assert len(names) == 16
        for name in names:
            own, other = (folder / "cache" / "shards" / name for folder in (found, expected))
            assert own.read_bytes() == other.read_bytes(), name
    for stage in [part for part in parts if part.startswith("stage")]:
        (path,) = (expected / "run" / stage).glob("*.safetensors")
        own, other = tensors(found / "run" / stage / path.name), tensors(path)
        assert own.keys() == other.keys()
        for name, value in other.items():
            assert torch.equal(own[name], value), (stage, name)
    if "evaluate" in parts:
        own, other = (numbers(folder / "run" / "evaluate" / "metrics.json") for folder in (found, expected))
        assert_same(own, other)


def shards(folder: Path) -> int:
    return len(list((folder / "cache" / "shards").glob("*.json")))


def scored(folder: Path) -> int:
    paths = (folder / "run" / "evaluate" / "ledger").glob("rank-*.jsonl")
    return sum(path.read_bytes().count(b"\n") for path in paths)


AMOUNTS = {
    "extract": shards,
    "stage1": lambda folder: len(steps(folder / "run", "stage1")),
    "stage2": lambda folder: len(steps(folder / "run", "stage2")),
    "evaluate": scored,
}
"""How much of a part is done."""


def test_preempted_in_the_middle_of_every_part(site, config, undisturbed, tmp_path):
    folder, jobs = site.submitted("pipeline", "--config", config, *outputs(tmp_path))

    def ended(job: str) -> bool:
        return site.state(job)[0] == "COMPLETED"

    with site.impatient():
        for name, amount in AMOUNTS.items():
            job = jobs[name]
            for number, preempt in enumerate((["scancel", "--signal=USR2"], ["scontrol", "requeue"])):
                before = amount(tmp_path)
                until(lambda: amount(tmp_path) > before + 1 or ended(job), what=f"{name}: {logs(folder)}")  # noqa: B023
                if ended(job):
                    assert number, f"{name} ran to its end before it could be stopped"
                    break
                restarts = site.state(job)[1]
                # of an array, those that run at this moment; one of them may end before Slurm hears
                running = site.ask("squeue", "--noheader", "--states=RUNNING", f"--jobs={job}", "--format=%A").split()
                for task in running:
                    site.ask(*preempt, task, check=False)
                until(lambda: site.state(job)[1] > restarts or ended(job), what=f"{name}: {logs(folder)}")  # noqa: B023
            until(lambda: ended(job), what=f"{name}: {logs(folder)}")  # noqa: B023
            assert site.state(job)[1] >= 1, name
    assert_bitwise_equal(tmp_path, undisturbed)
    status = site.call("status", tmp_path / "run")
    assert status.returncode == 0 and "restarts" in status.stdout, status.stdout


LONG = [*SETTINGS, "stage1.num_epochs=100"]
"""Takes longer than Slurm needs to notice that a node is gone."""


@pytest.fixture(scope="module")
def long_undisturbed(cluster, config, undisturbed) -> Path:
    """The folder of a longer stage 1 over two nodes that nothing disturbed."""
    folder = config.parent / "long"
    folder.mkdir()
    outputs = [f"output_dir={folder / 'run'}", f"cache.dir={undisturbed / 'cache'}", *LONG]
    done = Site(cluster, folder).launch("train", "--stage", "stage1", "--config", config, *outputs, "--wait")
    assert done.returncode == 0, f"{done.stderr}\n{logs(folder)}"
    return folder


@pytest.mark.parametrize("what", ["its slurmd is killed", "it is cut off", "its rank is killed"])
def test_a_node_is_lost_while_it_trains(what, hosts, config, undisturbed, long_undisturbed, tmp_path):
    """The job begins on two of three nodes, loses the second, and goes on with the third."""
    site = Site(hosts, tmp_path)
    until(hosts.all_idle, what="the nodes did not come back")
    cache = undisturbed / "cache"
    settings = [f"output_dir={tmp_path / 'run'}", f"cache.dir={cache}", *LONG, "stage1.checkpoint_every=50"]
    began = time.monotonic()
    folder, jobs = site.submitted("train", "--stage", "stage1", "--config", config, *settings)
    job, run = jobs["stage1"], tmp_path / "run"
    until(lambda: len(steps(run)) > 60, what=logs(folder))
    assert site.state(job) == ("RUNNING", 0)
    lost = hosts.nodes[1]
    with site.impatient():
        try:
            if what == "its slurmd is killed":
                hosts.kill_slurmd(lost)
            elif what == "it is cut off":
                hosts.network.cut(lost)
            else:
                hosts.kill_ranks(lost)
            # Slurm's own patience (SlurmdTimeout) is 20 s here; a rank's is half an hour.
            until(lambda: site.state(job)[1] == 1, 120, what=logs(folder))
            restarted_s = time.monotonic() - began
            until(lambda: site.state(job)[0] == "COMPLETED", what=logs(folder))
        finally:
            if what == "its slurmd is killed":
                hosts.start_slurmd(lost)
            elif what == "it is cut off":
                hosts.network.mend(lost)
    num_steps = json.loads((run / "stage1" / "status.json").read_text())["num_steps"]
    assert f"of {num_steps}" in (folder / "jobs" / f"{job}_0_log.out").read_text().partition("resuming after step")[2]
    print(f"{what}: queued again {restarted_s:.0f} s after submission")
    assert_bitwise_equal(tmp_path, long_undisturbed, ["stage1"])
    status = json.loads((run / "stage1" / "status.json").read_text())
    assert status["state"] == "finished"
    until(lambda: not hosts.ranks(lost), 120, "a rank of the lost node hangs")
