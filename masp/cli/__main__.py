"""Keeps `python -m masp.cli` working; new commands say `python -m masp`."""

import sys

from masp.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
