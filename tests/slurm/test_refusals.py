"""Errors at submission are one line each, and leave neither jobs nor directories behind."""

import pytest

from tests.runs import make_run

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("refusals"))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("cluster.partition=none", "cluster: Slurm would refuse extract: invalid partition specified: none"),
        ("cluster.evaluate.memory_gb=999", "cluster: Slurm would refuse evaluate: allocation failure: Requested node"),
        ("cluster.train.nodes=3", "cluster: Slurm would refuse stage1: allocation failure: Requested node"),
        ("output_dir=/proc/none", "output_dir: /proc/none/launch cannot be written: /proc"),
    ],
)
def test_settings_that_slurm_would_refuse(setting, expected, site, config, tmp_path):
    done = site.launch("pipeline", "--config", config, f"output_dir={tmp_path / 'run'}", setting)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {expected}") and done.stderr.count("\n") == 1, done.stderr
    assert not site.queue() and not list(tmp_path.rglob("launch/*/"))


def test_a_slurm_that_does_not_answer(site, config, tmp_path, monkeypatch):
    text = (site.cluster.directory / "slurm.conf").read_text()
    lines = ["SlurmctldPort=1" if line.startswith("SlurmctldPort=") else line for line in text.splitlines()]
    (tmp_path / "slurm.conf").write_text("\n".join(lines))
    monkeypatch.setattr(type(site.cluster), "environment", {"SLURM_CONF": str(tmp_path / "slurm.conf")})
    done = site.launch("pipeline", "--config", config, f"output_dir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: cluster: Slurm does not answer: Slurmctld(primary)"), done.stderr
    assert done.stderr.count("\n") == 1 and not list(tmp_path.rglob("launch/*/"))
