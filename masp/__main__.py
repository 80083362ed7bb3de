"""`python -m masp`, and what launchers start: `torchrun -m masp`, `deepspeed --module masp`."""

import sys

from masp.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
