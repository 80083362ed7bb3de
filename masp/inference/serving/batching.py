"""One thread owns the models: images that come in at the same time are scored together.

Nothing here knows of HTTP. Callers submit images that are decoded already and get a future for each.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from masp.data.images import UnreadableImage
from masp.errors import MaspError
from masp.evaluation.scorers import ScoreRequest
from masp.extraction.image_stream import PreparedImage
from masp.inference.images import NamedImage
from masp.inference.model import Model, Prediction, Unreadable
from masp.results.explanations.explanation import Explanation

LOG = logging.getLogger(__name__)


class ModelFailed(MaspError):
    """The model failed on an image for a reason that is not the image's."""


@dataclass(frozen=True)
class Answer:
    """What a model says about one image."""

    prediction: Prediction
    explanation: Explanation | None
    """None where none was asked for."""


@dataclass(eq=False)
class Job:
    """One image for one model."""

    model: int
    """Number of the model."""
    image: NamedImage
    prepared: PreparedImage
    explains: bool = False
    answer: Future[Answer] = field(default_factory=Future)
    """Cancelling it takes the image out of the queue."""
    ready_at: float = field(default_factory=time.monotonic)
    is_given_up: bool = False
    """Set by whoever waits for it no longer, once it can no longer be cancelled: its explanation is left out."""


class Batcher:
    """The thread that owns the models. It loads them first, then scores whatever is submitted until it is stopped.

    Args:
        models: Models. Nobody else may use them, but for `Model.prepare`.
        batch_size: Images that are scored at once, at most.
        max_wait_s: Seconds that an image waits for others, at most.
        explains: Whether explanations will be asked for, so that what they need is loaded as well.
        on_loaded: Called in the thread once the models are loaded, or with the error that prevented it.
        on_batch: Called in the thread with the number of images of each batch.
    """

    def __init__(
        self,
        models: Sequence[Model],
        batch_size: int,
        max_wait_s: float,
        explains: bool = False,
        on_loaded: Callable[[BaseException | None], object] = lambda _: None,
        on_batch: Callable[[int], object] = lambda _: None,
    ):
        self.models, self.batch_size, self.max_wait_s = list(models), batch_size, max_wait_s
        self.explains, self.on_loaded, self.on_batch = explains, on_loaded, on_batch
        self.is_loaded = False
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        # a daemon: a server that must end does not wait for a VLM to be loaded or for a batch that never ends
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Begin to load the models."""
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether images are scored."""
        return self.is_loaded and self._thread.is_alive()

    def submit(self, job: Job) -> Future[Answer]:
        """Have an image scored; the future is the job's own."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        return job.answer

    def stop(self) -> None:
        """Score nothing more; what still waits is cancelled."""
        with self._changed:
            self._stopped = True
            for job in self._jobs:
                job.answer.cancel()
            self._jobs.clear()
            self._changed.notify()

    def _run(self) -> None:
        try:
            self._load()
        except BaseException as error:
            self.on_loaded(error)
            return
        self.is_loaded = True
        self.on_loaded(None)
        while batch := self._next_batch():
            for number, model in enumerate(self.models):
                if own := [job for job in batch if job.model == number]:
                    self.on_batch(len(own))
                    self._answer(model, own)

    def _load(self) -> None:
        first, *others = self.models
        first.load(self.explains and bool(first.aspects))
        for model in others:
            model.use_vlm_of(first)
            model.load(self.explains and bool(model.aspects))

    def _next_batch(self) -> list[Job]:
        """The jobs that have waited longest, none of which was cancelled; empty once the batcher is stopped."""
        with self._changed:
            while not self._stopped:
                self._jobs = deque(job for job in self._jobs if not job.answer.cancelled())
                if not self._jobs:
                    self._changed.wait()
                    continue
                left = self._jobs[0].ready_at + self.max_wait_s - time.monotonic()
                if len(self._jobs) < self.batch_size and left > 0:
                    self._changed.wait(left)
                    continue
                taken = [self._jobs.popleft() for _ in range(min(self.batch_size, len(self._jobs)))]
                # from here on they cannot be cancelled any more
                if batch := [job for job in taken if job.answer.set_running_or_notify_cancel()]:
                    return batch
            return []

    def _answer(self, model: Model, jobs: Sequence[Job]) -> None:
        """Answer jobs in one batch; if it fails, each by itself, so that none fails for another."""
        try:
            requests = model.encode_prepared([job.image.name for job in jobs], [job.prepared for job in jobs])
            self._score(model, jobs, requests)
        except Exception as error:
            left = [job for job in jobs if not job.answer.done()]
            if len(jobs) > 1:
                if not isinstance(error, MaspError | MemoryError | torch.OutOfMemoryError):
                    LOG.exception("a batch of %d images failed; each is tried by itself", len(jobs))
                for job in left:
                    self._answer(model, [job])
                return
            if not isinstance(error, MaspError):
                LOG.exception("the model failed on an image")
                error = ModelFailed("the model failed on this image; the log of the server says why")
            for job in left:
                job.answer.set_exception(error)

    def _score(self, model: Model, jobs: Sequence[Job], found: Sequence[ScoreRequest | Unreadable]) -> None:
        pairs: list[tuple[Job, ScoreRequest]] = []
        for job, request in zip(jobs, found, strict=True):
            if isinstance(request, Unreadable):
                job.answer.set_exception(UnreadableImage(request.reason))
            else:
                pairs.append((job, request))
        predictions = model.predict_requests([request for _, request in pairs])
        explained = []
        for (job, request), prediction in zip(pairs, predictions, strict=True):
            if job.explains:
                explained.append((job, request, prediction))
            else:
                job.answer.set_result(Answer(prediction, None))
        # one after another: each runs many prompts, and whoever asked for none has an answer already
        for job, request, prediction in explained:
            explanation = None if job.is_given_up else model.explainer.explain([request])[0]
            job.answer.set_result(Answer(prediction, explanation))
