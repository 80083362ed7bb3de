"""A private Slurm on this machine: munge, accounting, a controller and a few nodes, all in one directory.

    tools/dev_cluster.sh up [--nodes 2] [--dir DIR]
    tools/dev_cluster.sh down [--dir DIR]

`up` starts it and prints what to export; `down` stops it and removes the directory. The tests in `tests/slurm` use the
same code. It needs root and Debian's packages slurm-wlm, munge, slurmdbd and mariadb-server, and uses free ports of the
loopback device. The only changes to the system are marked lines in /etc/hosts and, with --separate-hosts, network
namespaces; `down` removes both. No system service is started, stopped or queried.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

if __name__ == "__main__":  # run as a script, this directory is on the path and the repository is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools.dev_network import DevNetwork

HOSTS = Path("/etc/hosts")
MARK = "# masp dev cluster"
OWNER = "MASP_DEV_CLUSTER"
"""Environment variable set for every daemon; `down` uses it to find exactly the processes of a cluster."""

# All nodes share the machine's cores, so they claim more cores than exist: jobs do not have to queue for one.
SLURM_CONF = """\
ClusterName=masp
SlurmctldHost=localhost({controller})
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmdTimeout=20
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=5,batch_sched_delay=0,sched_min_interval=200000
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting_port}
AccountingStoragePass={directory}/munge.socket
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr={address} Port={port} CPUs=4 RealMemory=16000 State=UNKNOWN"
SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounting_port}
SlurmUser=root
LogFile={directory}/slurmdbd.log
PidFile={directory}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm
"""


class ClusterError(Exception):
    """The cluster did not start; the message names the part that failed and its last line of output."""


class DevCluster:
    """One private cluster.

    Args:
        directory: Directory for everything the cluster writes; must be a short path, because it holds sockets.
        num_nodes: Number of nodes, named `node1`, `node2` … (with a prefix if they are separate hosts).
        separate_hosts: Give each node a network namespace with an address of its own, so that it can be cut off.
    """

    def __init__(self, directory: Path, num_nodes: int = 2, separate_hosts: bool = False):
        self.directory = directory.resolve()
        # Several clusters share /etc/hosts; each has its own addresses, so the names must differ too.
        prefix = f"h{zlib.crc32(str(self.directory).encode()) & 0xFFFF:04x}-" if separate_hosts else ""
        self.nodes = [f"{prefix}node{i + 1}" for i in range(num_nodes)]
        # Created in any case, so that `down` finds what an `up` with separate hosts left behind.
        self.network = DevNetwork(self.directory, self.nodes)
        self.separate_hosts = separate_hosts
        self._running: dict[str, subprocess.Popen] = {}

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that a process needs to use this cluster."""
        return {"SLURM_CONF": str(self.directory / "slurm.conf"), "PATH": _path()}

    def start(self) -> None:
        """Start everything and wait until all nodes are idle. If that fails, everything is stopped again.

        Raises:
            ClusterError: a part did not start.
        """
        if os.geteuid() != 0:
            raise ClusterError("a private Slurm needs root: its daemons start jobs as the submitting user")
        self.directory.mkdir(parents=True, exist_ok=True)
        if any(self.directory.iterdir()):
            raise ClusterError(f"{self.directory} is not empty: a cluster may be running there; `down` stops it")
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all daemons and jobs of this cluster and remove its lines from /etc/hosts. Files are kept."""
        pids = _with_descendants(_owned(self.directory) | _of_jobs(self.directory))
        _signal(pids, signal.SIGTERM)
        # Some daemons wait for others that are being stopped as well; none of their state is needed.
        deadline = time.monotonic() + 3
        while _alive(pids) and time.monotonic() < deadline:
            time.sleep(0.1)
        late = _with_descendants(_owned(self.directory) | _of_jobs(self.directory))
        _signal(_alive(pids | late), signal.SIGKILL)
        self.network.stop()
        _edit_hosts(lambda lines: [line for line in lines if not line.endswith(self._mark)])

    def kill_slurmd(self, node: str) -> None:
        """Kill a node's daemon, as if it had crashed; the processes that it started keep running."""
        self._running[f"slurmd-{node}"].kill()
        self._running[f"slurmd-{node}"].wait()

    def start_slurmd(self, node: str) -> None:
        """Start a node's daemon."""
        command = ["slurmd", "-D", "-N", node]
        self._daemon(f"slurmd-{node}", self.network.inside(node, *command) if self.separate_hosts else command)

    def ranks(self, node: str) -> set[int]:
        """Process ids of the jobs' ranks on a node."""
        name = f"SLURMD_NODENAME={node}".encode()
        here = (pid for pid in _of_jobs(self.directory) if name in _read(pid, "environ").split(b"\0"))
        lines = {pid: _read(pid, "cmdline").split(b"\0") for pid in here}
        # not srun, whose command line contains it as well
        return {pid for pid, line in lines.items() if b"launch.job.task" in line and b"python" in line[0]}

    def kill_ranks(self, node: str) -> None:
        """Kill the ranks on a node, as if it had run out of memory."""
        _signal(self.ranks(node), signal.SIGKILL)

    @property
    def _mark(self) -> str:
        return f"{MARK} {self.directory}\n"

    def _start(self) -> None:
        ports = _free_ports(3 + len(self.nodes))
        values = {
            "directory": self.directory,
            "controller_port": ports[0],
            "accounting_port": ports[1],
            "database_port": ports[2],
            "password": secrets.token_hex(16),
            "controller": self.network.gateway if self.separate_hosts else "127.0.0.1",
            "nodes": "\n".join(self._node_line(n, p) for n, p in zip(self.nodes, ports[3:], strict=True)),
        }
        _write_private(self.directory / "slurm.conf", SLURM_CONF.format(**values).encode())
        _write_private(self.directory / "slurmdbd.conf", SLURMDBD_CONF.format(**values).encode())
        _write_private(self.directory / "munge.key", secrets.token_bytes(128))
        if self.separate_hosts:
            self.network.start()
            names = [f"{self.network.address(node)} {node} {self._mark}" for node in self.nodes]
        else:
            names = [f"127.0.0.1 {' '.join(self.nodes)} {self._mark}"]
        _edit_hosts(lambda lines: [*lines, *names])
        self._start_munge()
        self._start_database(values["database_port"], values["password"])
        self._daemon("slurmdbd", ["slurmdbd", "-D"])
        self._wait("slurmdbd", lambda: _accepts(values["accounting_port"]))
        self._wait("slurmdbd", lambda: self._succeeds("sacctmgr", "--immediate", "add", "cluster", "masp"))
        self._daemon("slurmctld", ["slurmctld", "-D"])
        for node in self.nodes:
            self.start_slurmd(node)
        self._wait("slurmctld", self.all_idle)

    def _node_line(self, name: str, port: int) -> str:
        if self.separate_hosts:
            return NODE.format(name=name, host=name, address=self.network.address(name), port=port)
        return NODE.format(name=name, host="localhost", address="127.0.0.1", port=port)

    def _start_munge(self) -> None:
        files = {name: self.directory / f"munge.{name}" for name in ("socket", "pid", "seed")}
        options = [f"--{name}{'' if name == 'socket' else '-file'}={path}" for name, path in files.items()]
        # --force: munged expects a directory that other users can access; this one is private.
        key, log = f"--key-file={self.directory / 'munge.key'}", f"--log-file={self.directory / 'munged.log'}"
        self._daemon("munged", ["munged", "--foreground", "--force", "--num-threads=2", key, log, *options])
        self._wait("munged", files["socket"].exists)

    def _start_database(self, port: int, password: str) -> None:
        data, sock = self.directory / "mysql", self.directory / "mysql.socket"
        common = ["--no-defaults", f"--datadir={data}", "--user=root"]
        install = ["mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db"]
        done = subprocess.run(install, capture_output=True, text=True, env=os.environ | {"PATH": _path()})
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            found = [line.partition("[ERROR]")[2].strip() for line in lines if "[ERROR]" in line] or lines[-1:]
            raise ClusterError(f"mariadb-install-db: {'; '.join(found)}")
        small = ["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M", "--innodb-flush-log-at-trx-commit=0"]
        place = ["--bind-address=127.0.0.1", f"--port={port}", f"--socket={sock}", f"--pid-file={data}/mariadbd.pid"]
        self._daemon("mariadbd", ["mariadbd", *common, *small, *place])
        client = ["mariadb", "--no-defaults", f"--socket={sock}", "--user=root", "--execute"]
        # The account for Slurm has a password, because every user of the machine can connect to the port; root can only
        # log in through the socket.
        grant = "".join(
            f"CREATE USER 'slurm'@'{host}' IDENTIFIED BY '{password}'; GRANT ALL ON slurm.* TO 'slurm'@'{host}';"
            for host in ("127.0.0.1", "localhost")  # name resolution decides which of them a connection comes from
        )
        self._wait("mariadbd", lambda: self._succeeds(*client, "SELECT 1"))
        if not self._succeeds(*client, grant):
            raise ClusterError("mariadbd: the account for Slurm could not be created")

    def _daemon(self, name: str, command: list[str]) -> None:
        """Start a daemon in the foreground of its own session, so that Ctrl-C in this terminal does not reach it."""
        environment = os.environ | self.environment | {OWNER: str(self.directory)}
        with open(self.directory / f"{name}.out", "ab") as output:
            self._running[name] = subprocess.Popen(
                command,
                env=environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _succeeds(self, *command: str) -> bool:
        environment = os.environ | self.environment
        return subprocess.run(command, env=environment, capture_output=True, timeout=30).returncode == 0

    def all_idle(self) -> bool:
        """Whether every node is up and idle."""
        command = ["sinfo", "--noheader", "--Node", "--format=%N %T"]
        found = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True)
        return sorted(found.stdout.split("\n"))[1:] == [f"{node} idle" for node in self.nodes]

    def _wait(self, name: str, ready: Callable[[], bool], timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self._running[name].poll() is not None:
                raise ClusterError(f"{name} exited at startup: {self._last_line(name)}")
            if time.monotonic() > deadline:
                raise ClusterError(f"{name} did not start within {timeout_s:.0f} s: {self._last_line(name)}")
            time.sleep(0.2)

    def _last_line(self, name: str) -> str:
        for path in (self.directory / f"{name}.log", self.directory / f"{name}.out"):
            lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
            if lines:
                return f"{lines[-1]} ({path})"
        return "no output"


@contextlib.contextmanager
def running(num_nodes: int = 2, separate_hosts: bool = False) -> Iterator[DevCluster]:
    """A cluster in a temporary directory that lives as long as this context or this process.

    A killed process cannot clean up, so a second process does: it waits for end of file on a pipe, which it receives in
    any case.
    """
    # Not in a nested directory: the paths of sockets must be short.
    directory = Path(tempfile.mkdtemp(prefix="masp-slurm-"))
    command = [sys.executable, __file__, "down", "--when-input-ends", "--dir", str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True):
        cluster = DevCluster(directory, num_nodes, separate_hosts)
        cluster.start()
        yield cluster
    # Leaving the context of Popen closed the pipe and waited for the process.


def _path() -> str:
    # Daemons are in sbin, which is not on every user's path.
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _write_private(path: Path, data: bytes) -> None:
    """Write a key or password file; slurmdbd and munged refuse files that others can read."""
    path.touch(mode=0o600)
    path.write_bytes(data)


def _free_ports(count: int) -> list[int]:
    """Ports that are free now. All are held at the same time, so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _edit_hosts(edit: Callable[[list[str]], list[str]]) -> None:
    """Edit /etc/hosts in place (in a container it cannot be replaced), under a lock."""
    with open(HOSTS, "r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = file.read().splitlines(keepends=True)
        if before and not before[-1].endswith("\n"):
            before[-1] += "\n"
        after = edit(before)
        if after != before:
            file.seek(0)
            file.writelines(after)
            file.truncate()


def _owned(directory: Path) -> set[int]:
    """Process ids whose environment has the cluster's mark: its daemons, and the helpers they start for each job."""
    mark = f"{OWNER}={directory}".encode()
    return {pid for pid in _processes() if mark in _read(pid, "environ").split(b"\0")}


def _of_jobs(directory: Path) -> set[int]:
    """Process ids of a cluster's jobs and of the slurmstepd processes above them.

    A slurmstepd leaves its daemon's process tree and overwrites its environment with a title, so neither its parent nor
    the mark identifies it.
    """
    conf = f"SLURM_CONF={directory / 'slurm.conf'}".encode()
    found = set()
    for pid in _processes():
        variables = _read(pid, "environ").split(b"\0")
        if conf in variables and any(variable.startswith(b"SLURM_JOB_ID=") for variable in variables):
            found.add(pid)
            fields = _read(pid, "stat").rpartition(b")")[2].split()
            if len(fields) > 1 and _read(int(fields[1]), "cmdline").startswith(b"slurmstepd"):
                found.add(int(fields[1]))
    return found


def _with_descendants(pids: set[int]) -> set[int]:
    """The processes and all their descendants, which are the jobs; never this process itself."""
    children: dict[int, list[int]] = {}
    for pid in _processes():
        # The name, in parentheses, may contain anything; the parent is the second field after it.
        fields = _read(pid, "stat").rpartition(b")")[2].split()
        if len(fields) > 1:
            children.setdefault(int(fields[1]), []).append(pid)
    found, waiting = set(), list(pids)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, [])
    return found - {os.getpid()}


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _read(pid: int, name: str) -> bytes:
    """Content of a file in /proc; empty if the process has exited."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _alive(pids: set[int]) -> set[int]:
    """The processes that are still running; zombies do not count."""
    states = {pid: _read(pid, "stat").rpartition(b")")[2].split()[:1] for pid in pids}
    return {pid for pid, state in states.items() if state and state != [b"Z"]}


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def main(argv: list[str] | None = None) -> int:
    """Run `up` or `down`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="tools/dev_cluster.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("up", "down"))
    parser.add_argument("--nodes", type=int, default=2, help="number of nodes (up)")
    default = Path(tempfile.gettempdir()) / f"masp-dev-cluster-{os.getuid()}"
    parser.add_argument("--dir", type=Path, default=default, help=f"directory of the cluster (default {default})")
    text = "give each node an address of its own (up), so that `ip link set DEVICE down` can cut it off"
    parser.add_argument("--separate-hosts", action="store_true", help=text)
    parser.add_argument("--when-input-ends", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.when_input_ends:
        sys.stdin.read()
    cluster = DevCluster(arguments.dir, arguments.nodes, arguments.separate_hosts)
    if arguments.action == "down":
        cluster.stop()
        known = (cluster.directory / "slurm.conf").exists() or arguments.when_input_ends
        if known:  # never remove a directory that is not a cluster's
            shutil.rmtree(cluster.directory)
        print(f"dev cluster: {cluster.directory}: {'stopped and removed' if known else 'no cluster found'}")
        return 0
    try:
        cluster.start()
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"export SLURM_CONF={cluster.directory / 'slurm.conf'}")
    print(f"dev cluster: {len(cluster.nodes)} nodes are up; logs in {cluster.directory}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
