"""What starts on a node: `python -m launch.job.task DIRECTORY` calls submitit's entry point with a signal blocked.

The signal ahead of a time limit may arrive while Python is still importing, and would then kill the process for good.
So it is blocked until the job has installed its handlers (`launch.job.jobs`).
"""

import signal

from masp.runtime import parent as _parent  # noqa: F401 - notes the launcher at once


def main() -> None:
    """Run the job whose directory the command line names."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    from submitit.core.submission import submitit_main

    submitit_main()


if __name__ == "__main__":
    main()
