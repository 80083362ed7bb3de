"""Extraction killed with SIGKILL at random moments: resuming gives the very bytes of an undisturbed run."""

import hashlib
import random
import signal
import time

import pytest

from masp.cache.verify import verify_cache
from masp.config import save_config
from tests.images import make_config, make_dataset
from tests.tiny import make_vlm


def digests(folder):
    files = [*(folder / "shards").glob("*"), *(folder / n for n in ("index.h5", "manifest.json", "quarantine.jsonl"))]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def extract(commands):
    """Extracts in a process of its own; returns its exit code and how long it ran."""

    def run(config, kill_after_s=None, num_tasks=1, task=0):
        started = time.monotonic()
        share = ("--num-tasks", num_tasks, "--task-index", task) if num_tasks > 1 else ()
        running = commands.start("extract", "--config", config, *share)
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            running.kill()  # its DataLoader workers stay behind, as after the kernel's own kill
        return running.wait().code, time.monotonic() - started

    return run


FULL = pytest.mark.full


@pytest.mark.timeout(1800)  # kills are timed by an undisturbed run, which may meet a busy machine
@pytest.mark.parametrize(
    ("num_workers", "num_tasks", "num_kills"),
    [(1, 1, 4), *(pytest.param(*numbers, marks=FULL) for numbers in ((0, 1, 20), (2, 1, 8), (0, 3, 9)))],
)
def test_kills_at_random_moments(tmp_path, extract, num_workers, num_tasks, num_kills):
    root, vlm = make_dataset(tmp_path / "data", 90, 12, broken=True), make_vlm(tmp_path / "vlm")
    settings = [f"extract.num_workers={num_workers}", "cache.num_shards=12"]
    for name in ("whole", "killed"):
        save_config(make_config(root, vlm, tmp_path / name, *settings), tmp_path / f"{name}.yaml")
    code, whole_s = extract(tmp_path / "whole.yaml")
    assert code == 0

    shards, moment = tmp_path / "killed" / "shards", random.Random(num_workers)
    kept: dict[str, int] = {}
    kills = 0
    while kills < num_kills:
        task = kills % num_tasks
        code, _ = extract(tmp_path / "killed.yaml", moment.uniform(0.1, 0.8) * whole_s / num_tasks, num_tasks, task)
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
        assert extract(tmp_path / "killed.yaml", None, num_tasks, task)[0] == 0
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert verify_cache(tmp_path / "killed") == []
