"""`python -m masp.cli …`: the same as `masp …`, as launchers that take a module call it."""

import sys

from masp.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
