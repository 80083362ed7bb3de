"""How a command ends: whatever stops it becomes one line and an exit code. `masp` and `launch` share this."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
from collections.abc import Callable

from masp.errors import InputError, MaspError, StoppedEarly
from masp.files.text import users_error
from masp.runtime.log import say_error
from masp.runtime.log import setup as set_up_logging
from masp.runtime.stop import StopNow, is_stop_raised, stop_no_more

INTERRUPTED = 128 + signal.SIGINT
"""Exit code after a Ctrl-C that did not wait for anything to stop cleanly, the one that shells use."""
READER_GONE = 128 + signal.SIGPIPE
"""Exit code where the reader of the output has gone, as `masp study --list | head` would end if Python did not catch
the signal."""


def exit_code(
    command: Callable[[], int], on_interrupt: Callable[[], object], begin: Callable[[], object] = lambda: None
) -> int:
    """Run a command and say what stops it.

    Args:
        command: The command; returns its exit code.
        on_interrupt: Says what an interruption from the keyboard means.
        begin: Called before anything else; may let signals raise `StopNow`, which means a stop from then on.

    Returns:
        The exit code.

    Raises:
        Exception: A bug, which keeps its traceback.
    """
    try:
        code = _until_stopped(command, begin)
        if sys.stdout is not None:  # as it is if the process was started without one
            sys.stdout.flush()
        return code
    except MaspError as error:
        say_error(error)
        return error.exit_code
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        return READER_GONE
    except OSError as error:
        message = users_error(error)
        if message is None:
            raise
        say_error(message)
        return InputError.exit_code
    except KeyboardInterrupt:
        on_interrupt()
        return INTERRUPTED


def _set_up() -> None:
    """Logging and the streams of this process."""
    set_up_logging()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            # File names may not be UTF-8, and a terminal may lack a character; neither is a reason to fail.
            stream.reconfigure(errors="backslashreplace")


def _until_stopped(command: Callable[[], int], begin: Callable[[], object]) -> int:
    """Run a command, see `masp.runtime.stop.stop_at_once`.

    Raises:
        StoppedEarly: A signal arrived where nothing looked at a flag.
    """
    try:
        begin()
        _set_up()
        code = command()
    except (StoppedEarly, SystemExit):
        stop_no_more()
        raise
    except BaseException as error:
        if is_stop(error):
            stop_no_more()
            raise StoppedEarly(
                "stopped on request; what is finished is kept, the same command goes on from there"
            ) from None
        raise
    stop_no_more()
    return code


def is_stop(error: BaseException) -> bool:
    """Whether an error is a request to stop, or what a library has made of one."""
    return isinstance(error, StopNow) or (is_stop_raised() and isinstance(error, Exception))


def _reader_is_gone() -> bool:
    """Whether the reader of standard output has gone; if so, what is still to be written is discarded."""
    out = sys.stdout.fileno()
    states = select.poll()
    states.register(out, 0)
    if not any(state & select.POLLERR for _, state in states.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), out)
    return True
