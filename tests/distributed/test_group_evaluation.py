"""Soft prompts that two ranks score together have the scores that one rank gives each alone."""

import os
import subprocess
import sys

import numpy as np
import pytest

from masp.results.ledger import read_records
from tests.runs import REPOSITORY, assert_same, numbers
from tests.unit.evaluation.group.test_parts import GROUP, MEMBERS, alone, world

__all__ = ["alone", "world"]


@pytest.mark.full
@pytest.mark.parametrize("divided", ["false", "true"])
def test_two_ranks_score_what_one_scores_alone(world, alone, tmp_path, divided):
    script = tmp_path / "rank.py"
    script.write_text(GROUP)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    # three images a batch: the ranks have different numbers of batches
    command += [*map(str, world), tmp_path, "evaluate.batch_size=3", f"evaluate.partition_vlm={divided}"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in MEMBERS:
        ours, own = (directory / name / "evaluate" for directory in (tmp_path, alone))
        assert len(list((ours / "ledger").glob("rank-*.jsonl"))) == 2
        assert_same(numbers(ours / "metrics.json"), numbers(own / "metrics.json"))
        for a, b in zip(read_records(ours / "ledger"), read_records(own / "ledger"), strict=True):
            assert (a.sample_key, a.prediction) == (b.sample_key, b.prediction)
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-5, rtol=0)
