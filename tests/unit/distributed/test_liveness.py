"""Ranks that watch one another, as two threads over the loopback; killed processes: tests/distributed."""

import os
import socket
import subprocess
import sys
import time

import pytest

from masp.distributed.liveness import MAX_LINE_BYTES, Peers, _Hello, _line, _News, _receive
from masp.distributed.ranks import Ranks


def test_one_rank_watches_nobody():
    with Peers(Ranks(), "cpu", "", lambda loss: None) as peers:
        assert peers._thread is None and peers.cause(0) is None


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (_line(_News("lost", "a\udcff" * 1000)) + b"more", _News("lost", "a\udcff" * 1000)),
        (b'{"kind":"odd"}\n', None),
        (b'{"kind":"done"}', None),
        (b"\xff\n", None),
        (b"[" * 5000 + b"\n", None),
        (b"x" * (MAX_LINE_BYTES + 1), None),
        (_line(_Hello(1, "h", 2, "t")), None),
        (b"", None),
    ],
)
def test_whatever_is_received_is_a_message_or_nothing(sent, received):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(sent)
        theirs.shutdown(socket.SHUT_WR)
        assert _receive(_News, ours) == received


WATCH = """
import sys, time
from masp.distributed.liveness import Peers
from masp.distributed.ranks import join, read_ranks
ranks = read_ranks()
join(ranks, "cpu", timeout_min=1)
with Peers(ranks, "cpu", "the rest is kept", lambda loss: print("lost", loss, flush=True), grace_s=1.0) as peers:
    print("watching", flush=True)
    sys.stdin.readline() if ranks.rank == 1 else time.sleep(100)
"""


@pytest.mark.full
def test_a_rank_that_cannot_end_by_itself_is_ended():
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 10000)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", WATCH],
            env=os.environ | common | {"RANK": rank, "LOCAL_RANK": rank},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        assert [rank.stdout.readline() for rank in ranks] == ["watching\n"] * 2
        ranks[1].kill()
        began = time.monotonic()
        out, err = ranks[0].communicate(timeout=60)
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert ranks[0].returncode == 1 and time.monotonic() - began < 30
    message = f"rank 1 (process {ranks[1].pid} on {socket.gethostname()}) ended without a message: "
    assert err.splitlines()[-1].startswith(f"error: {message}") and err.endswith("the rest is kept\n"), err
    assert out.startswith(f"lost {message}")
