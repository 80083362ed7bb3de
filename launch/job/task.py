"""What starts on a node: `python -m launch.job.task DIRECTORY` calls submitit's entry point with a signal blocked.

The signal ahead of a time limit may arrive while Python is still importing, and would then kill the process for good.
So it is blocked until the job has installed its handlers (`launch.job.jobs`).
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from masp.runtime import parent as _parent  # noqa: F401 - notes the launcher at once

_PATIENCE_S = 60
"""The pickle gets its name, which is that of the job, after Slurm has the job."""


def main() -> None:
    """Run the job whose directory the command line names.

    Raises:
        SystemExit: The job ended with an exit code of its own.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    from submitit.core.submission import submitit_main

    if len(sys.argv) == 2:  # anything else is for submitit to refuse
        _check(Path(sys.argv[1]))
    submitit_main()


def _check(directory: Path) -> None:
    """Wait for the job's pickle, as submitit does, and refuse one that somebody else could have written."""
    from submitit import JobEnvironment

    from launch.job.failure import write_failure
    from launch.job.pickles import check_pickle
    from masp.errors import MaspError
    from masp.files.regular import exists
    from masp.runtime.log import say_error

    os.environ["SUBMITIT_FOLDER"] = str(directory)
    paths = JobEnvironment().paths
    try:
        end = time.monotonic() + _PATIENCE_S
        while not exists(paths.submitted_pickle):
            if time.monotonic() > end:
                return  # submitit says so
            time.sleep(0.2)
        check_pickle(paths.submitted_pickle)
    except MaspError as error:
        say_error(error)
        write_failure(paths.stdout, error)
        sys.exit(error.exit_code)


def run_process() -> NoReturn:
    """Run the job, and end the process with its exit code."""
    from masp.runtime.stop import end_process

    try:
        main()
    except SystemExit as ended:
        if not isinstance(ended.code, int):
            raise
        end_process(ended.code)
    end_process(0)


if __name__ == "__main__":
    run_process()
