"""What asks a run to stop, and that it only sets a flag."""

import os
import signal
import subprocess
import sys

import pytest

from masp.errors import InputError
from masp.runtime.log import setup
from masp.runtime.stop import STOP_SIGNALS, StopFlag, StopRequests


@pytest.mark.parametrize("number", STOP_SIGNALS)
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


def test_a_signal_after_the_work_is_done_does_not_fail_the_process():
    code = """
import os, signal, sys
from masp.runtime.stop import StopFlag
with StopFlag() as stop:
    stop.done()
class Late:  # collected while Python shuts down
    def __del__(self, kill=os.kill, pid=os.getpid(), number=int(sys.argv[1])):
        kill(pid, number)
sys.late = Late()
"""
    for number in STOP_SIGNALS:
        done = subprocess.run([sys.executable, "-c", code, str(int(number))], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


SWALLOWED = """
import os, signal, sys, time
from masp.cli.ending import exit_code
from masp.runtime.stop import StopFlag, end_process, stop_at_once

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)  # whose handler raises in here, where Python cannot pass it on

def command():
    Finalized()
    print("goes on")
    if sys.argv[1] == "flag":
        with StopFlag() as stop:
            time.sleep(4)  # longer than until it is raised again
            print(f"stop: {bool(stop)}")
        return 0
    if sys.argv[1] == "error":
        raise ImportError("what a library makes of it")
    time.sleep(60)
    return 0

stop_at_once()
end_process(exit_code(command, lambda: print("interrupted")))
"""


@pytest.mark.parametrize(
    ("how", "code", "out"), [("flag", 0, "goes on\nstop: True\n"), ("error", 75, "goes on\n"), ("", 75, "goes on\n")]
)
def test_a_stop_that_is_swallowed_is_heard_all_the_same(how, code, out):
    done = subprocess.run([sys.executable, "-c", SWALLOWED, how], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (code, out), done.stderr
    assert done.stderr.count("\n") == (code == 75) and ("error: stopped on request; " in done.stderr) == (code == 75)


UNWINDING = """
import os, signal, sys
from masp.cli.ending import exit_code
from masp.runtime.stop import end_process, stop_at_once

def command():
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
    finally:
        os.kill(os.getpid(), int(sys.argv[2]))

stop_at_once()
end_process(exit_code(command, lambda: print("interrupted")))
"""


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [("SIGTERM", "SIGTERM", 75), ("SIGINT", "SIGUSR2", 75), ("SIGTERM", "SIGINT", 75), ("SIGINT", "SIGINT", 130)],
)
def test_a_second_signal_while_it_stops(first, second, code):
    numbers = (str(int(signal.Signals[name])) for name in (first, second))
    done = subprocess.run([sys.executable, "-c", UNWINDING, *numbers], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (code, "interrupted\n" * (code == 130)), done.stderr


def test_a_process_that_was_forked_leaves_stopping_to_its_parent():
    code = """
import os, signal, time
from masp.runtime.stop import stop_at_once
stop_at_once()
child = os.fork()
if not child:
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50).stdout == "7\n"
