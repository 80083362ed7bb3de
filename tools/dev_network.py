"""Separate hosts on this machine: one network namespace per host, connected by a bridge. Needs root.

Each host has its own address and host name, can reach only the other hosts and this machine, and can be cut off like a
real one. The network consists of the namespaces `masp-<id>-<host>` and the devices `mb<id>` and `mv<id><n>`, where
`<id>` is derived from a directory. `stop` removes all of them, even if the process that created them was killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path


class DevNetwork:
    """A network of separate hosts.

    Args:
        directory: Directory of the owner, which identifies the network; no two owners share one.
        names: Host names, at most 200.
    """

    def __init__(self, directory: Path, names: Sequence[str]):
        number = zlib.crc32(str(directory).encode())
        self.id = f"{number:08x}"
        self.names = list(names)
        # One of the 65536 networks 10.x.y.0/24: collisions between owners are rare, and `start` fails if one happens.
        self._prefix = f"10.{number >> 8 & 255}.{number & 255}"

    @property
    def gateway(self) -> str:
        """Address of this machine, as seen by the hosts."""
        return f"{self._prefix}.1"

    def address(self, name: str) -> str:
        """Address of a host."""
        return f"{self._prefix}.{11 + self.names.index(name)}"

    def start(self) -> None:
        """Create all hosts.

        Raises:
            RuntimeError: the kernel refused; the message is its own.
        """
        _ip("link", "add", f"mb{self.id}", "type", "bridge")
        _ip("addr", "add", f"{self.gateway}/24", "dev", f"mb{self.id}")
        _ip("link", "set", f"mb{self.id}", "up")
        for i, name in enumerate(self.names):
            space, outer = self._space(name), f"mv{self.id}{i}"
            _ip("netns", "add", space)
            _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", outer, "master", f"mb{self.id}", "up")
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")

    def stop(self) -> None:
        """Kill all processes on the hosts and remove the network, as far as it exists."""
        found = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
        spaces = [line.split()[0] for line in found.splitlines() if line.startswith(f"masp-{self.id}-")]
        for space in spaces:
            pids = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True).stdout.split()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", space], capture_output=True)
        found = subprocess.run(["ip", "-o", "link", "show"], capture_output=True, text=True).stdout
        devices = [line.split(": ")[1].partition("@")[0] for line in found.splitlines()]
        for device in devices:
            if device.startswith((f"mb{self.id}", f"mv{self.id}")):
                subprocess.run(["ip", "link", "del", device], capture_output=True)

    def inside(self, name: str, *command: str) -> list[str]:
        """The command line that runs a command on a host, without changing its process id."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name]
        # Not `ip netns exec`: it mounts another /sys, without the control groups that slurmd needs.
        return ["nsenter", f"--net=/run/netns/{self._space(name)}", *named, *command]

    def cut(self, name: str) -> None:
        """Unplug a host: packets to and from it are lost without an error."""
        _ip("link", "set", f"mv{self.id}{self.names.index(name)}", "down")

    def mend(self, name: str) -> None:
        """Reconnect a host."""
        _ip("link", "set", f"mv{self.id}{self.names.index(name)}", "up")

    def _space(self, name: str) -> str:
        return f"masp-{self.id}-{name}"


@contextlib.contextmanager
def running(directory: Path, names: Sequence[str]) -> Iterator[DevNetwork]:
    """A network that lives as long as this context or this process.

    A killed process cannot clean up, so a second process does: it waits for end of file on a pipe, which it receives in
    any case.
    """
    command = [sys.executable, __file__, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        network = DevNetwork(directory, names)
        network.start()
        yield network


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


if __name__ == "__main__":  # the second process of `running`
    sys.stdin.read()
    DevNetwork(Path(sys.argv[1]), []).stop()
