"""Ranks watch one another: when one is killed, the others learn which, and end within a bounded time.

Collectives alone do not do that: gloo raises an error that names no rank, and NCCL waits for its timeout. So every rank
keeps a connection to rank 0. The kernel closes it when the process ends, however it ends, and keepalive finds a machine
that is gone. Rank 0 tells the others.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from masp.distributed.collectives import any_rank, broadcast
from masp.distributed.ranks import Ranks
from masp.errors import DataError, InputError, MaspError, OtherRankFailed
from masp.files.text import reason
from masp.files.typed import decode, encode
from masp.runtime.log import say_error

CONNECT_S = 60.0
"""Seconds within which all ranks must connect; they have joined already."""
MAX_LINE_BYTES = 1 << 16

T = TypeVar("T")


class RankLost(MaspError):
    """A rank ended without a message: killed, most often. Exit code 1."""


@dataclass(frozen=True)
class _Hello:
    """What a rank sends first."""

    rank: int
    host: str
    pid: int
    token: str

    def name(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"


@dataclass(frozen=True)
class _News:
    """What a rank sends last."""

    kind: Literal["done", "failed", "lost"]
    text: str = ""
    """`lost`: the message of `RankLost`. `failed`: name of the rank that failed; empty for the sender."""


class Peers:
    """Watches the ranks while it is entered; all of them enter and leave it. Does nothing if there is one rank.

    Args:
        ranks: Ranks of this run; `masp.distributed.ranks.join` was called.
        device: `cpu` or `cuda`.
        kept: What is kept and how to go on after a loss, for the message.
        on_loss: Called with the loss before the process is ended by force.
        grace_s: Seconds that the main thread has to end by itself after a loss. It cannot while it waits in a
            collective for a rank that is gone; then the process is ended with exit code 1.
    """

    def __init__(
        self, ranks: Ranks, device: str, kept: str, on_loss: Callable[[RankLost], None], grace_s: float = 20.0
    ):
        self.ranks, self.device, self.kept, self.on_loss, self.grace_s = ranks, device, kept, on_loss, grace_s
        self._cause: MaspError | None = None
        self._news = _News("done")
        self._known = threading.Event()
        self._left = threading.Event()
        self._connections: dict[int, socket.socket] = {}
        self._names: dict[int, str] = {}
        self._thread: threading.Thread | None = None

    def cause(self, wait_s: float) -> MaspError | None:
        """Why a collective failed, if a rank is gone; None if that is not known within `wait_s` seconds."""
        self._known.wait(wait_s)
        return self._cause

    def __enter__(self) -> Peers:
        if self.ranks.size == 1:
            return self
        me = _Hello(self.ranks.rank, socket.gethostname(), os.getpid(), secrets.token_hex(16))
        server = _listen() if self.ranks.rank == 0 else None
        port, rank_0 = broadcast((server.getsockname()[1], me) if server else None)
        problem = ""
        try:
            if server:
                self._accept(server, me.token)
            else:
                self._connect(port, _Hello(me.rank, me.host, me.pid, rank_0.token), rank_0)
        except OSError as error:
            problem = f"environment: rank {self.ranks.rank} cannot connect to rank 0: {reason(error)}"
        if any_rank(bool(problem), self.device):
            raise InputError(problem) if problem else OtherRankFailed("the ranks cannot connect to one another")
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()
        return self

    def _accept(self, server: socket.socket, token: str) -> None:
        deadline = time.monotonic() + CONNECT_S
        with server:
            while len(self._connections) < self.ranks.size - 1:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                connection, _ = server.accept()
                connection.settimeout(10.0)
                hello = _receive(_Hello, connection)
                if hello is None or hello.token != token:
                    connection.close()  # not one of the ranks
                    continue
                self._add(connection, hello)

    def _connect(self, port: int, hello: _Hello, rank_0: _Hello) -> None:
        connection = socket.create_connection((os.environ["MASTER_ADDR"], port), timeout=CONNECT_S)
        connection.sendall(_line(hello))
        self._add(connection, rank_0)

    def _add(self, connection: socket.socket, peer: _Hello) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
        self._connections[peer.rank] = connection
        self._names[peer.rank] = peer.name()

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            while selector.get_map() and self._cause is None:
                for key, _ in selector.select():
                    try:
                        news = _receive(_News, self._connections[key.data])
                    except OSError:
                        news = None
                    selector.unregister(key.fileobj)  # nothing more will come
                    self._learn(key.data, news)
        if self._cause is None:
            return
        self._known.set()
        if self.ranks.rank == 0:  # the others are connected to it alone
            self._send(self._news)
        if not self._left.wait(self.grace_s):
            say_error(self._cause)
            if isinstance(self._cause, RankLost):
                self.on_loss(self._cause)
            os._exit(MaspError.exit_code)

    def _learn(self, rank: int, news: _News | None) -> None:
        if self._left.is_set():
            return  # this process closed the connection itself
        name = self._names[rank]
        if news is None:
            text = f"{name} ended without a message: it was killed, or its machine is gone; {self.kept}"
            news = _News("lost", text)
        if news.kind == "lost":
            self._cause, self._news = RankLost(news.text), news
        elif news.kind == "failed":
            name = news.text or name
            self._cause = OtherRankFailed(f"{name} failed; its own message says why")
            self._news = _News("failed", name)

    def _send(self, news: _News) -> None:
        for connection in self._connections.values():
            try:
                connection.sendall(_line(news))
            except OSError:
                continue  # that rank is gone: there is nobody left to tell

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._thread is None:
            return
        # A collective fails on the remaining ranks a moment before or after the news of why.
        broken = kind is not None and issubclass(kind, Exception) and not issubclass(kind, MaspError)
        cause = self.cause(5.0) if broken else None
        self._leave(self._thread, kind is not None)
        if cause is not None:
            raise cause from None

    def _leave(self, watcher: threading.Thread, failed: bool) -> None:
        if self._cause is None:
            self._send(_News("failed" if failed else "done"))
        self._left.set()
        for connection in self._connections.values():
            try:
                connection.shutdown(socket.SHUT_WR)  # what was sent arrives; the end of the process closes the rest
            except OSError:
                continue  # gone already
        if self._cause is not None:
            watcher.join(5.0)  # rank 0 still tells the others


def _listen() -> socket.socket:
    both = socket.has_dualstack_ipv6()
    return socket.create_server(
        ("", 0), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=1024
    )


def _line(message: _Hello | _News) -> bytes:
    return encode(message) + b"\n"


def _receive(kind: type[T], connection: socket.socket) -> T | None:
    """Read one line, byte by byte so that nothing of the next is taken; None at the end of the connection.

    Raises:
        OSError: The connection is broken.
    """
    data = b""
    while not data.endswith(b"\n") and len(data) < MAX_LINE_BYTES:
        part = connection.recv(1)
        if not part:
            return None
        data += part
    try:
        return decode(kind, data, "message", surrogates=True)
    except DataError:  # not from a rank
        return None
