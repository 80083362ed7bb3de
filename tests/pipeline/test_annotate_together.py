"""`masp annotate` by several at once: real processes on one cache, and users of one group with any umask."""

import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from masp.config import Config, save_config
from tests.annotated import changed, copy_cache, files_of, make_annotated
from tests.commands import IMPORTS, Commands
from tests.pipeline.test_annotate import LONG

pytestmark = pytest.mark.full

GROUP, OTHER = 54000, 54002
"""A group of users of this machine, and another one of them; neither needs to have a name."""
MEMBER = f"""
import ctypes
os.setgroups([{GROUP}]); os.setgid({GROUP}); os.umask(int(os.environ["MASP_TEST_UMASK"], 8))
no_privileges = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # see capset(2)
assert not ctypes.CDLL(None).capset(*no_privileges)
run_process()
"""
"""A user of the group, to whom permissions apply: root, who can read this Python wherever it is, without privileges."""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    return make_annotated(tmp_path_factory.mktemp("together"), num_train=40, num_test=10)


@pytest.fixture(scope="module")
def whole(commands, config, tmp_path_factory) -> dict[str, bytes]:
    """What one process stores."""
    directory = tmp_path_factory.mktemp("whole")
    alone = copy_cache(config, directory)
    save_config(alone, directory / "config.yaml")
    commands.ok("annotate", "--config", directory / "config.yaml")
    return files_of(alone)


def test_three_processes_at_once_store_what_one_stores(commands, config, whole, tmp_path):
    own = copy_cache(config, tmp_path)
    save_config(own, tmp_path / "config.yaml")
    share = ("--num-tasks", 3, "--task-index")
    running = [commands.start("annotate", "--config", tmp_path / "config.yaml", *share, index) for index in range(3)]
    results = [each.wait() for each in running]
    assert [result.code for result in results] == [0, 0, 0], results
    finished = [result for result in results if "masp train" in result.last_line]
    waiting = [result for result in results if "other shards" in result.last_line]
    assert len(finished) >= 1 and len(finished) + len(waiting) == 3, results
    assert files_of(own) == whole


def test_of_three_that_would_do_the_same_one_works_and_the_others_say_so(commands, config, whole, tmp_path):
    own = copy_cache(config, tmp_path)
    save_config(own, tmp_path / "config.yaml")
    results = [
        each.wait() for each in [commands.start("annotate", "--config", tmp_path / "config.yaml") for _ in "123"]
    ]
    refused = [result for result in results if result.code == 2]
    assert all("another annotation is writing there" in result.stderr for result in refused)
    assert all(result.code in (0, 2) for result in results) and len(refused) < 3
    assert files_of(own) == whole


@dataclass
class Shared:
    """A directory that belongs to another user and to a group, and `masp` as a user of that group."""

    config: Config
    path: Path
    run: Commands

    @property
    def annotations(self) -> Path:
        return Path(self.config.cache.dir) / "annotations"

    def start(self, umask: str, *arguments: object):
        return self.run.start("annotate", "--config", self.path, *arguments, MASP_TEST_UMASK=umask)

    def is_of_other_user(self) -> None:
        """Let everything belong to the other user, as if that one had made it; permissions stay."""
        for path in (self.path.parent, *self.path.parent.rglob("*")):
            os.chown(path, OTHER, GROUP)

    def modes(self) -> dict[str, set[str]]:
        """Permissions of the files and of the directories of the answers."""
        found: dict[str, set[str]] = {"files": set(), "directories": set()}
        for path in (self.annotations, *self.annotations.rglob("*")):
            mode = stat.S_IMODE(path.stat().st_mode)
            assert path.stat().st_gid == GROUP
            found["directories" if path.is_dir() else "files"].add(f"{mode & 0o777:o}")
        return found


@pytest.fixture
def shared(config) -> Iterator[Shared]:
    """A copy of the cache as a group shares one: it belongs to one user, and new files in it to the group."""
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    with tempfile.TemporaryDirectory() as name:  # pytest's own directories are closed to others
        directory = Path(name)
        own = copy_cache(config, directory)
        images, vlm = (Path(value) for value in (config.dataset.root, config.vlm.path))
        for source, place in ((images, "images"), (vlm, "vlm"), (Path(config.aspect_definitions), "aspects.yaml")):
            source = source.resolve()
            (shutil.copytree if source.is_dir() else shutil.copy)(source, directory / place)
        own = changed(
            own, directory, f"dataset.root={directory / 'images'}", f"vlm.path={directory / 'vlm'}",
            f"aspect_definitions={directory / 'aspects.yaml'}", f"output_dir={directory / 'run'}", *LONG,
        )  # fmt: skip
        save_config(own, directory / "config.yaml")
        for path in (directory, *directory.rglob("*")):
            path.chmod(0o2775 if path.is_dir() else 0o664)
        with Commands(directory, IMPORTS, MEMBER) as run:
            shared = Shared(own, directory / "config.yaml", run)
            shared.is_of_other_user()
            for path in (directory, *directory.rglob("*")):  # a new owner clears it
                if path.is_dir():
                    path.chmod(0o2775)
            yield shared


def test_another_user_of_the_group_goes_on(shared):
    first = shared.start("002")
    first.when(lambda: any(shared.annotations.glob(".parts/*/*.json")))
    first.kill(signal.SIGTERM)
    stopped = first.wait()
    assert stopped.code == 75, stopped
    kept = {path: path.read_bytes() for path in shared.annotations.glob(".parts/*/*.json")}
    assert shared.modes() == {"files": {"664"}, "directories": {"775"}}
    shared.is_of_other_user()
    done = shared.start("002").wait()
    assert done.code == 0 and "masp train" in done.last_line, done
    assert kept and all(path.read_bytes() == data for path, data in kept.items())
    assert shared.modes() == {"files": {"664"}, "directories": {"775"}}
    assert {path.stat().st_uid for path in shared.annotations.rglob("*.parquet")} == {os.getuid()}
    shared.is_of_other_user()
    forgotten = shared.start("002", "--forget", "weather").wait()
    assert forgotten.code == 0 and not (shared.annotations / "weather.parquet").exists(), forgotten


@pytest.mark.parametrize(
    ("umask", "files", "directories"),
    [("077", "600", "700"), ("027", "640", "750")],
)
def test_what_the_umask_keeps_to_oneself_stays_so_and_another_user_is_told(shared, umask, files, directories):
    first = shared.start(umask, "annotate.aspects=[weather]").wait()
    assert first.code == 0, first
    assert shared.modes() == {"files": {files}, "directories": {directories}}
    before = files_of(shared.config)
    shared.is_of_other_user()
    refused = shared.start("002").wait()
    lines = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert refused.code == 2 and len(lines) == 1 and "Permission denied" in lines[0], refused
    assert str(shared.annotations) in lines[0] and "Traceback" not in refused.stderr
    assert files_of(shared.config) == before
