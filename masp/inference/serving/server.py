"""A server from its start to its end: the port, the models, signals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import webbrowser
from collections.abc import Callable, Iterator, Mapping, Sequence

import uvicorn
from fastapi import FastAPI

from masp.inference.model import Model
from masp.inference.serving.batching import Batcher
from masp.inference.serving.guard import Guard
from masp.inference.serving.metrics import ServerMetrics
from masp.inference.serving.service import Service
from masp.inference.serving.settings import TOKEN, ServerSettings, address_of
from masp.inference.serving.web import PATHS, add_index, make_app
from masp.runtime.log import say
from masp.runtime.stop import StopFlag

STOP_LIMIT_S = 20
"""Seconds that requests get to finish in when the server is stopped."""


def run_server(
    models: Mapping[str, Model],
    settings: ServerSettings,
    taken: socket.socket,
    add_page: Callable[[FastAPI, Service], Sequence[str]] | None = None,
    opens: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in work.

    Args:
        models: What the user named -> model; the VLM need not be loaded.
        settings: How to listen, and limits.
        taken: Socket that is bound already.
        add_page: Adds a page for people at `/`, and returns its paths; None describes the interface there.
        opens: Whether to show the page in the user's browser.

    Raises:
        MaspError: The VLM cannot be loaded.
    """
    metrics = ServerMetrics()
    loaded = _Loaded(list(models), metrics)
    batcher = Batcher(
        list(models.values()),
        settings.batch_size,
        settings.max_wait_ms / 1000,
        explains=add_page is not None,
        on_loaded=loaded.note,
        on_batch=metrics.batches.observe,
    )
    service = Service(list(models), settings, batcher, metrics)
    app = make_app(service)
    paths = {*PATHS, *([] if add_page is None else add_page(app, service))}
    if add_page is None:
        add_index(app, service)
    port = str(taken.getsockname()[1])
    cookie = None if add_page is None else port
    guard = Guard(app, metrics, frozenset(paths), settings.is_loopback, settings.token, cookie)
    address = address_of(taken, settings)
    page_address = f"{address}/?token={settings.token}" if settings.token and add_page else address
    with StopFlag() as stop:
        say(f"listening on {page_address if settings.is_new_token else address}; loading the VLM")
        if settings.is_new_token and not add_page:
            say(f"requests need the header  Authorization: Bearer {settings.token}  ({TOKEN} can give the token)")
        loaded.on_failure = stop.set
        try:
            asyncio.run(_serve(guard, batcher, taken, stop, page_address if opens else None))
        finally:
            batcher.stop()
            service.close()
            taken.close()
        if loaded.failure is not None:
            raise loaded.failure
        stop.done()


class _Loaded:
    """What became of loading the models."""

    def __init__(self, sources: Sequence[str], metrics: ServerMetrics):
        self.sources, self.metrics = sources, metrics
        self.failure: BaseException | None = None
        self.on_failure: Callable[[], object] = lambda: None

    def note(self, failure: BaseException | None) -> None:
        """The models were loaded, or why not."""
        if failure is None:
            self.metrics.ready.set(1)
            say(f"ready: {', '.join(self.sources)}")
            return
        self.failure = failure
        self.on_failure()


async def _serve(guard: Guard, batcher: Batcher, taken: socket.socket, stop: StopFlag, opened: str | None) -> None:
    config = uvicorn.Config(
        guard,
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="error",  # not that a client sends what is not HTTP
        access_log=False,  # it would hold the token of a page's address
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=STOP_LIMIT_S,
    )
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # the client is told what is wrong with its form
    batcher.start()
    if opened is not None:
        asyncio.get_running_loop().call_later(0.5, webbrowser.open, opened)
    await _Server(config, stop).serve([taken])


class _Server(uvicorn.Server):
    """Stops when our flag is set. Uvicorn's own handlers would send the signal to the process again at the end."""

    def __init__(self, config: uvicorn.Config, stop: StopFlag):
        super().__init__(config)
        self.stop = stop

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        self.should_exit = self.should_exit or bool(self.stop)
        return await super().on_tick(counter)
