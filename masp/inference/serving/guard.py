"""What stands before every request: who may ask, from where, and what is counted."""

from __future__ import annotations

import hmac
import ipaddress
import json
import time
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from masp.inference.serving.metrics import ServerMetrics
from masp.inference.serving.settings import LOOPBACK_NAMES

OPEN_TO_ALL = "/health"
"""Answers without a token, for whoever watches over the server."""
COOKIE = "masp_token"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Of every answer."""


class Guard:
    """Refuses requests that are none of this server's, and counts all.

    On loopback, a page of another site could have the browser ask: by a name that it lets point to 127.0.0.1 (so the
    Host must be one of this machine), or with a form (so an Origin must be that host). Beyond loopback, a token is
    needed.

    Args:
        app: What answers.
        metrics: What counts.
        paths: Paths that are counted by name; all others are one, so that clients cannot make up any number of them.
        is_loopback: Whether the server listens on loopback only.
        token: Token that clients must give; None for none.
        cookie: Suffix of the cookie's name, which browsers share between all ports of a host; None if there is no page
            to log in to.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: ServerMetrics,
        paths: frozenset[str],
        is_loopback: bool,
        token: str | None,
        cookie: str | None = None,
    ):
        self.app, self.metrics, self.paths, self.is_loopback, self.token = app, metrics, paths, is_loopback, token
        self.cookie = None if cookie is None else f"{COOKIE}_{cookie}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started, path, status = time.perf_counter(), scope["path"], 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            headers = Headers(scope=scope)
            if (refusal := self._refusal(path, headers, scope)) is not None:
                await refusal.send(counted)
            else:
                await self.app(scope, receive, counted)
        finally:
            name = path if path in self.paths else "other"
            self.metrics.requests.labels(name, str(status)).inc()
            self.metrics.seconds.labels(name).observe(time.perf_counter() - started)

    def _refusal(self, path: str, headers: Headers, scope: Scope) -> _Refusal | None:
        host = headers.get("host", "")
        if self.is_loopback and not _is_this_machine(_name_of(host)):
            return _Refusal(403, "the Host of the request is not this machine: ask for localhost or 127.0.0.1")
        origin = headers.get("origin")
        if origin is not None and (not host or _host_of(origin) != host.lower()):
            return _Refusal(403, "pages of other sites may not ask this server")
        if self.token is None or path == OPEN_TO_ALL:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(given.strip()):
            return None
        if self.cookie is not None:
            if self._is_token(_cookies(headers).get(self.cookie, "")):
                return None
            query = parse_qs(scope["query_string"].decode("latin-1"))
            if path == "/" and scope["method"] == "GET" and self._is_token(query.get("token", [""])[0]):
                cookie = f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
                return _Refusal(303, "", {"Location": "/", "Set-Cookie": cookie})
        return _Refusal(
            401, "a token is needed: send the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
        )

    def _is_token(self, given: str) -> bool:
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())


class _Refusal:
    """An answer that the application is not asked for."""

    def __init__(self, status: int, why: str, headers: dict[str, str] | None = None):
        self.status = status
        self.body = json.dumps({"error": why}).encode() if why else b""
        self.headers = {"content-type": "application/json", "connection": "close", **(headers or {})}
        if not why:
            del self.headers["connection"]

    async def send(self, send: Send) -> None:
        headers = [(k.lower().encode(), v.encode()) for k, v in self.headers.items()]
        headers.append((b"content-length", str(len(self.body)).encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def _host_of(origin: str) -> str:
    """Host and port of an Origin header; empty if it is not valid, or `null`."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_this_machine(name: str) -> bool:
    """Whether a name in an address can only be this machine: nobody can let it point elsewhere."""
    try:
        return name in LOOPBACK_NAMES or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _name_of(host: str) -> str:
    """The name in a Host header, without its port; empty if it is not valid."""
    try:
        return (urlsplit(f"//{host}").hostname or "") if not set(host) & set("/?#@\\") else ""
    except ValueError:
        return ""


def _cookies(headers: Headers) -> dict[str, str]:
    pairs = (part.strip().partition("=") for line in headers.getlist("cookie") for part in line.split(";"))
    return {name: value for name, _, value in pairs}
