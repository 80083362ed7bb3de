"""What asks a run to stop, and that it only sets a flag."""

import os
import signal
import subprocess
import sys

import pytest

from masp.errors import InputError
from masp.runtime.log import setup
from masp.runtime.stop import StopFlag, StopRequests


@pytest.mark.parametrize("number", StopFlag.SIGNALS)
def test_a_signal_sets_the_flag_and_is_noted(number, capsys):
    setup(0)
    before = signal.getsignal(number)
    with StopFlag() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop and stop.received == {number}
    assert signal.getsignal(number) == before
    assert capsys.readouterr().err == f"note: {signal.Signals(number).name}: stopping as soon as that is clean\n"


def test_a_second_ctrl_c_interrupts():
    # An earlier test of this process may have left another handler.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopFlag() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
            assert stop
    finally:
        signal.signal(signal.SIGINT, before)


def test_each_request_is_named_and_the_file_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(StopRequests, "CHECK_EVERY_S", 0)
    flag = StopFlag()
    requests = StopRequests(flag, tmp_path, 1e-9, True)
    assert requests.raised() == [False, False, True]
    assert requests.why([False, False, True]) == "at its time limit, engine.time_limit_min = 1e-09,"
    (tmp_path / "STOP").touch()
    assert requests.raised() == [False, True, True]
    assert requests.why([False, True, True]) == f"by the file {tmp_path / 'STOP'}"
    flag.set()
    assert requests.raised() == [True, True, True] and requests.why([True, True, True]) == "on request"
    assert StopRequests(flag, tmp_path, 1e-9, False).raised() == [True, False, False]
    requests.done()
    assert list(tmp_path.iterdir()) == [] and requests.why([False, False, False]) == ""


def test_a_run_directory_that_cannot_be_examined_is_one_line(tmp_path):
    requests = StopRequests(StopFlag(), tmp_path / ("n" * 300), None, True)
    with pytest.raises(InputError, match="cannot be examined: File name too long"):
        requests.raised()


TEARDOWN_ABORTS = """
import atexit, os, sys, threading, time
from pathlib import Path
from masp.runtime.stop import end_process

class Aborts:
    def __del__(self):
        os.abort()

keep = Aborts()  # until the interpreter is torn down
atexit.register(print, "atexit")
threading.Thread(target=lambda: (time.sleep(0.2), Path(sys.argv[1]).write_text("written"))).start()
print("result", end="")
"""


@pytest.mark.parametrize("code", [0, 75])
def test_the_teardown_of_the_interpreter_cannot_change_the_exit_code(tmp_path, code):
    def run(last_line):
        command = [sys.executable, "-c", TEARDOWN_ABORTS + last_line, str(tmp_path / "file")]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert run(f"sys.exit({code})").returncode == -signal.SIGABRT  # what this is about
    (tmp_path / "file").unlink(missing_ok=True)
    ended = run(f"end_process({code})")
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "resultatexit\n", "")
    assert (tmp_path / "file").read_text() == "written"


def test_output_that_cannot_be_written_is_not_success():
    with open("/dev/full", "w") as full:
        code = "from masp.runtime.stop import end_process; print('result'); end_process(0)"
        assert subprocess.run([sys.executable, "-c", code], stdout=full, timeout=60).returncode == 1
    code = "import sys; sys.stdout = None; from masp.runtime.stop import end_process; end_process(0)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
