"""`python -m launch.task`, which queued jobs call; new ones call `launch.job.task`. Removed in the next release."""

from launch.job.task import run_process

if __name__ == "__main__":
    run_process()
