"""A small cache, the commands on it, and processes that can be killed between any two files."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from masp.cache.layout import LAYOUT, layout_bytes, make_generation, read_layout, shards_of
from masp.cache.merge import finalize
from masp.cache.remote import transfers
from masp.cache.shard_state import Source, fingerprint_of
from masp.cache.writer import ShardWriter
from masp.cli.main import main
from masp.data.sample import Sample
from tests.commands import Commands
from tests.hub_server import Hub
from tests.small_cache import make_small_cache

# A process of its own per command, which kills itself before it gives the file its name that KILL_AT counts to.
IMPORTS = """
import threading, huggingface_hub, masp.cache.describe, masp.cache.verify
import masp.cache.remote.hub, masp.cache.remote.pull, masp.cache.remote.push, masp.files.atomic as atomic
from masp.cli.main import run_process
publish, count, lock = atomic.publish, 0, threading.Lock()
def kill_or_publish(temporary, path):
    global count
    with lock:
        count += 1
        if str(count) == os.environ.get("KILL_AT"):
            os.kill(os.getpid(), 9)
        publish(temporary, path)
atomic.publish = kill_or_publish
from fsspec.implementations.local import LocalFileSystem
put, puts = LocalFileSystem.put_file, 0
def kill_or_put(*arguments, **options):
    global puts
    puts += 1
    if str(puts) == os.environ.get("KILL_AT_PUT"):
        os.kill(os.getpid(), 9)
    put(*arguments, **options)
LocalFileSystem.put_file = kill_or_put
"""


@pytest.fixture(scope="package")
def small(tmp_path_factory):
    """A cache of three shards. Read-only."""
    return make_small_cache(tmp_path_factory.mktemp("small") / "cache")


@pytest.fixture(scope="package")
def other(tmp_path_factory):
    """A cache of the same layout, made from other images. Read-only."""
    return make_small_cache(tmp_path_factory.mktemp("other") / "cache", separator=9)


@pytest.fixture
def cache(small, tmp_path):
    """A copy of the small cache."""
    return shutil.copytree(small, tmp_path / "cache")


@pytest.fixture
def run(capsys):
    """Runs a command in this process: `run(*argv) -> (code, last line of stdout, error line)`."""

    def run(*argv):
        code = main([str(argument) for argument in argv])
        out, err = capsys.readouterr()
        errors = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
        assert len(errors) == (code != 0) and "Traceback" not in err, err
        return code, out.strip().splitlines()[-1] if out.strip() else "", errors[0] if errors else ""

    return run


@pytest.fixture
def no_waiting(monkeypatch):
    """What failed is tried again at once."""
    monkeypatch.setattr(transfers, "WAITS_S", (0.0, 0.0))


@pytest.fixture(scope="package")
def hub():
    """A hub on this machine. Each test uses a repository of its own, and puts `before` back."""
    with Hub("token of a test") as hub:
        yield hub


@pytest.fixture(scope="package")
def processes(hub, tmp_path_factory):
    """Runs `masp …` in processes of their own, whose hub is that one."""
    folder = tmp_path_factory.mktemp("processes")
    environment = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",  # its storage has another protocol than HTTP
        "HF_TOKEN": hub.token,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        commands = Commands(folder, IMPORTS)
    with commands:
        yield commands


def content(directory):
    """Name -> bytes of all files of a cache but its lock."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def times(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file() and path.name != ".lock"}


def flip(path, position=-700):
    data = bytearray(path.read_bytes())
    data[position] ^= 16
    path.write_bytes(data)


def extend(directory):
    """Add two images, which cannot be read, as a generation of their own."""
    layout = read_layout(directory)
    added = [Sample(f"train/awe/{n}%2Ejpg", "train", Path("none"), "awe", {}) for n in ("x", "y")]
    extended = replace(layout, generations=(*layout.generations, make_generation(layout, added)))
    (directory / LAYOUT).write_bytes(layout_bytes(extended))
    for shard in shards_of(extended, added, 3):
        if shard.generation:
            writer = ShardWriter(directory, shard, fingerprint_of(extended))
            for sample in shard.samples:
                writer.quarantine(sample, "train/awe/x.jpg", "file not found", Source(None, None, None))
            writer.finish()
    finalize(directory, extended)
    return directory
