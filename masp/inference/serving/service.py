"""From images to answers: places in the queue, decoding beside the model, the time limit, clients that go away."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from masp.data.images import UnreadableImage
from masp.errors import MaspError
from masp.inference.images import NamedImage
from masp.inference.serving.batching import Answer, Batcher, Job
from masp.inference.serving.metrics import ServerMetrics
from masp.inference.serving.settings import ServerSettings

T = TypeVar("T")

RETRY_AFTER_S = 1
MAX_DECODERS = 4
"""Threads that decode; each may need as much memory as the largest image that is read (`masp.data.images`)."""
GONE = 499
"""Status under which a request is counted whose client has gone; nobody gets it."""


class Places:
    """How many images may be in work or wait. Used in the event loop alone."""

    def __init__(self, count: int, metrics: ServerMetrics):
        self.count, self.taken, self.metrics = count, 0, metrics

    def take(self, count: int) -> None:
        """Take places.

        Raises:
            HTTPException: 503, there are not so many left.
        """
        if self.taken + count > self.count:
            raise HTTPException(503, "too many images wait already", {"Retry-After": str(RETRY_AFTER_S)})
        self._change(count)

    def give_back(self, count: int) -> None:
        """Free places."""
        self._change(-count)

    def _change(self, by: int) -> None:
        self.taken += by
        self.metrics.queue.set(self.taken)


class Service:
    """Answers requests about images with some models.

    Args:
        sources: What the user named, of each model.
        settings: Limits.
        batcher: The thread that owns the models.
        metrics: What counts.
    """

    def __init__(self, sources: Sequence[str], settings: ServerSettings, batcher: Batcher, metrics: ServerMetrics):
        self.sources, self.settings, self.batcher, self.metrics = sources, settings, batcher, metrics
        self.models = batcher.models
        self.places = Places(settings.queue, metrics)
        self._decoders: ThreadPoolExecutor | None = None
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="read")
        """A thread for what is read one after another."""
        # what is decoded takes far more memory than what waits to be: a batch that is scored, and the next one
        self._decoded = asyncio.Semaphore(2 * settings.batch_size + MAX_DECODERS)

    @property
    def decoders(self) -> ThreadPoolExecutor:
        """The threads that decode; made once the models are loaded, which says how many there may be."""
        if self._decoders is None:
            is_safe = all(model.encoder.preprocessor.has_plain_block for model in self.models)
            count = min(MAX_DECODERS, os.cpu_count() or 1) if is_safe else 1
            self._decoders = ThreadPoolExecutor(count, thread_name_prefix="decode")
        return self._decoders

    def close(self) -> None:
        """Decode and read nothing more, and let these threads end: the process waits for them."""
        for pool in (self._decoders, self.reader):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    def check_ready(self) -> None:
        """Refuse to work before the models are loaded.

        Raises:
            HTTPException: 503.
        """
        if not self.batcher.is_ready:
            raise HTTPException(503, "the VLM is still being loaded", {"Retry-After": str(RETRY_AFTER_S)})

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[Admission]:
        """While entered, a request has a place, and must end within the time limit.

        Raises:
            HTTPException: 503 if there is no place, 504 after the time limit (408 while its body is read).
        """
        self.check_ready()
        admission = Admission(self)
        admission.take(1)  # before the body is read, which takes memory
        try:
            async with asyncio.timeout(self.settings.time_limit_s):
                yield admission
        except TimeoutError:
            limit = f"{self.settings.time_limit_s:g} s, the limit of this server"
            if admission.is_read:
                raise HTTPException(504, f"no answer within {limit}") from None
            raise HTTPException(408, f"the body did not arrive within {limit}", {"Connection": "close"}) from None
        finally:
            self.places.give_back(admission.taken)

    async def answer(self, image: NamedImage, model: int = 0, explains: bool = False) -> Answer:
        """The answer of a model about an image.

        Raises:
            MaspError: It cannot be read, or the model fails on it.
        """
        async with self._decoded:
            loop = asyncio.get_running_loop()
            prepared = await loop.run_in_executor(self.decoders, self.models[model].prepare, image)
            if why := prepared.reason or prepared.failure:
                raise UnreadableImage(why)
            job = Job(model, image, prepared, explains)
            try:
                return await asyncio.wrap_future(self.batcher.submit(job))
            except asyncio.CancelledError:
                job.is_given_up = True
                raise

    async def answer_each(
        self, images: Sequence[NamedImage], models: Sequence[int], explains: bool
    ) -> list[Answer | MaspError]:
        """The answers about several images, each of one model; what fails is in its place."""
        found = await asyncio.gather(*(self._tried(i, m, explains) for i, m in zip(images, models, strict=True)))
        return list(found)

    async def _tried(self, image: NamedImage, model: int, explains: bool) -> Answer | MaspError:
        outcome = "answered"
        try:
            return await self.answer(image, model, explains)
        except asyncio.CancelledError:
            outcome = "given up"
            raise
        except MaspError as error:
            outcome = "unreadable" if isinstance(error, UnreadableImage) else "failed"
            return error
        finally:
            self.metrics.images.labels(outcome).inc()


class Admission:
    """The places of one request."""

    def __init__(self, service: Service):
        self.service, self.taken, self.is_read = service, 0, False

    def take(self, count: int) -> None:
        """Take more places; errors as of `Places.take`."""
        self.service.places.take(count)
        self.taken += count

    async def while_connected(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """Do something for a client whose request has been read, unless it goes away.

        Raises:
            ClientDisconnect: It did.
        """
        self.is_read = True
        doing, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return doing.result()
            raise ClientDisconnect
        finally:
            doing.cancel()
            gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
