"""Runs `masp evaluate` and kills one rank partway: `python dying_rank.py RANK LEDGER ARGUMENT…`.

Rank RANK, as numbered by the launcher, is killed (SIGKILL) as soon as its LEDGER holds two records.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from masp.cli.main import main


def die(ledger: Path) -> None:
    while not ledger.exists() or ledger.read_bytes().count(b"\n") < 3:  # the header and two records
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    rank, ledger, *arguments = sys.argv[1:]
    mine = next(os.environ[n] for n in ("RANK", "SLURM_ARRAY_TASK_ID", "SLURM_PROCID") if n in os.environ)
    if mine == rank:
        threading.Thread(target=die, args=(Path(ledger),), daemon=True).start()
    sys.exit(main(["evaluate", *arguments]))
