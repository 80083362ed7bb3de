"""Ranks watch one another: when one is killed, the others learn which, and end within a bounded time.

Collectives alone do not do that. gloo raises an error that names no rank; NCCL waits for its timeout. So every rank
holds a connection to the lead: the kernel closes it when the process ends, however it ends, and keepalive finds a
machine that is gone. The lead tells the others.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from masp.distributed.collectives import any_rank, share
from masp.errors import InputError, MaspError, OtherRankFailed
from masp.runtime.log import say_error

if TYPE_CHECKING:
    from masp.distributed.ranks import Ranks

CONNECT_S = 60.0
"""Within which all ranks connect; they have met already."""
LINE = 4096


class RankLost(MaspError):
    """A rank ended without a word: killed, most often. Exit code 1."""


class Peers:
    """Watches the ranks while it is entered; all enter and leave it. Nothing happens with one rank.

    Args:
        ranks: this process among its fellows; `masp.distributed.ranks.join` was called.
        device: `cpu` or `cuda`.
        kept: what a person can do then, for the message.
        on_loss: called with the loss before the process is ended by force.
        grace_s: seconds that the main thread has to end by itself after a loss. It cannot while it waits in a
            collective for a rank that is gone; then the process is ended with exit code 1.
    """

    def __init__(
        self, ranks: Ranks, device: str, kept: str, on_loss: Callable[[RankLost], None], grace_s: float = 20.0
    ):
        self.ranks, self.device, self.kept, self.on_loss, self.grace_s = ranks, device, kept, on_loss, grace_s
        self._cause: MaspError | None = None
        self._news: dict[str, str] = {}
        self._known = threading.Event()
        self._left = threading.Event()
        self._connections: dict[int, socket.socket] = {}
        self._names: dict[int, str] = {}
        self._thread: threading.Thread | None = None

    def cause(self, wait_s: float) -> MaspError | None:
        """Why a collective failed, if it is that a rank is gone; None if that is not known within `wait_s`."""
        self._known.wait(wait_s)
        return self._cause

    def __enter__(self) -> Peers:
        if self.ranks.size == 1:
            return self
        me = {"rank": self.ranks.rank, "host": socket.gethostname(), "pid": os.getpid()}
        server = _listen() if self.ranks.is_lead else None
        port, token, lead = share((server.getsockname()[1], secrets.token_hex(16), me) if server else None)
        problem = ""
        try:
            if server:
                self._accept(server, token)
            else:
                self._connect(port, {**me, "token": token}, lead)
        except OSError as error:
            problem = f"environment: rank {self.ranks.rank} cannot connect to the lead rank: {error}"
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
                hello = _read_line(connection)
                if hello.get("token") != token:
                    connection.close()  # a stranger
                    continue
                self._add(hello["rank"], connection, hello)

    def _connect(self, port: int, hello: dict, lead: dict) -> None:
        connection = socket.create_connection((os.environ["MASTER_ADDR"], port), timeout=CONNECT_S)
        connection.sendall(_line(hello))
        self._add(0, connection, lead)

    def _add(self, rank: int, connection: socket.socket, about: dict) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
        self._connections[rank] = connection
        self._names[rank] = f"rank {rank} (process {about['pid']} on {about['host']})"

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            while selector.get_map() and self._cause is None:
                for key, _ in selector.select():
                    try:
                        word = _read_line(self._connections[key.data])
                    except OSError:
                        word = {}
                    if not word or "bye" in word:  # nothing more will come
                        selector.unregister(key.fileobj)
                    self._hear(key.data, word)
        if self._cause is None:
            return
        self._known.set()
        if self.ranks.is_lead:  # the others are connected to it alone
            self._send(self._news)
        if not self._left.wait(self.grace_s):
            say_error(self._cause)
            if isinstance(self._cause, RankLost):
                self.on_loss(self._cause)
            os._exit(MaspError.exit_code)

    def _hear(self, rank: int, word: dict) -> None:
        if self._left.is_set():
            return  # closed by this process itself
        name = self._names[rank]
        if not word:
            lost = f"{name} ended without a word: it was killed, or its machine is gone; {self.kept}"
            self._cause, self._news = RankLost(lost), {"lost": lost}
        elif word.get("lost"):
            self._cause, self._news = RankLost(word["lost"]), word
        elif word.get("failed") or word.get("bye") == "failed":
            name = word.get("failed") or name
            self._cause, self._news = OtherRankFailed(f"{name} failed; its own message says why"), {"failed": name}

    def _send(self, word: dict) -> None:
        for connection in self._connections.values():
            try:
                connection.sendall(_line(word))
            except OSError:
                continue  # that one is gone: nobody is left to tell

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._thread is None:
            return
        # a collective fails on the ranks that are left, a moment before or after the news of why
        broken = kind is not None and issubclass(kind, Exception) and not issubclass(kind, MaspError)
        cause = self.cause(5.0) if broken else None
        self._leave(self._thread, kind is not None)
        if cause is not None:
            raise cause from None

    def _leave(self, watcher: threading.Thread, failed: bool) -> None:
        if self._cause is None:
            self._send({"bye": "failed" if failed else "done"})
        self._left.set()
        for connection in self._connections.values():
            try:
                connection.shutdown(socket.SHUT_WR)  # what was sent arrives; the process's end closes the rest
            except OSError:
                continue  # gone already
        if self._cause is not None:
            watcher.join(5.0)  # the lead's last words


def _listen() -> socket.socket:
    both = socket.has_dualstack_ipv6()
    return socket.create_server(
        ("", 0), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=1024
    )


def _line(word: dict) -> bytes:
    return json.dumps(word).encode() + b"\n"


def _read_line(connection: socket.socket) -> dict:
    """One line, read byte by byte so that nothing of the next is taken; empty at the end of the connection."""
    data = b""
    while not data.endswith(b"\n") and len(data) < LINE:
        part = connection.recv(1)
        if not part:
            return {}
        data += part
    try:
        word = json.loads(data)
    except ValueError:
        return {}
    return word if isinstance(word, dict) else {}
