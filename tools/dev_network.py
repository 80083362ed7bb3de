"""Hosts of their own on this machine: a network namespace per host, joined by a bridge, as root.

Each host has an address, a name of its own and nothing else to talk to; it can be cut off like a real one. What it
makes are the namespaces `masp-<id>-<host>` and the devices `mb<id>` and `mv<id><n>`, where `<id>` follows from a
folder; `stop` removes them all, also those of an owner that was killed.
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
    """Some hosts.

    Args:
        folder: of the owner; two owners never share one.
        names: of the hosts, at most 200.
    """

    def __init__(self, folder: Path, names: Sequence[str]):
        number = zlib.crc32(str(folder).encode())
        self.id = f"{number:08x}"
        self.names = list(names)
        # One of the 65536 small networks of 10.*.*.0: two owners hardly ever meet, and `start` fails where they do.
        self._prefix = f"10.{number >> 8 & 255}.{number & 255}"

    @property
    def gateway(self) -> str:
        """The address of this machine, as hosts see it."""
        return f"{self._prefix}.1"

    def address(self, name: str) -> str:
        """The address of a host."""
        return f"{self._prefix}.{11 + self.names.index(name)}"

    def start(self) -> None:
        """Make all hosts.

        Raises:
            RuntimeError: the kernel refused, in its own words.
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
        """Kill what runs on the hosts and remove all of it; whatever is not there is not missed."""
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
        """The command line that runs a command on a host; it keeps its process id."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name]
        # Not `ip netns exec`, which mounts another /sys, without the control groups that slurmd looks for.
        return ["nsenter", f"--net=/run/netns/{self._space(name)}", *named, *command]

    def cut(self, name: str) -> None:
        """Pull a host's cable: what is sent is lost, and nobody is told."""
        _ip("link", "set", f"mv{self.id}{self.names.index(name)}", "down")

    def mend(self, name: str) -> None:
        """Plug it in again."""
        _ip("link", "set", f"mv{self.id}{self.names.index(name)}", "up")

    def _space(self, name: str) -> str:
        return f"masp-{self.id}-{name}"


@contextlib.contextmanager
def running(folder: Path, names: Sequence[str]) -> Iterator[DevNetwork]:
    """A network for as long as this context or this process lasts.

    A process that is killed cannot clean up, so another one does: it waits for the end of a pipe, which comes in any
    case.
    """
    command = [sys.executable, __file__, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        network = DevNetwork(folder, names)
        network.start()
        yield network


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


if __name__ == "__main__":  # the other process of `running`
    sys.stdin.read()
    DevNetwork(Path(sys.argv[1]), []).stop()
