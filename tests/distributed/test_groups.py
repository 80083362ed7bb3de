"""Soft prompts trained together by two ranks are the runs that they would have been alone, by one."""

import os
import subprocess
import sys

import pytest

from masp.training.loop import train
from tests.runs import REPOSITORY
from tests.unit.training.group.test_trainer import MEMBERS, assert_equal_runs, configs, world

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
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_two_ranks_train_what_single_runs_train(world, tmp_path, zero_stage):
    for config in configs(world, tmp_path / "alone", "stage2.log_every=1"):
        train(config, "stage2")
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    command += [*world, tmp_path / "group", str(zero_stage)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(MEMBERS) == 5
    assert_equal_runs(tmp_path / "group", tmp_path / "alone")
