"""Runs `masp …` in separate processes that can be signaled and killed, without importing torch for each of them.

A server process imports what all commands need and forks a child per command. The child runs what the console script
runs, `masp.cli.main.run_process`, and so ends as `masp` does. What the server imported is frozen: otherwise the garbage
collector of each child would visit, and so copy, all of it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

IMPORTS = """
import deepspeed, h5py, sklearn.metrics, tensorboard, transformers.models.qwen2_vl.modeling_qwen2_vl, webdataset
import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl, torch.utils.tensorboard
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl
from deepspeed.runtime.zero.muon import muon_optimizer
import masp.extraction.encode_shards, masp.evaluation.run, masp.inference.batch.run, masp.inference.batch.inputs
import masp.training.loop, masp.report.attention, masp.report.page, masp.inference.serving.server
from masp.cli.main import run_process
deepspeed.ops.__compatible_ops__  # found out once, by compiling
"""
SERVER = """
import gc, json, os, sys
imports, run = sys.argv[1:]
exec(imports)
gc.collect()
gc.freeze()
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    os.setsid()
    for number, path in ((0, os.devnull), (1, order["stdout"]), (2, order["stderr"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(order["env"])
    sys.argv = ["masp", *order["argv"]]
    exec(run)
    sys.exit()
"""


@dataclass
class Result:
    """Result of a command."""

    code: int
    """Exit code; if negative, the signal that killed the process."""
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        return self.stdout.strip().splitlines()[-1] if self.stdout.strip() else ""


class Running:
    """A running command."""

    def __init__(self, server: Commands, pid: int, directory: Path):
        self.server, self.pid, self.directory, self.ended = server, pid, directory, False

    def kill(self, number: int = signal.SIGKILL, group: bool = False) -> None:
        """Send a signal to the process, or to its process group, which includes workers."""
        try:
            os.killpg(self.pid, number) if group else os.kill(self.pid, number)
        except ProcessLookupError:
            return  # it has already exited

    def when(self, condition: Callable[[], bool], timeout_s: float = 120) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.02)

    def output(self) -> tuple[str, str]:
        # as bytes: the carriage returns of a progress bar must not become line ends
        return tuple((self.directory / name).read_bytes().decode() for name in ("stdout", "stderr"))

    def wait(self) -> Result:
        self.ended = True
        return Result(int(self.server.order({"wait": self.pid})), *self.output())


class Commands:
    """Starts commands. Use as a context manager.

    Args:
        directory: Directory for the output of the commands.
        imports: What the server does first, once.
        run: What each process does, with the arguments in `sys.argv`.
    """

    def __init__(self, directory: Path, imports: str = IMPORTS, run: str = "run_process()"):
        self.directory, self.count, self.started = directory, 0, []
        command = [sys.executable, "-c", SERVER, imports, run]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self.process.stdout.readline() == "ready\n"

    def order(self, what: dict) -> str:
        print(json.dumps(what), file=self.process.stdin, flush=True)
        return self.process.stdout.readline()

    def start(self, *argv: object, **env: object) -> Running:
        """Start `masp ARGV` with additional environment variables."""
        self.count += 1
        directory = self.directory / f"{self.count:03d}"
        directory.mkdir()
        order = {"argv": [str(a) for a in argv], "env": {k: str(v) for k, v in env.items()}}
        order |= {name: str(directory / name) for name in ("stdout", "stderr")}
        for name in ("stdout", "stderr"):
            (directory / name).touch()
        self.started.append(Running(self, int(self.order(order)), directory))
        return self.started[-1]

    def __call__(self, *argv: object, **env: object) -> Result:
        """Run `masp ARGV` until it exits."""
        return self.start(*argv, **env).wait()

    def ok(self, *argv: object, **env: object) -> Result:
        """Run `masp ARGV`, which must succeed."""
        result = self(*argv, **env)
        assert result.code == 0, (argv, result)
        return result

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *_: object) -> None:
        for running in self.started:
            if not running.ended:  # left by a failed test
                running.kill(group=True)
        self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        finally:
            self.process.kill()
            self.process.stdout.close()


class Ranks:
    """One command on several ranks, without a launcher that would end the others if one fails."""

    def __init__(self, commands: Commands, size: int, *argv: object):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        shared = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.running = [commands.start(*argv, RANK=rank, LOCAL_RANK=rank, **shared) for rank in range(size)]

    def wait(self) -> list[Result]:
        return [running.wait() for running in self.running]

    def ok(self) -> list[Result]:
        results = self.wait()
        assert all(result.code == 0 for result in results), results
        return results
