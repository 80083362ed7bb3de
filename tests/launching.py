"""Runs `python -m launch …` inside this process, which has already imported everything heavy."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
from collections.abc import Mapping
from unittest import mock

from launch.cli import main
from tests.runs import REPOSITORY


def call_launch(*arguments: object, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run it in the repository root; returns exit code, stdout and stderr.

    Args:
        environment: Variables to set during the call, such as those of a private cluster.
    """
    output, errors = io.StringIO(), io.StringIO()
    line = [str(argument) for argument in arguments]
    with mock.patch.dict(os.environ, environment or {}), contextlib.chdir(REPOSITORY):
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            code = main(line)
    return subprocess.CompletedProcess(line, code, output.getvalue(), errors.getvalue())
