"""Extraction killed with SIGKILL at random moments: resuming gives the very bytes of an undisturbed run."""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from masp.cache.verify import verify_cache
from masp.config import save_config
from tests.images import make_config, make_dataset
from tests.tiny import make_vlm

# Forks a child per line of input, so that the twenty runs share one import of torch and transformers.
SERVER = """
import os, sys
from masp.config import load_config
from masp.errors import MaspError
from masp.extraction.job import extract
import masp.extraction.encode_shards, h5py, webdataset, transformers.models.qwen2_vl.modeling_qwen2_vl
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.setsid()
        sys.stdout = sys.stderr = open(os.devnull, "w")
        try:
            config, num_tasks, task = line.split()
            extract(load_config(config), num_tasks=int(num_tasks), task_index=int(task))
        except MaspError as error:
            os._exit(error.exit_code)
        except BaseException:
            os._exit(1)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def digests(folder):
    files = [*(folder / "shards").glob("*"), *(folder / n for n in ("index.h5", "manifest.json", "quarantine.jsonl"))]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def server():
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdout.readline() == "ready\n"

        def run(config, kill_after_s=None, num_tasks=1, task=0):
            """Extract in a process of its own; returns its exit code and how long it ran."""
            print(config, num_tasks, task, file=process.stdin, flush=True)
            child, started = int(process.stdout.readline()), time.monotonic()
            if kill_after_s is not None:
                time.sleep(kill_after_s)
                with contextlib.suppress(ProcessLookupError):  # it was faster
                    os.kill(child, signal.SIGKILL)  # its DataLoader workers stay behind, as after the kernel's own kill
            return int(process.stdout.readline()), time.monotonic() - started

        yield run
        process.stdin.close()


FULL = pytest.mark.full


@pytest.mark.timeout(1800)  # kills are timed by an undisturbed run, which may meet a busy machine
@pytest.mark.parametrize(
    ("num_workers", "num_tasks", "num_kills"),
    [(1, 1, 4), *(pytest.param(*numbers, marks=FULL) for numbers in ((0, 1, 20), (2, 1, 8), (0, 3, 9)))],
)
def test_kills_at_random_moments(tmp_path, server, num_workers, num_tasks, num_kills):
    root, vlm = make_dataset(tmp_path / "data", 90, 12, broken=True), make_vlm(tmp_path / "vlm")
    settings = [f"extract.num_workers={num_workers}", "cache.num_shards=12"]
    for name in ("whole", "killed"):
        save_config(make_config(root, vlm, tmp_path / name, *settings), tmp_path / f"{name}.yaml")
    code, whole_s = server(tmp_path / "whole.yaml")
    assert code == 0

    shards, moment = tmp_path / "killed" / "shards", random.Random(num_workers)
    kept: dict[str, int] = {}
    kills = 0
    while kills < num_kills:
        task = kills % num_tasks
        code, _ = server(tmp_path / "killed.yaml", moment.uniform(0.1, 0.8) * whole_s / num_tasks, num_tasks, task)
        if code == 0:  # it was faster: begin again with half of what is done
            for path in sorted(shards.glob("*.json"))[::2]:
                path.unlink()
            kills += 1 if num_tasks > 1 else 0  # the next task's turn
        else:
            assert code == -signal.SIGKILL
            kills += 1
        now = {p.name: p.stat().st_mtime_ns for p in shards.glob("*") if p.suffix == ".json"}
        if code:
            assert now.items() >= kept.items()  # what was finished is never done again
        kept = now
    for task in range(num_tasks):
        assert server(tmp_path / "killed.yaml", None, num_tasks, task)[0] == 0
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert verify_cache(tmp_path / "killed") == []
