"""What starts on a node: `python -m launch.job.task FOLDER`, submitit's entry point behind a shut door.

The signal ahead of a time limit may come while Python still imports, and would then kill the process for good. So it is
held back until the job, with its own handlers in place, lets it through (`launch.job.jobs`).
"""

import signal


def main() -> None:
    """Run the job whose directory the command line names."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    from submitit.core.submission import submitit_main

    submitit_main()


if __name__ == "__main__":
    main()
