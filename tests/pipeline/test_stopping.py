"""A request to stop ends every command with exit code 75 and one line, also while it is still starting."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from masp.runtime.run_directory import read_status
from masp.runtime.stop import STOP_SIGNALS

COMMANDS = ("extract", "annotate", "train", "evaluate", "predict", "run")


class Starting:
    """`masp …` as a user starts it, nothing imported for it; in a process group of its own."""

    def __init__(self, *argv: object):
        command = [sys.executable, "-m", "masp", *map(str, argv)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, start_new_session=True, **pipes)

    def wait_for_handler(self) -> None:
        """Wait until Python would not end by the signals any more, which is before it has imported any library."""
        wanted = sum(1 << (number - 1) for number in STOP_SIGNALS)
        while True:
            caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{self.process.pid}/status").read_text())
            if int(caught[1], 16) & wanted == wanted:
                return
            time.sleep(0.001)

    def has_mapped(self, library: str) -> bool:
        return library in Path(f"/proc/{self.process.pid}/maps").read_text()

    def end(self, number: int) -> tuple[int, list[str]]:
        """Send a signal to all of its processes; its exit code and the lines of standard error."""
        os.killpg(self.process.pid, number)
        _, err = self.process.communicate(timeout=120)
        return self.process.returncode, err.splitlines()


@pytest.fixture
def start(world, trained, tmp_path):
    def call(name: str) -> Starting:
        own = world.settings(tmp_path / "run", f"cache.dir={tmp_path / 'cache'}")
        on_cache = world.settings(tmp_path / "run")
        done = world.settings(tmp_path / "run", *(f"checkpoint.{key}={path}" for key, path in (
            ("aspect", trained / "stage1" / "aspect.safetensors"),
            ("soft_prompt", next((trained / "stage2").glob("*.safetensors"))),
        )))  # fmt: skip
        image = next((world.folder / "pictures" / "test").rglob("*.png"))
        arguments = {
            "extract": own,
            "annotate": on_cache,
            "train": ("--stage", "stage1", *on_cache),
            "evaluate": done,
            "predict": (image, *done),
            "run": own,
        }
        return Starting(name, *arguments[name])

    return call


def assert_stopped(ended: tuple[int, list[str]]) -> None:
    code, err = ended
    errors = [line for line in err if line.startswith("error: ")]
    assert code == 75 and err[-1:] == errors and len(errors) == 1, ended
    assert "stopped on request" in errors[0] and "Traceback" not in " ".join(err), ended


@pytest.mark.parametrize(("name", "number"), list(zip(COMMANDS, 2 * STOP_SIGNALS, strict=True)))
def test_a_signal_before_anything_is_imported(start, name, number):
    running = start(name)
    running.wait_for_handler()
    assert not running.has_mapped("libtorch")
    assert_stopped(running.end(number))


@pytest.mark.parametrize("name", ["annotate", pytest.param("run", marks=pytest.mark.full)])
def test_a_signal_while_libraries_are_imported(start, name):
    running = start(name)
    while not running.has_mapped("libtorch"):
        time.sleep(0.001)
    assert_stopped(running.end(signal.SIGTERM))


@pytest.mark.full
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_at_any_moment(start, name, tmp_path):
    """Later and later, until one comes too late; the command then goes on to its end."""
    delay_s, codes = 0.2, []
    while True:
        running = start(name)
        running.wait_for_handler()
        time.sleep(delay_s)
        if running.process.poll() is not None:
            break
        ended = running.end(STOP_SIGNALS[len(codes) % 3])
        codes.append(ended[0])
        if ended[0] == 0:  # it was done already
            break
        assert_stopped(ended)
        delay_s = 1.3 * delay_s + 0.3
    assert codes.count(75) > 3
    last = start(name)
    assert last.process.wait(timeout=300) == 0, last.process.stderr.read()
    if name == "train":
        assert read_status(tmp_path / "run" / "stage1").state == "finished"
