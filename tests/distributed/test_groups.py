"""Soft prompts trained together by several ranks are the runs that they would have been alone, by one."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from masp.config import save_config
from masp.errors import StoppedEarly
from masp.runtime.run_directory import read_status
from masp.training.checkpoint import load_latest, save_checkpoint
from masp.training.loop import train
from masp.training.stages import open_stage
from tests.runs import REPOSITORY
from tests.unit.training.group.test_trainer import MEMBERS, After, assert_equal_runs, configs, world

__all__ = ["world"]

RANK = """
import sys
from pathlib import Path
from masp.training.group.trainer import train_group
from tests.unit.training.group.test_trainer import configs
path, folder, output, zero = sys.argv[1:]
given = ("stage2.log_every=1", f"engine.zero_stage={zero}")
assert not any(train_group(configs((Path(path), Path(folder)), Path(output), *given)))
"""


@pytest.mark.full
@pytest.mark.parametrize(("zero_stage", "num_ranks"), [(0, 2), (2, 2), (3, 2), (3, 3)])
def test_ranks_train_what_single_runs_train(world, tmp_path, zero_stage, num_ranks):
    for config in configs(world, tmp_path / "alone", "stage2.log_every=1"):
        train(config, "stage2")
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    command += [script, *world, tmp_path / "group", str(zero_stage)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(MEMBERS) == 5
    assert_equal_runs(tmp_path / "group", tmp_path / "alone")


@pytest.mark.full
def test_a_killed_rank_ends_the_others_and_is_named_and_the_group_goes_on(world, tmp_path):
    script = tmp_path / "rank.py"
    long = RANK.replace('"stage2.log_every=1"', '"stage2.log_every=1", "stage2.num_epochs=400"')
    body = "\n".join(f"    {line}" for line in long.splitlines())
    caught = "except MaspError as error:\n    sys.exit(str(error))\n"
    script.write_text(f"from masp.errors import MaspError\ntry:\n{body}\n{caught}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def start(rank):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | {name: str(value) for name, value in place.items()}
        command = [sys.executable, script, *world, tmp_path / "group", "2"]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    first, second = start(0), start(1)
    log = tmp_path / "group" / "plain" / "stage2" / "metrics.jsonl"
    while first.poll() is None and not (log.exists() and log.read_text().count("\n") > 2):
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    _, errors = first.communicate(timeout=120)
    assert time.monotonic() - killed < 60 and first.returncode == 1, errors[-2000:]
    assert f"rank 1 (process {second.pid} on " in errors.splitlines()[-1]
    for name in set(MEMBERS) - {"one-epoch"}:  # it may have come to its end
        status = read_status(tmp_path / "group" / name / "stage2")
        assert status.state == "failed" and status.message.startswith(f"rank 1 (process {second.pid} on ")
        (tmp_path / "group" / name / "STOP").touch()
    first, second = start(0), start(1)
    assert "stopped by the file" in first.communicate(timeout=300)[1] and first.returncode == 1
    assert second.wait(60) == 1
    assert read_status(tmp_path / "group" / "plain" / "stage2").state == "stopped"


ALONE = """
import sys
from masp.config import load_config
from masp.training.group.together import train_together
(failure,) = train_together([load_config(sys.argv[1], [])])
print(failure)
"""


@pytest.mark.full
def test_ranks_go_on_after_a_run_that_trains_alone_has_diverged(world, tmp_path):
    config = configs(world, tmp_path, "stage2.layout=released")[0]
    with pytest.raises(StoppedEarly):
        train(config, "stage2", After(2))
    checkpoints = tmp_path / "plain" / "stage2" / "checkpoints"
    found = load_latest(checkpoints, open_stage("stage2", config, "cpu").identity())
    found.tensors["soft_prompt.weight"].fill_(float("nan"))
    save_checkpoint(checkpoints, found, keep=2)
    save_config(config, tmp_path / "config.yaml")
    script = tmp_path / "rank.py"
    script.write_text(ALONE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    done = subprocess.run(
        [*command, tmp_path / "config.yaml"], env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = sorted(done.stdout.splitlines())
    assert first == "rank 0 failed; its own message says why" and "is not taken: the loss is nan" in second
