"""`python -m masp.cli …`: the same as `masp …`, as launchers that take a module call it."""

from masp.cli.main import run_process

if __name__ == "__main__":
    run_process()
