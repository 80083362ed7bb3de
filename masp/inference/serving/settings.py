"""What a server may be told, and where it listens."""

from __future__ import annotations

import errno
import importlib
import ipaddress
import os
import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass

from masp.errors import InputError
from masp.files.text import reason, shown

TOKEN = "MASP_TOKEN"
"""Environment variable that gives the token."""
MIN_TOKEN_LENGTH = 16
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
"""What a client on this machine calls the server."""


@dataclass(frozen=True)
class ServerSettings:
    """How a server listens and what it takes."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 lets the system choose one."""
    batch_size: int = 16
    """Images that are scored at once, at most."""
    max_wait_ms: float = 5.0
    """Milliseconds that an image waits, at most, for others to be scored with."""
    queue: int = 128
    """Images that are in work or wait, at most."""
    time_limit_s: float = 60.0
    """Seconds that a request may take, with reading its body."""
    max_body_mb: float = 32.0
    """Megabytes of a request's body, at most."""
    token: str | None = None
    """What clients must know; None for nothing."""
    is_new_token: bool = False
    """Whether nobody knows it yet, so that the user must be told."""

    def __post_init__(self) -> None:
        for option, value, is_valid, valid in (
            ("--port", self.port, 0 <= self.port <= 65535, "0 to 65535"),
            ("--batch-size", self.batch_size, self.batch_size >= 1, "1 or more"),
            ("--max-wait-ms", self.max_wait_ms, 0 <= self.max_wait_ms <= 10_000, "0 to 10000"),
            ("--queue", self.queue, self.queue >= self.batch_size, f"{self.batch_size} (--batch-size) or more"),
            ("--time-limit", self.time_limit_s, 0 < self.time_limit_s <= 86_400, "more than 0, at most 86400"),
            ("--max-body-mb", self.max_body_mb, 0 < self.max_body_mb <= 1024, "more than 0, at most 1024"),
        ):
            if not is_valid:
                raise InputError(f"{option} {value}: must be {valid}")

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mb * 2**20)

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine reach it."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether an address, or the name `localhost`, is reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def need_extra() -> None:
    """Check that what serves is installed.

    Raises:
        InputError: It is not; names what to install.
    """
    for module in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise InputError(f"{module} is not installed, which serving needs: pip install 'masp[serve]'") from None


def token_for(host: str) -> tuple[str | None, bool]:
    """The token that clients must give: `MASP_TOKEN`; without it none on loopback, else a new one.

    Returns:
        The token, and whether it is new, so that the user must be told.

    Raises:
        InputError: `MASP_TOKEN` is too short or cannot be in a header.
    """
    given = os.environ.get(TOKEN)
    if given is not None:
        if len(given) < MIN_TOKEN_LENGTH or not given.isascii() or not all(c.isalnum() or c in "-._~" for c in given):
            raise InputError(
                f"{TOKEN}: must be {MIN_TOKEN_LENGTH} or more letters, digits, '-', '.', '_' or '~', such as "
                "`openssl rand -hex 32` prints"
            )
        return given, False
    return (None, False) if is_loopback(host) else (secrets.token_urlsafe(32), True)


def bind(settings: ServerSettings) -> socket.socket:
    """Take the port, before anything is loaded; nobody can connect yet.

    Raises:
        InputError: It is in use, or may not be taken, or the host is not an address of this machine.
    """
    where = f"--host {shown(settings.host)} --port {settings.port}"
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InputError(f"{where}: not an address of this machine: {reason(error)}") from None
    family, kind, protocol, _, address = found[0]
    taken = socket.socket(family, kind, protocol)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(1)  # Linux refuses a second server here rather than in `bind`
    except OSError as error:
        taken.close()
        in_use = error.errno == errno.EADDRINUSE
        remedy = "give another --port, or 0 for any that is free" if in_use else "give another --host or --port"
        raise InputError(f"{where}: cannot be listened on: {reason(error)}; {remedy}") from None
    return taken


def address_of(taken: socket.socket, settings: ServerSettings) -> str:
    """The URL of a server for a browser on this machine, or from outside if it listens there."""
    host, port = settings.host, taken.getsockname()[1]
    with suppress(ValueError):  # a name stays as it is
        parsed = ipaddress.ip_address(host)
        host = socket.gethostname() if parsed.is_unspecified else f"[{host}]" if parsed.version == 6 else host
    return f"http://{host}:{port}"
