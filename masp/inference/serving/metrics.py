"""What a server counts, in the form that Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class ServerMetrics:
    """Counters of one server, which no other server in the process shares."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        kind = {"registry": self.registry, "namespace": "masp"}
        self.requests = Counter("requests", "Requests by path and status.", ["path", "status"], **kind)
        self.seconds = Histogram(
            "request_seconds", "Seconds from a request's headers to its answer.", ["path"], buckets=_SECONDS, **kind
        )
        self.batches = Histogram("batch_images", "Images that were scored at once.", buckets=_IMAGES, **kind)
        self.images = Counter("images", "Images by what became of them.", ["outcome"], **kind)
        self.queue = Gauge("queue_images", "Images that are in work or wait.", **kind)
        self.ready = Gauge("ready", "1 once the VLM is loaded.", **kind)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)
