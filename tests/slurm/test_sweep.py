"""A sweep on a cluster: a task per group, each on two ranks; one that is stopped starts again alone and goes on."""

import json

import pytest
import torch

from masp.artifacts.store import load_soft_prompt
from masp.config import load_config
from masp.training.loop import train
from tests.runs import make_run
from tests.slurm.site import Site, logs, until

pytestmark = [pytest.mark.slurm, pytest.mark.full, pytest.mark.timeout(1800)]

AXES = ["stage2.learning_rate=[0.01,0.05]", "aspects=[[scene],[object]]"]
SETTINGS = ["stage2.num_epochs=12", "stage2.validate_every=10", "stage2.validation_size=4", "stage2.log_every=1"]
CLUSTER = ["cluster.train.nodes=1", "cluster.train.tasks_per_node=2", "cluster.extract.num_tasks=1"]
CLUSTER += ["cluster.evaluate.nodes=1", "cluster.train.timeout_min=30", "cluster.evaluate.timeout_min=30"]


def test_a_group_that_is_stopped_goes_on_alone(site: Site, tmp_path):
    config = make_run(tmp_path)
    directory, jobs = site.submitted("sweep", "--config", config, "--test", "none", *AXES, *SETTINGS, *CLUSTER)
    assert list(jobs) == ["extract", "aspects", "groups", "choose"]
    sweep = tmp_path / "run" / "sweep"

    def told() -> str:
        return f"{site.tasks(jobs['groups'])}\n{logs(directory)}"

    until(lambda: list(sweep.glob("*object*/stage2/checkpoints/latest")), 900, told)
    site.ask("scancel", "--signal=USR2", f"{jobs['groups']}_1")
    with site.without_requeue_delay():
        until(lambda: site.state(jobs["choose"])[0] == "COMPLETED", 900, told)
    assert [count for _, count in site.tasks(jobs["groups"]).values()] == [0, 1], told()
    table = json.loads((sweep / "sweep.json").read_text())
    losses = {member["name"]: member["held_out_loss"] for member in table["members"]}
    assert len(losses) == 4 and table["best"] == min(losses, key=losses.get)
    for name in losses:
        member = sweep / name / "stage2"
        assert [json.loads(line)["step"] for line in (member / "metrics.jsonl").read_text().splitlines()] == [
            *range(1, json.loads((member / "status.json").read_text())["num_steps"] + 1)
        ]
    # the member of the stopped group is the run that it would have been alone
    (name,) = [name for name in losses if "object" in name and "0.05" in name]
    own = load_config(sweep / name / "stage2" / "config.yaml", [f"output_dir={tmp_path / 'alone'}"])
    train(own, "stage2")
    first, second = (
        load_soft_prompt(str(run / "stage2" / "soft_prompt_folder.safetensors"), 32)[0].weight
        for run in (sweep / name, tmp_path / "alone")
    )
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
