"""What a server counts, in the form that Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class ServerMetrics:
    """Counters of one server, which no other server in the process shares."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter("masp_requests", "Requests by path and status.", ["path", "status"], registry=own)
        self.seconds = Histogram(
            "masp_request_seconds", "From a request's headers to its answer.", ["path"], buckets=_SECONDS, registry=own
        )
        self.batches = Histogram("masp_batch_images", "Images scored at once.", buckets=_IMAGES, registry=own)
        self.images = Counter("masp_images", "Images by what became of them.", ["outcome"], registry=own)
        self.queue = Gauge("masp_queue_images", "Images that are in work or wait.", registry=own)
        self.ready = Gauge("masp_ready", "1 once the VLM is loaded.", registry=own)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)
