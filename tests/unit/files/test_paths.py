"""In place of a file there may be a FIFO, which waits for a writer, or an endless device: one line, at once."""

import ast
import contextlib
import os
import shutil
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

from launch.follow import _print_log
from masp.artifacts.released_format import read_released_aspects, read_released_soft_prompt
from masp.artifacts.store import load_aspects, load_soft_prompt
from masp.cache.reader import open_cache
from masp.cache.verify import verify_cache
from masp.errors import MaspError
from masp.extraction.changes import estimate_quarantined
from masp.files.jsonl import append_line
from masp.files.locks import holding, is_held
from masp.files.sealed import digest_file
from masp.files.text import users_error
from masp.results.attention_maps import AttentionFile, read_attention
from masp.results.ledger_file import Ledger, directory_lock, is_being_written
from masp.results.ledger_format import MapPlace
from masp.results.ledgers.index import LedgerIndex
from masp.results.ledgers.reader import LedgerReader, read_header
from masp.results.ledgers.slices import Slice, SliceLog
from masp.results.records import read_records_file
from masp.runtime.run_directory import RunLock
from masp.training.checkpoint import Checkpoint, load_latest, save_checkpoint
from masp.training.logs import KeyLog, TrainingLog
from tests.small_cache import make_small_cache
from tests.unit.test_architecture import REPOSITORY


def opened_cache(path: Path) -> None:
    with contextlib.closing(open_cache(path.parent.parent)) as cache:
        cache.read(len(cache) - 1)


def verified(path: Path) -> None:
    problems = verify_cache(path.parents[1])
    raise MaspError("; ".join(map(str, problems)) if problems else "no problem")


def with_checkpoint(directory: Path) -> None:
    checkpoint = Checkpoint(1, {"seed": 1}, {"weight": torch.ones(2)})
    save_checkpoint(directory / "checkpoints", checkpoint, keep=1)


def logged(path: Path) -> None:
    with KeyLog(path.parents[1], 0, 1):
        pass


def slices(path: Path) -> None:
    SliceLog(path.parent, {}).append("begun", Slice())


def appended(path: Path) -> None:
    (path.parent / "slices.log").unlink(missing_ok=True)
    log = SliceLog(path.parent, {})
    log.path = path
    log.append("begun", Slice())


def held(path: Path) -> None:
    with holding(path, "taken", key="output_dir"):
        pass


def locked_directory(path: Path) -> None:
    with directory_lock(path.parent):
        pass


def ledger(path: Path) -> None:
    with Ledger(path.parent, "rank-0", {}):
        pass


# What is made beside it, the file's name, and its reader or writer.
FILES = {
    "digest": (None, "file", digest_file),
    "tar of a cache": (make_small_cache, "shards/train-00001.tar", opened_cache),
    "tar to verify": (make_small_cache, "shards/train-00001.tar", verified),
    "index of a cache": (make_small_cache, "index.h5", lambda p: open_cache(p.parent)),
    "sidecar": (make_small_cache, "shards/train-00001.json", verified),
    "sidecar's head": (
        make_small_cache,
        "shards/train-00001.json",
        lambda p: estimate_quarantined(p.parents[1], ["train-00001"]),
    ),
    "line to append": (None, "file.jsonl", lambda p: append_line(p, {})),
    "lock": (None, "file.lock", held),
    "lock of another": (None, "file.lock", is_held),
    "attention maps": (
        None,
        "rank-0.attention",
        lambda p: read_attention(p.parent, MapPlace("rank-0", 0, (1, 1, 1), 0)),
    ),
    "attention maps to write": (
        None,
        "rank-0.attention",
        lambda p: AttentionFile(p.parent, "rank-0").append(np.ones((1, 1, 1))),
    ),
    "ledger": (None, "rank-0.jsonl", lambda p: list(LedgerReader(p).chunks())),
    "header of a ledger": (None, "rank-0.jsonl", read_header),
    "ledger to write": (None, "rank-0.jsonl", ledger),
    "lock of a ledger": (None, ".rank-0.lock", ledger),
    "lock of another's ledger": (None, ".rank-0.lock", lambda p: is_being_written(p.with_name("rank-0.jsonl"))),
    "lock of a directory": (None, ".lock", locked_directory),
    "index of a ledger": (
        None,
        ".rank-0.index",
        lambda p: LedgerIndex(p.with_name("rank-0.jsonl"), {}, b"", lambda *_: 0).positions(),
    ),
    "slices": (None, "slices.log", slices),
    "slices to write": (None, "other.log", appended),
    "records": (None, "records.h5", read_records_file),
    "released aspects": (None, "aspect.pth", lambda p: read_released_aspects(str(p))),
    "released soft prompt": (None, "prompt.pt", lambda p: read_released_soft_prompt(str(p), 4)),
    "aspects": (None, "a.safetensors", lambda p: load_aspects(str(p), ["scene"], 4)),
    "soft prompt": (None, "a.safetensors", lambda p: load_soft_prompt(str(p), 4)),
    "tensors of a checkpoint": (
        with_checkpoint,
        "checkpoints/step-00000001/state.safetensors",
        lambda p: load_latest(p.parents[1], {"seed": 1}),
    ),
    "state of a checkpoint": (
        with_checkpoint,
        "checkpoints/step-00000001/state.json",
        lambda p: load_latest(p.parents[1], {"seed": 1}),
    ),
    "metrics of training": (None, "metrics.jsonl", lambda p: TrainingLog(p.parent, "stage1", 1, 0, 1)),
    "key log": (None, "keys/rank-0.jsonl", logged),
    "lock of a run": (None, ".lock", lambda p: RunLock(p.parent).take()),
    "log of a job": (None, "1_0_log.out", lambda p: _print_log(p, 5)),
}


def put(path: Path, what: str) -> None:
    """Put something that is not a regular file where one is expected."""
    match what:
        case "FIFO":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "socket":
            with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
                server.bind(path.name)  # by its name: the whole path would be too long for a socket's
        case "directory":
            path.mkdir()


@contextlib.contextmanager
def at_once():
    """Fails after a second instead of hanging."""

    def ring(*_):
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("what", ["FIFO", "device", "socket", "directory"])
@pytest.mark.parametrize("name", FILES)
def test_what_is_not_a_regular_file_is_one_line_at_once(name, what, tmp_path, tmp_path_factory):
    make, file, use = FILES[name]
    directory = tmp_path / "files"
    if make is not None:
        made = tmp_path_factory.getbasetemp() / f"made by {make.__name__}"
        if not made.exists():
            make(made)
        shutil.copytree(made, directory)
    else:
        directory.mkdir()
    path = directory / file
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    put(path, what)
    with at_once():
        try:
            use(path)
        except MaspError as error:
            line = str(error)
        except OSError as error:
            line = users_error(error)
    assert line and "\n" not in line and path.name.split(".")[0] in line, line


def test_what_is_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.truncate(1 << 42)  # sparse: it takes no space
    for use in (digest_file, lambda p: read_released_aspects(str(p))):
        with at_once():
            try:
                use(path)
            except (MaspError, OSError) as error:
                line = str(error) if isinstance(error, MaspError) else users_error(error)
        assert "file" in line and "4,398,046,511,104 bytes; must be at most" in line
    make_small_cache(tmp_path / "cache")
    os.truncate(tmp_path / "cache" / "shards" / "train-00001.tar", 1 << 42)
    with at_once():
        (problem,) = verify_cache(tmp_path / "cache")
    assert problem.what.startswith("has 4398046511104 bytes instead of ")


OPENERS = {"masp/files/regular.py", "masp/files/hdf5.py"}
"""Where files are opened for reading: the other readers use these."""
KNOWN = {
    "launch/submission/local_driver.py: open",  # a log in a directory that it has made itself
    "masp/demo/world/write_dataset.py: read_bytes",  # images that it has written itself
    "masp/files/atomic.py: open",  # a temporary file of its own, and directories
    "launch/job/pickles.py: open",  # a new file
    "masp/cli/ending.py: open",  # the null device
}


def test_no_other_module_opens_a_file_for_reading():
    found = set()
    for path in [*(REPOSITORY / "masp").rglob("*.py"), *(REPOSITORY / "launch").rglob("*.py")]:
        name = str(path.relative_to(REPOSITORY))
        calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        found |= {f"{name}: {opened}" for call in calls if (opened := opens(call))}
    found = {line for line in found if line.partition(":")[0] not in OPENERS}
    assert found == KNOWN


def opens(call: ast.Call) -> str | None:
    """How a call opens a file that may be there already; None if it does not."""
    function = ast.unparse(call.func)
    name = function.rpartition(".")[2]
    if name in ("read_text", "read_bytes"):
        return name if "." in function else None  # a method of a path, not the function of `masp.files.regular`
    if function not in ("open", "io.open", "os.open", "h5py.File") and not function.endswith(("path.open", ").open")):
        return None
    if call.args and isinstance(call.args[0], ast.Call):
        return None  # a descriptor that `open_descriptor` returns
    modes = [node.value for node in (*call.args, *(k.value for k in call.keywords)) if isinstance(node, ast.Constant)]
    return None if any(mode in ("w", "wb", "x", "xb") for mode in modes) else "open"
