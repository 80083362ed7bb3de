"""Several processes on one cache: their shares, who merges, and what each is told when they get in each other's way."""

import hashlib
import multiprocessing
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from masp.cache.layout import FINISHING, LOCK, MANIFEST
from masp.cache.reader import open_cache
from masp.cli.main import main
from masp.config import save_config
from masp.errors import FilesInUse, MaspError, StoppedEarly
from masp.extraction.job import extract, finish, holding
from masp.files.locks import locked
from masp.runtime.stop import StopFlag
from tests.images import make_config, make_dataset
from tests.tiny import make_vlm

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`(dataset, vlm, cache)`; the cache was made by one process."""
    base = tmp_path_factory.mktemp("tasks")
    root, vlm = make_dataset(base / "data", 12, 4), make_vlm(base / "vlm")
    return root, vlm, extract(make_config(root, vlm, base / "cache"))


def content(folder):
    names = [*sorted((folder / "shards").glob("*.*")), *(folder / n for n in ("index.h5", "manifest.json"))]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in names}


def unmerged(made, folder):
    """A copy whose shards are all finished, but which nobody has merged."""
    shutil.copytree(made[2], folder)
    (folder / "manifest.json").unlink()
    (folder / "index.h5").unlink()
    return make_config(made[0], made[1], folder)


def test_the_command_line_divides_and_finalizes(made, tmp_path, monkeypatch, capsys):
    for name in ("SLURM_ARRAY_TASK_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "c"
    save_config(make_config(made[0], made[1], folder), tmp_path / "c.yaml")
    command = ["extract", "--config", str(tmp_path / "c.yaml")]
    assert main([*command, "--finalize"]) == 2
    assert "is not a feature cache" in capsys.readouterr().err
    assert not folder.exists()
    assert main([*command, "--num-tasks", "3", "--task-index", "1"]) == 0
    assert "task 1 of 3 is done; 3 shards" in capsys.readouterr().out
    assert main([*command, "--finalize"]) == 2
    assert "3 of 4 shards are missing (test-00000, train-00001, train-00002)" in capsys.readouterr().err
    assert main([*command, "--finalize", "--task-index", "1"]) == 2
    for element in (0, 1):  # two elements of an array, each a step of two tasks
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(element))
        monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "0")
        monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
        for task in (0, 1):
            monkeypatch.setenv("SLURM_PROCID", str(task))
            assert main(command) == 0
            text = capsys.readouterr()
            assert f"task {2 * element + task} of 4 (from SLURM_ARRAY_TASK_ID and SLURM_PROCID)" in text.err
    assert content(folder) == content(made[2])
    (folder / "manifest.json").unlink()
    assert main([*command, "--finalize"]) == 0
    assert content(folder) == content(made[2])


def run_after(barrier, call, *arguments):
    barrier.wait()
    try:
        call(*arguments)
    except MaspError as error:
        raise SystemExit(error.exit_code) from None


def test_tasks_that_finalize_at_the_same_moment(made, tmp_path):
    config = unmerged(made, tmp_path / "c")
    barrier = FORK.Barrier(4)
    processes = [FORK.Process(target=run_after, args=(barrier, finish, config)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    assert content(tmp_path / "c") == content(made[2])
    open_cache(tmp_path / "c").read(0)


def hold(path, ranges, ready, go):
    with locked(path, ranges, key="cache.dir") as free:
        assert free
        ready.set()
        go.wait(60)


def held(path, ranges):
    """Start a process that holds locks; returns it and the event that lets it go."""
    ready, go = FORK.Event(), FORK.Event()
    process = FORK.Process(target=hold, args=(path, ranges, ready, go))
    process.start()
    assert ready.wait(60)
    return process, go


def assert_waits_for(holder, config, **task):
    """Whoever extracts waits for a holder of locks, and then has nothing left to complain of."""
    process, go = holder
    waiting = FORK.Process(target=extract, args=(config,), kwargs=task)
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    go.set()
    waiting.join(60)
    process.join(60)
    assert waiting.exitcode == 0


def test_who_comes_while_another_merges_waits_for_it(made, tmp_path):
    config = unmerged(made, tmp_path / "c")
    assert_waits_for(held(tmp_path / "c" / LOCK, [(FINISHING, 1), (0, FINISHING)]), config, num_tasks=2, task_index=0)
    assert content(tmp_path / "c") == content(made[2])


@pytest.mark.parametrize("num_tasks", [1, 3])
def test_who_only_looks_at_a_complete_cache_is_waited_for(made, tmp_path, num_tasks):
    config = make_config(made[0], made[1], tmp_path / "c")
    extract(config)
    ranges = [(0, FINISHING)] if num_tasks == 1 else [(0, 1)]
    assert_waits_for(held(tmp_path / "c" / LOCK, ranges), config, num_tasks=num_tasks)
    assert content(tmp_path / "c") == content(made[2])


def test_waiting_ends_with_a_stop_and_after_some_time(made, tmp_path, monkeypatch):
    config = make_config(made[0], made[1], tmp_path / "c")
    extract(config)
    process, go = held(tmp_path / "c" / LOCK, [(0, FINISHING)])
    with StopFlag() as stop, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(extract, config, stop=stop)
        with pytest.raises(TimeoutError):
            waiting.result(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StoppedEarly, match="while waiting for another process"):
            waiting.result(60)
    monkeypatch.setattr("masp.extraction.job.MAX_WAIT", 0.3)
    with pytest.raises(FilesInUse, match="another extraction is writing there"):
        extract(config)
    go.set()
    process.join(60)


def test_who_begins_to_write_meanwhile_is_not_waited_for(made, tmp_path):
    config = make_config(made[0], made[1], tmp_path / "c")
    extract(config)
    process, go = held(tmp_path / "c" / LOCK, [(0, FINISHING)])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(extract, config)
        with pytest.raises(TimeoutError):
            waiting.result(0.5)
        (tmp_path / "c" / MANIFEST).unlink()  # the first thing that it does
        with pytest.raises(FilesInUse, match="another extraction is writing there"):
            waiting.result(60)
    go.set()
    process.join(60)


def test_two_tasks_with_the_same_index(made, tmp_path):
    config = make_config(made[0], made[1], tmp_path / "c")
    extract(config, num_tasks=3, task_index=1)
    process, go = held(tmp_path / "c" / LOCK, [(0, 1), (3, 1)])  # what task 0 of 3 holds while it works
    with pytest.raises(FilesInUse) as error:
        extract(config, num_tasks=3, task_index=0)
    assert "another extraction is writing the shards of this task (task 0 of 3)" in str(error.value)
    assert "give every task an index of its own" in str(error.value)
    with pytest.raises(FilesInUse, match="another extraction is writing there"):
        extract(config)
    extract(config, num_tasks=3, task_index=2)  # not in its way
    go.set()
    process.join(60)
    extract(config, num_tasks=3, task_index=0)
    assert content(tmp_path / "c") == content(made[2])


def test_holding_is_over_when_it_is_over(tmp_path):
    for _ in range(2):
        with holding(tmp_path, [(0, 1)]):
            pass
