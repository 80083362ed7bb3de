"""`python -m masp`, and what launchers start: `torchrun -m masp`, `deepspeed --module masp`."""

from masp.cli.main import run_process

if __name__ == "__main__":
    run_process()
