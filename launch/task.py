"""`python -m launch.task`, which queued jobs call; new ones call `launch.job.task`. Removed in the next release."""

from launch.job.task import main

if __name__ == "__main__":
    main()
