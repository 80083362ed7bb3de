"""`main`: dispatch, errors as one line, and exit codes."""

import errno
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from masp import __version__
from masp.cli import report
from masp.cli.main import main, run_process
from masp.errors import DataError, InputError, MaspError, StoppedEarly
from tests.runs import REPOSITORY


@pytest.fixture
def ends(monkeypatch, capfd):
    """Runs `masp report run` with a report that ends in a given way; returns exit code, output and errors."""

    def run(end):
        def command(arguments):
            assert arguments.run_dir == "run"
            if isinstance(end, BaseException):
                raise end
            print("done")
            return end

        monkeypatch.setattr(report, "run", command)
        code = main(["report", "run"])
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return run


def test_a_command_that_succeeds(ends):
    assert ends(0) == (0, "done\n", "")


@pytest.mark.parametrize(
    ("error", "code"),
    [(InputError("a\nb"), 2), (DataError("a\nb"), 3), (StoppedEarly("a\nb"), 75), (MaspError("a\nb"), 1)],
)
def test_an_error_is_one_line_and_an_exit_code(ends, error, code):
    assert ends(error) == (code, "", "error: a\\nb\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line(ends, number):
    code, _, err = ends(OSError(number, os.strerror(number), "/x/run\n1"))
    assert code == 2
    assert err == "error: no space is left for /x/run\\n1; free some and run the same command again\n"
    assert ends(OSError(number, os.strerror(number)))[2].startswith("error: no space is left; ")


@pytest.mark.parametrize(
    "number",
    [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.ESTALE],
    ids=lambda number: errno.errorcode[number],
)
def test_a_path_that_cannot_be_used_is_one_short_line(ends, number):
    assert ends(OSError(number, os.strerror(number), "a\nb")) == (2, "", f"error: a\\nb: {os.strerror(number)}\n")
    assert len(ends(OSError(number, os.strerror(number), "x" * 5000))[2]) < 400


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error", "file"),
        PermissionError(errno.EACCES, "Permission denied"),  # of no file: a socket, say
        FileNotFoundError(errno.ENOENT, "No such file or directory", "file"),
        RuntimeError("a bug"),
        KeyError("x"),
    ],
)
def test_anything_else_is_a_bug_with_a_traceback(ends, error):
    with pytest.raises(type(error)):
        ends(error)


@pytest.mark.parametrize(
    "argv",
    [
        ["cache", "info", "LONG"],
        ["cache", "verify", "LONG"],
        ["report", "LONG"],
        ["compare", "LONG", "other"],
        ["plan", "--config", "LONG"],
        ["plan", "--config", "configs/demo.yaml", "--rate-from", "LONG"],
        ["plan", "--config", "configs/demo.yaml", "dataset.root=LONG"],
        ["plan", "--config", "configs/demo.yaml", "vlm.path=LONG"],
        ["train", "--stage", "stage1", "--config", "configs/demo.yaml", "cache.dir=LONG"],
        ["train", "--stage", "stage1", "--config", "configs/demo.yaml", "output_dir=LONG"],
        ["make-demo-data", "LONG", "--num-train", "1", "--num-test", "1"],
    ],
    ids=" ".join,
)
def test_a_name_that_is_too_long_is_one_line(argv, monkeypatch, capfd):
    monkeypatch.chdir(REPOSITORY)
    assert main([argument.replace("LONG", "x" * 300) for argument in argv]) == 2
    err = capfd.readouterr().err.splitlines()[-1]
    assert err.startswith("error: ") and "File name too long" in err and len(err) < 800


def test_an_interruption(ends):
    code, _, err = ends(KeyboardInterrupt())
    assert code == 130 and err.startswith("error: interrupted; ") and err.count("\n") == 1


def test_a_broken_pipe_that_is_not_standard_output_is_a_bug(ends):
    with pytest.raises(BrokenPipeError):
        ends(BrokenPipeError())


@pytest.mark.parametrize("module", ["masp", "masp.cli"])
def test_as_a_module(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"masp {__version__}\n", "")


def test_as_the_installed_command():
    declared = (REPOSITORY / "setup.py").read_text()
    assert '"masp = masp.cli.main:run_process"' in declared
    point = importlib.metadata.EntryPoint("masp", "masp.cli.main:run_process", "console_scripts")
    assert point.load() is run_process


def test_under_torchrun():
    """As `-m masp.cli` it runs in tests/distributed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "masp"]
    done = subprocess.run([*command, "--version"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, f"masp {__version__}\n"), done.stderr


@pytest.mark.full
def test_under_deepspeed():
    """It adds `--local_rank=0` to the command line."""
    command = [Path(sys.executable).with_name("deepspeed"), "--num_accelerators", "1", "--module", "masp.cli"]
    done = subprocess.run([*command, "--version"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and f"\nmasp {__version__}\n" in done.stdout, (done.stdout, done.stderr)


def test_a_missing_command_names_all(capsys):
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2 and "required: COMMAND" in capsys.readouterr().err


def test_names_that_are_not_utf8_are_printed_to_a_strict_terminal(tmp_path):
    code = f"import sys; from masp.cli.main import main; sys.exit(main(['report', {str(tmp_path)!r} + '/\\udcff']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        timeout=60,
    )
    assert done.returncode == 2 and done.stderr.startswith(b"error: ") and b"\\udcff" in done.stderr, done.stderr
