"""What starts on a node: `python -m launch.job.task DIRECTORY` calls submitit's entry point with a signal blocked.

The signal ahead of a time limit may arrive while Python is still importing, and would then kill the process for good.
So it is blocked until the job has installed its handlers (`launch.job.jobs`).
"""

import signal
from typing import NoReturn


def main() -> None:
    """Run the job whose directory the command line names.

    Raises:
        SystemExit: The job ended with an exit code of its own.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    from submitit.core.submission import submitit_main

    submitit_main()


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
