"""The whole pipeline on a real Slurm with two nodes, compared with the same run without Slurm."""

import json

import pytest

from tests.runs import assert_same, make_run, numbers
from tests.slurm.site import logs

pytestmark = pytest.mark.slurm


def test_pipeline_over_two_nodes_gives_the_same_numbers_as_without_slurm(site, tmp_path):
    config_path = make_run(tmp_path)
    done = site.launch("pipeline", "--config", config_path, "cluster.extract.num_tasks=2", "--wait")
    run = tmp_path / "run"
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs(run)}"
    metrics = run / "evaluate" / "metrics.json"
    assert str(metrics) in done.stdout.splitlines()[-1]

    (directory,) = (run / "launch").glob("*/")
    parts = {part["name"]: part for part in json.loads((directory / "submission.json").read_text())["parts"]}
    assert list(parts) == ["extract", "stage1", "stage2", "evaluate"]
    assert [part["num_jobs"] for part in parts.values()] == [2, 1, 1, 1]
    assert [part["num_ranks"] for part in parts.values()] == [1, 2, 2, 2]
    nodes = site.ask("sacct", "-X", "-P", "-n", "-o", "JobID,State,NNodes").split()
    # other tests run jobs on this cluster too
    own = {line.split("|")[0]: line.split("|")[1:] for line in nodes}
    first = parts["extract"]["job_ids"][0]
    assert own[f"{first}_0"] == own[f"{first}_1"] == ["COMPLETED", "1"]
    for name in ("stage1", "stage2", "evaluate"):
        assert own[parts[name]["job_ids"][0]] == ["COMPLETED", "2"], name
    ledgers = sorted(path.name for path in (run / "evaluate" / "ledger").glob("rank-*.jsonl"))
    assert ledgers == ["rank-0.jsonl", "rank-1.jsonl"]

    status = site.call("status", run)
    assert status.returncode == 0, status.stderr
    rows = [line.split()[:2] for line in status.stdout.splitlines()]
    assert rows[2:] == [[name, "finished"] for name in parts], status.stdout
    assert " 2/2 " in status.stdout and "4 of 4 shards" in status.stdout and "6 of 6 samples" in status.stdout
    shown = site.call("logs", run, "--part", "extract", "--rank", "1", "--lines", "0")
    assert "==>" not in shown.stdout and "Job completed successfully" in shown.stdout
    environment = json.loads((directory / "environment.json").read_text())
    assert environment["packages"]["submitit"] and environment["variables"]["SLURM_CONF"]

    from masp.config import load_config
    from masp.evaluation.run import evaluate
    from masp.extraction.job import extract
    from masp.training.loop import train

    alone = load_config(config_path, [f"output_dir={tmp_path / 'alone'}", f"cache.dir={tmp_path / 'cache_alone'}"])
    extract(alone)
    train(alone, "stage1")
    train(alone, "stage2")
    assert_same(numbers(metrics), numbers(evaluate(alone)))
    for shard in sorted((tmp_path / "cache_alone" / "shards").glob("*.tar")):
        assert shard.read_bytes() == (tmp_path / "cache" / "shards" / shard.name).read_bytes(), shard.name
