"""`deepspeed --hostfile` over two hosts, reached by ssh, without Slurm: both stages and the evaluation."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs import REPOSITORY, assert_same, make_run, numbers
from tools.dev_network import DevNetwork, running

pytestmark = [pytest.mark.hosts, pytest.mark.full]

SSHD = """\
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
"""
SSH = """\
Host *
    IdentityFile {folder}/user_key
    UserKnownHostsFile {folder}/known_hosts
    StrictHostKeyChecking no
    BatchMode yes
    LogLevel ERROR
"""
# What every host needs to know; gloo meets the other host through this device.
ENVIRONMENT = "GLOO_SOCKET_IFNAME=eth0\nDS_ACCELERATOR=cpu\nOMP_NUM_THREADS=1\nHF_HUB_OFFLINE=1\n"


class Hosts:
    """Two hosts with an ssh daemon each, and a `deepspeed` that reaches them."""

    def __init__(self, network: DevNetwork, folder: Path):
        self.network, self.folder = network, folder
        for name in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        (folder / "sshd_config").write_text(SSHD.format(folder=folder))
        (folder / "ssh_config").write_text(SSH.format(folder=folder))
        (folder / "environment").write_text(ENVIRONMENT)
        (folder / "hostfile").write_text("".join(f"{network.address(name)} slots=1\n" for name in network.names))
        (folder / "bin").mkdir()
        (folder / "bin" / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {folder}/ssh_config "$@"\n')
        (folder / "bin" / "ssh").chmod(0o755)

    def start(self) -> None:
        """Start the daemons and wait until they answer."""
        # sshd insists on a folder of the system's; this one is seen by nobody else.
        script = 'mount -t tmpfs tmpfs /run && mkdir /run/sshd && exec /usr/sbin/sshd -D -e -f "$0"'
        for name in self.network.names:
            daemon = ["unshare", "--mount", "sh", "-c", script, str(self.folder / "sshd_config")]
            with open(self.folder / f"sshd-{name}.log", "ab") as log:
                subprocess.Popen(self.network.inside(name, *daemon), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for name in self.network.names:
            deadline = time.monotonic() + 30
            ask = [str(self.folder / "bin" / "ssh"), self.network.address(name), "hostname"]
            while subprocess.run(ask, capture_output=True, text=True).stdout.strip() != name:
                assert time.monotonic() < deadline, (self.folder / f"sshd-{name}.log").read_text()
                time.sleep(0.2)

    def masp(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run `masp …` with a rank on each host."""
        first = self.network.address(self.network.names[0])
        launcher = ["--hostfile", str(self.folder / "hostfile"), "--master_addr", first, "--master_port", "29511"]
        command = [str(Path(sys.executable).with_name("deepspeed")), *launcher, "--module", "masp.cli", *arguments]
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        variables = {"PATH": path, "DS_ENV_FILE": str(self.folder / "environment")}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        return subprocess.run(
            command, cwd=REPOSITORY, env=environment | variables, capture_output=True, text=True, timeout=500
        )


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with tempfile.TemporaryDirectory(prefix="masp-hosts-") as name, running(Path(name), ["one", "two"]) as network:
        hosts = Hosts(network, Path(name))
        hosts.start()
        yield hosts


def test_both_stages_and_the_evaluation_give_the_numbers_of_one_process(hosts, tmp_path):
    from masp.config import load_config
    from masp.evaluation.run import evaluate
    from masp.extraction.job import extract
    from masp.training.loop import train

    path = make_run(tmp_path)
    alone = load_config(path, [f"output_dir={tmp_path / 'alone'}"])
    extract(alone)
    for command in (["train", "--stage", "stage1"], ["train", "--stage", "stage2"], ["evaluate"]):
        done = hosts.masp(*command, "--config", str(path))
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        for name in hosts.network.names:
            assert f"{hosts.network.address(name)}: " in done.stdout + done.stderr  # pdsh says who says what
    ledgers = sorted(path.name for path in (tmp_path / "run" / "evaluate" / "ledger").glob("rank-*.jsonl"))
    assert ledgers == ["rank-0.jsonl", "rank-1.jsonl"]
    train(alone, "stage1")
    train(alone, "stage2")
    assert_same(numbers(tmp_path / "run" / "evaluate" / "metrics.json"), numbers(evaluate(alone)))
