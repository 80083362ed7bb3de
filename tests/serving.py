"""A running server and a plain client, for the tests of `masp serve` and `masp app`."""

from __future__ import annotations

import http.client
import io
import json
import re
import signal
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tests.commands import Commands, Running

BOUNDARY = "boundary-of-the-tests"


@dataclass(frozen=True)
class Reply:
    """An answer of a server."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    running: Running
    port: int

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 60,
    ) -> Reply:
        """Send one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            given = {"Content-Type": kind} if kind else {}
            connection.request(method, path, body, {**given, **(headers or {})})
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def predict(self, image: bytes, explain: bool = False) -> Reply:
        """Send one image as the body."""
        return self.ask("POST", "/predict" + "?explain=true" * explain, image, "image/png")

    def metric(self, name: str) -> float:
        """A number of `/metrics`, by its name with labels."""
        text = self.ask("GET", "/metrics").body.decode()
        return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)[1])


@contextmanager
def serving(commands: Commands, *argv: object, **env: object) -> Iterator[Server]:
    """Run `masp ARGV` on a free port until the block ends; the VLM is loaded. Then it must end cleanly."""
    running = commands.start(*argv, "--port", 0, **env)
    running.when(lambda: "ready: " in running.output()[0])
    port = int(re.search(r"listening on http://\S+?:(\d+)", running.output()[0])[1])
    yield Server(running, port)
    if not running.ended:
        running.kill(signal.SIGTERM)
        result = running.wait()
        assert result.code == 0 and "Traceback" not in result.stderr, result


def form(files: Sequence[tuple[str, bytes]], field: str = "image") -> tuple[bytes, str]:
    """Files as the body of a form, and its content type."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode()
        + data
        + b"\r\n"
        for name, data in files
    ]
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()]), f"multipart/form-data; boundary={BOUNDARY}"


def png(seed: int, width: int = 90, height: int = 60) -> bytes:
    """A PNG that is different for every seed, of mixed sizes."""
    random = np.random.default_rng(seed)
    size = (height + int(random.integers(60)), width + int(random.integers(60)), 3)
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes whose header claims 60,000 x 60,000 pixels."""
    file = io.BytesIO()
    Image.new("1", (8, 8)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)
