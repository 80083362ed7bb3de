"""A private Slurm on this machine: munge, accounting, a controller and a few nodes, all of it in one folder.

    tools/dev_cluster.sh up [--nodes 2] [--dir DIR]      start it; prints what to export
    tools/dev_cluster.sh down [--dir DIR]                stop it and remove the folder

The tests of `tests/slurm` start theirs with the same code. It needs root and Debian's packages slurm-wlm, munge,
slurmdbd and mariadb-server, uses free ports of the loopback device, and touches nothing of the system but marked lines
in /etc/hosts and, with --separate-hosts, network namespaces, which `down` removes. No service of the system is started,
stopped or asked.
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

if __name__ == "__main__":  # as a script: this folder is on the path, and the repository is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools.dev_network import DevNetwork

HOSTS = Path("/etc/hosts")
MARK = "# masp dev cluster"
OWNER = "MASP_DEV_CLUSTER"
"""Environment variable of every daemon; by it `down` finds what belongs to a cluster, and nothing else."""

# The machine's real cores are shared by all nodes, so nodes claim more than there are: jobs need not queue for a core.
SLURM_CONF = """\
ClusterName=masp
SlurmctldHost=localhost({controller})
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
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
AccountingStoragePass={folder}/munge.socket
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr={address} Port={port} CPUs=4 RealMemory=16000 State=UNKNOWN"
SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounting_port}
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm
"""


class ClusterError(Exception):
    """The cluster did not come up; the message says which part and what it said last."""


class DevCluster:
    """One private cluster.

    Args:
        folder: everything it writes; a short path, since sockets lie in it.
        num_nodes: how many nodes, called `node1`, `node2` … (with a prefix if they are separate hosts).
        separate_hosts: give each node a network namespace with an address of its own, so that it can be cut off.
    """

    def __init__(self, folder: Path, num_nodes: int = 2, separate_hosts: bool = False):
        self.folder = folder.resolve()
        # Addresses are a cluster's own, so names must be too: several clusters share /etc/hosts.
        prefix = f"h{zlib.crc32(str(self.folder).encode()) & 0xFFFF:04x}-" if separate_hosts else ""
        self.nodes = [f"{prefix}node{i + 1}" for i in range(num_nodes)]
        # Always there, so that `down` finds what an `up` with separate hosts left.
        self.network = DevNetwork(self.folder, self.nodes)
        self.separate_hosts = separate_hosts
        self._running: dict[str, subprocess.Popen] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to talk to this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _path()}

    def start(self) -> None:
        """Start everything and wait until all nodes are idle; what had been started is stopped if that fails.

        Raises:
            ClusterError: a part did not come up.
        """
        if os.geteuid() != 0:
            raise ClusterError("a private Slurm needs root: its daemons start jobs as the user who submits")
        self.folder.mkdir(parents=True, exist_ok=True)
        if any(self.folder.iterdir()):
            raise ClusterError(f"{self.folder} is not empty: a cluster may be running there; `down` stops it")
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all daemons and all jobs of this cluster, and take its lines out of /etc/hosts. Files stay."""
        pids = _with_descendants(_owned(self.folder) | _of_jobs(self.folder))
        _signal(pids, signal.SIGTERM)
        # Some daemons would wait for others, which are going too; nothing of theirs is kept.
        deadline = time.monotonic() + 3
        while _alive(pids) and time.monotonic() < deadline:
            time.sleep(0.1)
        late = _with_descendants(_owned(self.folder) | _of_jobs(self.folder))
        _signal(_alive(pids | late), signal.SIGKILL)
        self.network.stop()
        _edit_hosts(lambda lines: [line for line in lines if not line.endswith(self._mark)])

    def kill_slurmd(self, node: str) -> None:
        """Kill a node's daemon at once, as if it had crashed; what it had started lives on."""
        self._running[f"slurmd-{node}"].kill()
        self._running[f"slurmd-{node}"].wait()

    def start_slurmd(self, node: str) -> None:
        """Start a node's daemon."""
        command = ["slurmd", "-D", "-N", node]
        self._daemon(f"slurmd-{node}", self.network.inside(node, *command) if self.separate_hosts else command)

    def ranks(self, node: str) -> set[int]:
        """Processes of jobs on a node."""
        name = f"SLURMD_NODENAME={node}".encode()
        here = (pid for pid in _of_jobs(self.folder) if name in _read(pid, "environ").split(b"\0"))
        lines = {pid: _read(pid, "cmdline").split(b"\0") for pid in here}
        # not srun, on whose command line it stands too
        return {pid for pid, line in lines.items() if b"launch.task" in line and b"python" in line[0]}

    def kill_ranks(self, node: str) -> None:
        """Kill what jobs run on a node, as if its memory had run out."""
        _signal(self.ranks(node), signal.SIGKILL)

    @property
    def _mark(self) -> str:
        return f"{MARK} {self.folder}\n"

    def _start(self) -> None:
        ports = _free_ports(3 + len(self.nodes))
        values = {
            "folder": self.folder,
            "controller_port": ports[0],
            "accounting_port": ports[1],
            "database_port": ports[2],
            "password": secrets.token_hex(16),
            "controller": self.network.gateway if self.separate_hosts else "127.0.0.1",
            "nodes": "\n".join(self._node_line(n, p) for n, p in zip(self.nodes, ports[3:], strict=True)),
        }
        _write_private(self.folder / "slurm.conf", SLURM_CONF.format(**values).encode())
        _write_private(self.folder / "slurmdbd.conf", SLURMDBD_CONF.format(**values).encode())
        _write_private(self.folder / "munge.key", secrets.token_bytes(128))
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
        files = {name: self.folder / f"munge.{name}" for name in ("socket", "pid", "seed")}
        options = [f"--{name}{'' if name == 'socket' else '-file'}={path}" for name, path in files.items()]
        # --force: munged expects a folder that other users can reach, and this one is nobody else's.
        key, log = f"--key-file={self.folder / 'munge.key'}", f"--log-file={self.folder / 'munged.log'}"
        self._daemon("munged", ["munged", "--foreground", "--force", "--num-threads=2", key, log, *options])
        self._wait("munged", files["socket"].exists)

    def _start_database(self, port: int, password: str) -> None:
        data, sock = self.folder / "mysql", self.folder / "mysql.socket"
        common = ["--no-defaults", f"--datadir={data}", "--user=root"]
        install = ["mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db"]
        done = subprocess.run(install, capture_output=True, text=True, env=os.environ | {"PATH": _path()})
        if done.returncode:
            raise ClusterError(f"mariadb-install-db: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
        small = ["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M", "--innodb-flush-log-at-trx-commit=0"]
        place = ["--bind-address=127.0.0.1", f"--port={port}", f"--socket={sock}", f"--pid-file={data}/mariadbd.pid"]
        self._daemon("mariadbd", ["mariadbd", *common, *small, *place])
        client = ["mariadb", "--no-defaults", f"--socket={sock}", "--user=root", "--execute"]
        # The account that Slurm uses has a password, since any user of the machine can reach the port; root has the
        # socket alone.
        grant = "".join(
            f"CREATE USER 'slurm'@'{host}' IDENTIFIED BY '{password}'; GRANT ALL ON slurm.* TO 'slurm'@'{host}';"
            for host in ("127.0.0.1", "localhost")  # which of them a connection counts as depends on name resolution
        )
        self._wait("mariadbd", lambda: self._succeeds(*client, "SELECT 1"))
        if not self._succeeds(*client, grant):
            raise ClusterError("mariadbd: the account for Slurm could not be made")

    def _daemon(self, name: str, command: list[str]) -> None:
        """Start a daemon in the foreground of a session of its own, so that a Ctrl-C here does not reach it."""
        environment = os.environ | self.environment | {OWNER: str(self.folder)}
        with open(self.folder / f"{name}.out", "ab") as output:
            self._running[name] = subprocess.Popen(
                command,
                env=environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _succeeds(self, *command: str) -> bool:
        environment = os.environ | self.environment
        return subprocess.run(command, env=environment, capture_output=True, timeout=30).returncode == 0

    def all_idle(self) -> bool:
        """Whether every node is up and has nothing to do."""
        command = ["sinfo", "--noheader", "--Node", "--format=%N %T"]
        found = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True)
        return sorted(found.stdout.split("\n"))[1:] == [f"{node} idle" for node in self.nodes]

    def _wait(self, name: str, ready: Callable[[], bool], timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self._running[name].poll() is not None:
                raise ClusterError(f"{name} ended at once: {self._last_words(name)}")
            if time.monotonic() > deadline:
                raise ClusterError(f"{name} did not come up within {timeout_s:.0f} s: {self._last_words(name)}")
            time.sleep(0.2)

    def _last_words(self, name: str) -> str:
        for path in (self.folder / f"{name}.log", self.folder / f"{name}.out"):
            lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
            if lines:
                return f"{lines[-1]} ({path})"
        return "it wrote nothing"


@contextlib.contextmanager
def running(num_nodes: int = 2, separate_hosts: bool = False) -> Iterator[DevCluster]:
    """A cluster in a temporary folder, for as long as this context or this process lasts.

    A process that is killed cannot clean up, so another one does: it waits for the end of a pipe, which comes in any
    case.
    """
    # Not in a deeper folder: the paths of sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="masp-slurm-"))
    command = [sys.executable, __file__, "down", "--when-input-ends", "--dir", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True):
        cluster = DevCluster(folder, num_nodes, separate_hosts)
        cluster.start()
        yield cluster
    # Leaving Popen's context has closed the pipe and waited.


def _path() -> str:
    # Daemons lie in sbin, which is not on every user's path.
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _write_private(path: Path, data: bytes) -> None:
    """Keys and passwords: slurmdbd and munged refuse files that others can read."""
    path.touch(mode=0o600)
    path.write_bytes(data)


def _free_ports(count: int) -> list[int]:
    """Ports that are free now: all are held at once, so that none comes twice."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _edit_hosts(edit: Callable[[list[str]], list[str]]) -> None:
    """Change /etc/hosts in place (in a container it cannot be replaced), one cluster at a time."""
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


def _owned(folder: Path) -> set[int]:
    """Processes whose environment carries the cluster's mark: its daemons, and the helpers that they start per job."""
    mark = f"{OWNER}={folder}".encode()
    return {pid for pid in _processes() if mark in _read(pid, "environ").split(b"\0")}


def _of_jobs(folder: Path) -> set[int]:
    """Processes of a cluster's jobs, and those that Slurm starts above them: they leave their daemon's family and
    overwrite their environment with a title, so neither parent nor mark leads to them."""
    conf = f"SLURM_CONF={folder / 'slurm.conf'}".encode()
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
    """The processes and all their children, which are the jobs; never this process itself."""
    children: dict[int, list[int]] = {}
    for pid in _processes():
        # The name, in parentheses, may hold anything; the parent is the second field after it.
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
    """A file of /proc; nothing if the process has gone meanwhile."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _alive(pids: set[int]) -> set[int]:
    """Those that run; a zombie, whose parent has yet to look, does not."""
    states = {pid: _read(pid, "stat").rpartition(b")")[2].split()[:1] for pid in pids}
    return {pid for pid, state in states.items() if state and state != [b"Z"]}


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def main(argv: list[str] | None = None) -> int:
    """`up` and `down`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="tools/dev_cluster.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("up", "down"))
    parser.add_argument("--nodes", type=int, default=2, help="how many nodes (up)")
    default = Path(tempfile.gettempdir()) / f"masp-dev-cluster-{os.getuid()}"
    parser.add_argument("--dir", type=Path, default=default, help=f"its folder; {default} if not given")
    text = "give each node an address of its own (up), so that `ip link set DEVICE down` cuts it off"
    parser.add_argument("--separate-hosts", action="store_true", help=text)
    parser.add_argument("--when-input-ends", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.when_input_ends:
        sys.stdin.read()
    cluster = DevCluster(arguments.dir, arguments.nodes, arguments.separate_hosts)
    if arguments.action == "down":
        cluster.stop()
        known = (cluster.folder / "slurm.conf").exists() or arguments.when_input_ends
        if known:  # never a folder that is not a cluster's
            shutil.rmtree(cluster.folder)
        print(f"dev cluster: {cluster.folder}: {'stopped and removed' if known else 'there was none'}")
        return 0
    try:
        cluster.start()
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"export SLURM_CONF={cluster.folder / 'slurm.conf'}")
    print(f"dev cluster: {len(cluster.nodes)} nodes are up; logs in {cluster.folder}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
